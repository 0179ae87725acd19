"""Reviews an image classifier, its training and its data, and says with evidence what holds it back."""

from netreview.affine import affine_equivalent
from netreview.fields import ReceptiveField, receptive_field
from netreview.findings import Finding, Findings
from netreview.rates import RangeTest, learning_rate_range
from netreview.reviewer import review, review_history

__all__ = [
    "Finding", "Findings", "RangeTest", "ReceptiveField", "affine_equivalent", "learning_rate_range",
    "receptive_field", "review", "review_history",
]  # fmt: skip
