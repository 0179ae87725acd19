"""Runs netreview and torchtest2 over the zoo, side by side, and writes assets/reviewers.json: what each one finds.

python -m scripts.compare_reviewers
"""

import importlib.metadata
import json
import warnings

import torch
import torchtest2

from models import StudentNet
from netreview import review
from s9.results import ROOT
from tests.zoo import ZOO, Setup


def ours(setup: Setup) -> list[str]:
    """The checks of netreview that found something, most severe first, each once."""
    return list(dict.fromkeys(finding.check for finding in review(*setup)))


def theirs(setup: Setup) -> list[str]:
    """The checks of torchtest2 that failed or warned; where it cannot continue, the error it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            report = torchtest2.check_model(
                setup.model, setup.images, setup.labels, loss_fn=setup.loss_fn, optimizer=setup.optimizer
            )
        except Exception as error:
            return [f"raises {type(error).__name__}"]
    return [result.name for result in report.results if result.status.name in ("FAIL", "FAILED", "WARN", "WARNING")]


def student() -> Setup:
    """The student's network as published, on noise."""
    torch.manual_seed(0)
    return Setup(StudentNet(), torch.randn(64, 3, 32, 32), torch.arange(64) % 10)


def main() -> None:
    rows = [("the student's network", "discarded-output", student, None)]
    rows += [(fault.name, fault.check, fault.faulty, fault.healthy) for fault in ZOO]
    records = []
    for name, check, faulty, healthy in rows:
        record = {"fault": name, "check": check}
        for reviewer, find in (("netreview", ours), ("torchtest2", theirs)):
            found = find(faulty())
            # Findings that also appear on the fault-free twin are not about the fault.
            usual = find(healthy()) if healthy else []
            record[reviewer] = [check for check in found if check not in usual]
        records.append(record)
        print(record, flush=True)
    versions = {"torch": torch.__version__, "torchtest2": importlib.metadata.version("torchtest2")}
    result = {"command": "python -m scripts.compare_reviewers", **versions, "faults": records}
    (ROOT / "assets" / "reviewers.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
