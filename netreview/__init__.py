"""Reviews any image classifier and its training set-up, and says with evidence what holds it back."""

from netreview.affine import affine_equivalent
from netreview.fields import receptive_field
from netreview.findings import Finding, Findings
from netreview.history import review_history
from netreview.rates import learning_rate_range
from netreview.reviewer import review
from netreview.watch import watch

__all__ = [
    "Finding",
    "Findings",
    "affine_equivalent",
    "learning_rate_range",
    "receptive_field",
    "review",
    "review_history",
    "watch",
]
