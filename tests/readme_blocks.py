"""The parts of the README that are made from files in assets/ and from the code; `python tests/readme_blocks.py` puts
them in again, between the comments that name them, after a run was recorded.
"""

import json
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402
from models import S9Net, SeedNet  # noqa: E402
from review import check_brief, layer_summary, receptive_field  # noqa: E402
from search import read_trials  # noqa: E402
from train import LADDER, LAST_RUNGS  # noqa: E402

RESULTS = json.loads((ROOT / "assets" / "results.json").read_text())
SEEDS = [row for row in RESULTS if row["run"].startswith("s9net")]


def table(titles: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def results_table() -> str:
    titles = ["run", "network", "parameters", "epochs", "seed", "test accuracy", "test loss", "minutes", "device"]
    rows = [
        [
            row["run"],
            f"`{row['network']}`",
            f"{row['parameters']:,}",
            row["epochs"],
            row["seed"],
            f"{row['test_accuracy']:.2f} %",
            f"{row['test_loss']:.4f}",
            f"{row['seconds'] / 60:.0f}",
            f"{row['device']}, {row['precision']}",
            row["torch"],
            f"`{row['command']}`",
        ]
        for row in RESULTS
    ]
    return table([*titles, "torch", "command"], rows)


def ladder_table() -> str:
    accuracy = {row["run"]: row["test_accuracy"] for row in RESULTS}
    rungs = LADDER | LAST_RUNGS | LADDER  # the rung that is in both keeps what the ladder says of it
    rows, before = [], None
    for rung, (run, change) in enumerate(rungs.items()):
        gain = "" if before is None else f"{accuracy[run] - before:+.2f}"
        rows.append([rung, change, f"`{run}`", f"{accuracy[run]:.2f} %", gain])
        before = accuracy[run]
    return table(["rung", "change", "run", "test accuracy", "gain"], rows)


def fields_table() -> str:
    rows = [row for row in receptive_field(SeedNet(apply_relu=False), (3, 32, 32)) if row.kernel > 1]
    cells = [[row.layer, row.kernel, row.stride, row.dilation, row.receptive_field] for row in rows]
    return table(["layer", "kernel", "stride", "dilation", "pixels seen"], cells)


def reviewers_table() -> str:
    found = _asset("reviewers")
    rows = [
        [row["fault"], *(", ".join(row[name]) or "nothing" for name in ("review.py", "torchtest2"))]
        for row in found["faults"]
    ]
    return table(["fault", "review.py", f"torchtest2 {found['torchtest2']}"], rows)


def survival_table() -> str:
    rows = [row for name in ("survival", "nbval") for row in _asset(name)["rows"]]
    return table(
        ["what was tried", "times", "lost"], [[row["tried"], row["times"], row["lost"] or "nothing"] for row in rows]
    )


def brief_table() -> str:
    accuracy = {row["run"]: row["test_accuracy"] for row in RESULTS}
    seednet = check_brief(SeedNet(apply_relu=False), accuracy["seednet"])
    s9net = check_brief(S9Net(), accuracy["s9net"])

    def cell(rule) -> str:
        return rule.found if rule.passed else f"**{rule.found}: fails**"

    rows = [[ours.rule, ours.bound, cell(theirs), cell(ours)] for theirs, ours in zip(seednet, s9net, strict=True)]
    return table(["rule", "bound", "SeedNet", "S9Net"], rows)


def search_table() -> str:
    trials = read_trials(ROOT / "assets" / "search.csv")
    accuracy = {row["candidate"]: float(row["held_out_accuracy"]) for row in trials}
    rows = [
        [
            row["candidate"],
            row["base"],
            row["change"],
            f"{float(row['held_out_accuracy']):.2f}",
            f"{accuracy[row['candidate']] - accuracy[row['base']]:+.2f}" if row["base"] else "",
            f"{int(row['parameters']):,}",
            f"{int(row['multiply_adds']) / 1e6:.1f}",
            row["seconds_an_epoch"],
        ]
        for row in sorted(trials, key=lambda row: -float(row["held_out_accuracy"]))
    ]
    titles = ["candidate", "base", "what it changes", "percent right", "gain", "parameters", "million multiply-adds"]
    return table([*titles, "seconds an epoch"], rows)


def seeds_table() -> str:
    keys = ("test_accuracy", "flip_averaged_accuracy")
    minutes = {
        row["run"]: row["epochs"] * statistics.median(record["seconds"] for record in history(row["run"])) / 60
        for row in SEEDS
    }
    rows = [
        [row["seed"], *(f"{row[key]:.2f} %" for key in keys), f"{minutes[row['run']]:.0f}", f"`{row['run']}`"]
        for row in SEEDS
    ]
    columns = [[row[key] for row in SEEDS] for key in keys]
    means = [f"**{statistics.mean(column):.2f} %** ± {statistics.stdev(column):.2f}" for column in columns]
    rows += [[f"mean, n = {len(SEEDS)}", *means, f"{statistics.mean(minutes.values()):.0f}", ""]]
    titles = ["seed", "one pass", "mean of image and mirror image", "minutes (25 of the median epoch)", "run"]
    return table(titles, rows)


def public_table() -> str:
    mean = statistics.mean(row["test_accuracy"] for row in SEEDS)
    ours = {
        "solution": f"**S9Net**, mean of {len(SEEDS)} seeds",
        "parameters": SEEDS[0]["parameters"],
        "epochs": SEEDS[0]["epochs"],
    }
    ours |= {"test_accuracy": mean, "data": "shared copy", "source": "this kit"}
    rows = sorted([*_asset("public"), ours], key=lambda row: -row["test_accuracy"])
    cells = [
        [
            row["solution"],
            f"{row['parameters']:,}",
            row["epochs"],
            f"{row['test_accuracy']:.2f} %",
            row["data"],
            row["source"],
        ]
        for row in rows
    ]
    return table(["solution", "parameters", "epochs", "test accuracy", "copy of the data", "source"], cells)


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
    "brief": brief_table,
    "search": search_table,
    "S9Net's summary": lambda: fenced(layer_summary(S9Net(), (3, 32, 32))),
    "S9Net's log": lambda: fenced(utils.history_log(history("s9net"), 10_000)),
    "seeds": seeds_table,
    "public": public_table,
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
