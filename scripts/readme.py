"""The parts of the README that are made from files in assets/ and from the code; `python -m scripts.readme` puts
them in again, between the comments that name them, after a run was recorded.
"""

import json
import re
import statistics

import nbformat

from models import S9Net, StudentNet
from netreview import receptive_field
from netreview.findings import CHECKS
from s9.architecture import layer_summary
from s9.brief import check_brief
from s9.results import (
    LADDER,
    LAST_RUNGS,
    ROOT,
    compared,
    history_log,
    read_history,
)

RESULTS = json.loads((ROOT / "assets" / "results.json").read_text())
SEEDS = [row for row in RESULTS if row["run"].startswith("s9net")]


def table(titles: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def results_table() -> str:
    """The table of results."""
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
    """The table of ladder."""
    accuracy = {row["run"]: row["test_accuracy"] for row in RESULTS}
    rungs = LADDER | LAST_RUNGS | LADDER  # the rung that is in both keeps what the ladder says of it
    rows, before = [], None
    for rung, (run, change) in enumerate(rungs.items()):
        gain = "" if before is None else f"{accuracy[run] - before:+.2f}"
        rows.append([rung, change, f"`{run}`", f"{accuracy[run]:.2f} %", gain])
        before = accuracy[run]
    return table(["rung", "change", "run", "test accuracy", "gain"], rows)


def fields_table() -> str:
    """The table of fields."""
    rows = [row for row in receptive_field(StudentNet(), (3, 32, 32)) if row.kernel > 1]
    cells = [[row.layer, row.kernel, row.stride, row.dilation, row.receptive_field] for row in rows]
    return table(["layer", "kernel", "stride", "dilation", "pixels seen"], cells)


def reviewers_table() -> str:
    """The table of reviewers."""
    found = _asset("reviewers")
    rows = [
        [row["fault"], *(", ".join(row[name]) or "nothing" for name in ("netreview", "torchtest2"))]
        for row in found["faults"]
    ]
    return table(["fault", "netreview", f"torchtest2 {found['torchtest2']}"], rows)


def survival_table() -> str:
    """The table of survival."""
    rows = [row for name in ("survival", "nbval") for row in _asset(name)["rows"]]
    return table(
        ["what was tried", "times", "lost"], [[row["tried"], row["times"], row["lost"] or "nothing"] for row in rows]
    )


def brief_table() -> str:
    """The table of brief."""
    accuracy = {row["run"]: row["test_accuracy"] for row in RESULTS}
    student = check_brief(StudentNet(), accuracy["student"])
    s9net = check_brief(S9Net(), accuracy["s9net"])

    def cell(rule) -> str:
        return rule.found if rule.passed else f"**{rule.found}: fails**"

    rows = [[ours.rule, ours.bound, cell(theirs), cell(ours)] for theirs, ours in zip(student, s9net, strict=True)]
    return table(["rule", "bound", "StudentNet", "S9Net"], rows)


def search_table() -> str:
    """The table of search."""
    rows = [
        [
            row.candidate,
            row.base,
            row.change,
            f"{row.held_out_accuracy:.2f}",
            row.seeds,
            f"{row.gain:+.2f}" if row.base else "",
            f"{row.parameters:,}",
            f"{row.multiply_adds / 1e6:.1f}",
            row.seconds_an_epoch,
        ]
        for row in compared(ROOT / "assets" / "search.csv").itertuples()
    ]
    titles = ["candidate", "base", "what it changes", "percent right", "seeds", "gain", "parameters"]
    return table([*titles, "million multiply-adds", "seconds an epoch"], rows)


def seeds_table() -> str:
    """The table of seeds."""
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
    rows += [[f"mean, n = {len(SEEDS)}", *means, "", ""]]
    titles = ["seed", "one pass", "mean of image and mirror image", "minutes (25 of the median epoch)", "run"]
    return table(titles, rows)


def classes_table() -> str:
    """From the reports of scikit-learn in the executed notebook, StudentNet's and then S9Net's."""
    notebook = nbformat.read(ROOT / "S9.ipynb", as_version=4)
    reports = ["".join(output.text for output in cell.outputs) for cell in notebook.cells if "_report(" in cell.source]
    found = [re.findall(r"^ *(\w+) +(\d\.\d+) +(\d\.\d+) +\d\.\d+ +1000$", report, re.MULTILINE) for report in reports]
    rows = [[name, *theirs, *ours] for (name, *theirs), (_, *ours) in zip(*found, strict=True)]
    titles = ["class", "StudentNet, precision", "recall", "S9Net, precision", "recall"]
    return table(titles, rows)


def public_table() -> str:
    """The table of public."""
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


def benchmarks(*names: str) -> list[dict]:
    """The records of the benchmarks of these names."""
    return [row for row in _asset("benchmarks") if row["bench"] in names]


def value_of(bench: str, side: str, case: str = "", unit: str | None = None) -> float:
    """The one record of that bench, side, case and, where there are several, unit."""
    (row,) = [
        row for row in benchmarks(bench) if (row["side"], row["case"]) == (side, case) and unit in (None, row["unit"])
    ]
    return row["value"]


def benchmark_row(row: dict, *cells) -> list:
    """The cells that all tables of benchmarks share."""
    what = row["side"] + (f", {row['case']}" if row["case"] else "")
    return [row["bench"], what, *cells, f"{row['value']:,g} {row['unit']}", f"{row['spread']:,g}", row["n"]]


def speed_table() -> str:
    """The table of speed."""
    rows = []
    for row in benchmarks("feed", "train-student", "train-s9net"):
        if row["unit"] not in ("images/s", "s/epoch"):
            continue
        ours = value_of(row["bench"], "ours", unit=row["unit"])
        times = ours / row["value"] if row["unit"] == "images/s" else row["value"] / ours
        rows.append([*benchmark_row(row), f"{times:.2g}", f"`{row['command']}`"])
    feeding, said = 50_000 / value_of("feed", "ours"), []
    for bench, network in (("train-student", "StudentNet"), ("train-s9net", "S9Net")):
        seconds = value_of(bench, "ours", unit="s/epoch")
        least = max(row["value"] for row in benchmarks(bench) if row["side"] == "floor")
        said.append(
            f"An epoch of {network} takes {seconds:.0f} s, {seconds / least:.1f} times its higher floor; one part in "
            f"{seconds / feeding:.0f} of that is feeding."
        )
    titles = ["bench", "side", "median", "spread", "n", "times as long as ours", "command"]
    return f"{table(titles, rows)}\n\n{' '.join(said)}"


def same_accuracy_table() -> str:
    """The table of same accuracy."""
    rows = [
        [row["bench"].removeprefix("train-"), row["side"], row["case"], f"{row['value']:.2f} %", f"`{row['command']}`"]
        for row in benchmarks("train-student", "train-s9net")
        if row["unit"] == "percent"
    ]
    return table(["network", "side", "what", "value", "command"], rows)


def time_to_accuracy_table() -> str:
    """The table of time to accuracy."""
    reached: dict[str, dict[str, str]] = {}
    for row in benchmarks("time-to-accuracy"):
        run, goal, epochs = re.fullmatch(r"(.+), to (.+ %) in (\d+) epochs", row["case"]).groups()
        reached.setdefault(run, {})[goal] = f"{row['value']:,.0f} s (epoch {epochs})"
    goals = list(dict.fromkeys(goal for goals in reached.values() for goal in goals))
    rows = [[f"`{run}`", *(times.get(goal, "never") for goal in goals)] for run, times in reached.items()]
    return table(["run", *(f"until {goal}" for goal in goals)], rows)


def cost_table() -> str:
    """The table of cost."""
    names = ("cost-images", "cost-batch", "cost-size")
    memory = {(row["bench"], row["case"]): row for row in benchmarks(*names) if row["unit"] == "MB"}
    rows = []
    for row in benchmarks(*names):
        if row["unit"] == "s/epoch":
            grown = memory[row["bench"], "memory, " + row["case"]]
            rows.append([row["bench"], row["case"], f"{row['value']:g}", f"{grown['value']:,g}"])
    return table(["bench", "case", "seconds an epoch", "peak memory of training, MB"], rows)


def processes_table() -> str:
    """The table of processes."""
    rows = [[row["case"], f"{row['value']:g}", f"{row['spread']:g}", row["n"]] for row in benchmarks("ddp")]
    return table(["processes", "seconds an epoch", "spread", "n"], rows)


GPU_MEMORY, LAUNCH, MESSAGE, LINK = 3.35e12, 5e-6, 5e-6, 450e9  # bytes/s, s, s, bytes/s: H100 SXM; see eight_gpus


def eight_gpus() -> str:
    """What to expect of eight H100, on paper, from a step of S9Net as it was measured.

    3.35 TB/s of memory and 450 GB/s to each side of NVLink are the vendor's; 5 microseconds for a kernel's start, and
    for a message, are rules of thumb.
    """
    traffic = 1e9 * value_of("train-s9net", "a step", "traffic")
    operations = value_of("train-s9net", "a step", "operations")
    gradient = 4 * SEEDS[0]["parameters"]
    reduced = 2 * 7 * MESSAGE + 2 * 7 / 8 * gradient / LINK  # a ring of eight: fourteen messages
    moved, started = traffic / GPU_MEMORY, operations * LAUNCH
    shared, full = moved / (moved / 8 + reduced), 8 * moved / (moved + reduced)
    return (
        f"A step of 256 images moves {traffic / 1e9:.1f} GB, for which the memory of an H100 (3.35 TB/s) needs "
        f"{1e3 * moved:.1f} ms, and consists of about {round(operations, -2):.0f} operations (and the optimiser's), "
        f"which take {1e3 * started:.0f} ms and more to start at 5 µs each. The gradient is {gradient / 1e6:.2f} MB; a "
        f"ring of eight adds it up in about {1e6 * reduced:.0f} µs, nearly all of it for its fourteen messages. So as "
        "it is, an epoch is bound by the starting of operations, which eight GPUs have to do as often as one: with the "
        "recipe's 256 images a step they gain nothing. With CUDA graphs (`--compile reduce-overhead`), which start "
        "all at once, they would be up to "
        f"{shared:.1f} times as fast as one, and with eight times the batch, which is another recipe, up to "
        f"{full:.1f} times. Eight runs at once (`--sweep`) are eight times as fast in any case, and that is what eight "
        "GPUs are good for here."
    )


def checks_table() -> str:
    """The checks of the review, from their registry."""
    rows = [[f"`{check.id}`", check.severity, check.doc.rstrip("."), check.advice] for check in CHECKS.values()]
    return table(["check", "severity", "looks for", "advice"], rows)


def _asset(name: str):
    return json.loads((ROOT / "assets" / f"{name}.json").read_text(encoding="utf-8"))


def history(run: str) -> list[dict]:
    """The history of a recorded run."""
    return read_history(ROOT / "assets" / "runs" / f"{run}.jsonl")


def fenced(text: str) -> str:
    """A block of code in Markdown."""
    return f"```\n{text.strip()}\n```"


BLOCKS = {
    "summary": lambda: fenced(layer_summary(StudentNet(), (3, 32, 32))),
    "receptive field": fields_table,
    "log": lambda: fenced(history_log(history("student"), 10_000)),
    "ladder": ladder_table,
    "brief": brief_table,
    "search": search_table,
    "S9Net's summary": lambda: fenced(layer_summary(S9Net(), (3, 32, 32))),
    "S9Net's log": lambda: fenced(history_log(history("s9net"), 10_000)),
    "seeds": seeds_table,
    "classes": classes_table,
    "public": public_table,
    "reviewers": reviewers_table,
    "results": results_table,
    "survival": survival_table,
    "speed": speed_table,
    "same accuracy": same_accuracy_table,
    "time to accuracy": time_to_accuracy_table,
    "cost": cost_table,
    "processes": processes_table,
    "eight GPUs": eight_gpus,
}


PAGES = {"README.md": BLOCKS, "docs/review.md": {"checks": checks_table}}


def with_blocks(page: str, blocks: dict) -> str:
    """The text of a page with each of its blocks as it should be.

    Raises:
        ValueError: a block is not there, or there twice.
    """
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n\n).*?(\n\n<!-- end of {name} -->)", re.DOTALL)
        content = block()
        page, count = pattern.subn(lambda match, content=content: match[1] + content + match[2], page)
        if count != 1:
            raise ValueError(f"There are {count} blocks named {name!r}, and there should be one.")
    return page


if __name__ == "__main__":
    for name, blocks in PAGES.items():
        path = ROOT / name
        path.write_text(with_blocks(path.read_text(encoding="utf-8"), blocks), encoding="utf-8")
