"""The parts of the README that are made from files in assets/ and from the code; `python tests/readme_blocks.py` puts
them in again, between the comments that name them, after a run was recorded.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402
from models import SeedNet  # noqa: E402
from review import layer_summary, receptive_field  # noqa: E402
from train import LADDER  # noqa: E402

RESULTS = json.loads((ROOT / "assets" / "results.json").read_text())


def results_table() -> str:
    lines = ["| run | network | parameters | epochs | test accuracy | test loss | minutes | device | torch | command |"]
    lines += ["| --- " * 10 + "|"]
    for row in RESULTS:
        cells = [
            row["run"],
            f"`{row['network']}`",
            f"{row['parameters']:,}",
            row["epochs"],
            f"{row['test_accuracy']:.2f} %",
            f"{row['test_loss']:.4f}",
            f"{row['seconds'] / 60:.0f}",
            f"{row['device']}, {row['precision']}",
            row["torch"],
            f"`{row['command']}`",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def ladder_table() -> str:
    accuracy = {row["run"]: row["test_accuracy"] for row in RESULTS}
    lines = ["| rung | change | test accuracy | gain |", "| --- | --- | --- | --- |"]
    before = None
    for rung, (run, change) in enumerate(LADDER.items()):
        gain = "" if before is None else f"{accuracy[run] - before:+.2f}"
        lines.append(f"| {rung} | {change} | {accuracy[run]:.2f} % | {gain} |")
        before = accuracy[run]
    return "\n".join(lines)


def fields_table() -> str:
    rows = [row for row in receptive_field(SeedNet(apply_relu=False), (3, 32, 32)) if row.kernel > 1]
    lines = ["| layer | kernel | stride | dilation | pixels seen |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {row.layer} | {row.kernel} | {row.stride} | {row.dilation} | {row.receptive_field} |" for row in rows]
    return "\n".join(lines)


def reviewers_table() -> str:
    found = _asset("reviewers")
    lines = [f"| fault | review.py | torchtest2 {found['torchtest2']} |", "| --- | --- | --- |"]
    for row in found["faults"]:
        names = [", ".join(row[reviewer]) or "nothing" for reviewer in ("review.py", "torchtest2")]
        lines.append(f"| {row['fault']} | {names[0]} | {names[1]} |")
    return "\n".join(lines)


def survival_table() -> str:
    rows = [row for name in ("survival", "nbval") for row in _asset(name)["rows"]]
    lines = ["| what was tried | times | lost |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {row['tried']} | {row['times']} | {row['lost'] or 'nothing'} |" for row in rows])


def _asset(name: str):
    return json.loads((ROOT / "assets" / f"{name}.json").read_text(encoding="utf-8"))


def history(run: str) -> list[dict]:
    return utils.read_history(ROOT / "assets" / "runs" / f"{run}.jsonl")


def fenced(text: str) -> str:
    return f"```\n{text.strip()}\n```"


BLOCKS = {
    "summary": lambda: fenced(layer_summary(SeedNet(apply_relu=False), (3, 32, 32))),
    "receptive field": fields_table,
    "log": lambda: fenced(utils.history_log(history("seednet"), 10_000)),
    "ladder": ladder_table,
    "reviewers": reviewers_table,
    "results": results_table,
    "survival": survival_table,
}


def with_blocks(readme: str) -> str:
    """The README with each block as it should be."""
    for name, block in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end of {name} -->)", re.DOTALL)
        content = block()
        readme, count = pattern.subn(lambda match, content=content: match[1] + content + match[2], readme)
        if count != 1:
            raise ValueError(f"README.md has {count} blocks named {name!r}, and needs one.")
    return readme


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(with_blocks(path.read_text(encoding="utf-8")), encoding="utf-8")
