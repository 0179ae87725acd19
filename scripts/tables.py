"""The tables of README and docs, in Markdown, from the records in assets/ and from the code."""

import json
import re
import statistics

from models import S9Net, StudentNet
from netreview import receptive_field
from netreview.findings import CHECKS
from netreview.watch_findings import WATCH_CHECKS
from s9.brief import check_brief
from s9.results import LADDER, ROOT, compared, read_history, rounded
from scripts.search import multiply_adds

RESULTS = json.loads((ROOT / "assets" / "results.json").read_text())
SEEDS = [row for row in RESULTS if re.fullmatch(r"s9net(-\d+)?", row["run"])]
LESSON = json.loads((ROOT / "assets" / "lesson.json").read_text())
CONFUSION = json.loads((ROOT / "assets" / "confusion.json").read_text())
NARROW = "\u202f"  # a space at which no line breaks
OLD_STUDENT_STEPS = {"ladder-1", "ladder-2", "ladder-3", "ladder-4"}  # until the steps of one change are recorded
SHORTCUT = json.loads((ROOT / "assets" / "shortcut.json").read_text())


def accuracies() -> dict[str, float]:
    """The test accuracy of each recorded run, in percent."""
    return {row["run"]: row["test_accuracy"] for row in RESULTS}


def table(titles: list[str], rows: list[list]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def results_table() -> str:
    """Every recorded run; what all share stands above it."""
    rows = [
        [
            f"`{row['run']}`",
            f"`{row['network']}`",
            f"{row['parameters']:,}",
            row["seed"],
            f"{row['test_accuracy']:.2f} %",
            f"{row['test_loss']:.3f}",
            f"{row['seconds'] / 60:.0f}",
            "no" if "left out" in row["data"] else "yes",
        ]
        for row in RESULTS
    ]
    shared = {key: sorted({str(row[key]) for row in RESULTS}) for key in ("epochs", "device", "torch", "precision")}
    caption = "; ".join(f"{key}: {', '.join(values)}" for key, values in shared.items())
    titles = ["run", "network", "parameters", "seed", "test accuracy", "test loss", "minutes", "JPEGs in training"]
    return f"{table(titles, rows)}\n\nAll rows: {caption}."


def ladder_table() -> str:
    """The recorded steps from the student's network to S9Net."""
    reached, before, rows = accuracies(), None, []
    for number, (run, change) in enumerate(LADDER.items()):
        gain = "" if before is None else f"{reached[run] - before:+.2f}"
        rows.append([number, change, f"`{run}`", f"{reached[run]:.2f} %", gain])
        before = reached[run]
    return table(["step", "change", "run", "test accuracy", "gain"], rows)


def fields_table() -> str:
    """The table of fields."""
    rows = [row for row in receptive_field(StudentNet(), (3, 32, 32)) if row.kernel > 1]
    cells = [[row.layer, row.kernel, row.stride, row.dilation, row.receptive_field] for row in rows]
    return table(["layer", "kernel", "stride", "dilation", "receptive field"], cells)


def reviewers_table() -> str:
    """The table of reviewers."""
    found = asset("reviewers")
    rows = [
        [row["fault"], *(", ".join(row[name]) or "nothing" for name in ("netreview", "torchtest2"))]
        for row in found["faults"]
    ]
    return table(["fault", "netreview", f"torchtest2 {found['torchtest2']}"], rows)


def survival_table() -> str:
    """The table of survival."""
    rows = [row for name in ("survival", "nbval") for row in asset(name)["rows"]]
    return table(
        ["what was tried", "times", "failures"], [[row["tried"], row["times"], row["lost"] or 0] for row in rows]
    )


def tries_table() -> str:
    """What people do, by area, and how it ended."""
    rows = asset("tries")["rows"]
    ends = ("tries", "well", "in one sentence")
    cells = [[row["area"], *(row[end] for end in ends), len(row["others"])] for row in rows]
    cells.append(["all", *(sum(column) for column in list(zip(*cells, strict=True))[1:])])
    return table(["area", "tries", "ended well", "in one sentence", "otherwise"], cells)


def brief_table() -> str:
    """The assignment's requirements."""
    reached = accuracies()
    student = check_brief(StudentNet(), reached["student"])
    s9net = check_brief(S9Net(), reached["s9net"])

    def cell(rule) -> str:
        return rule.found if rule.passed else f"**{rule.found}: fails**"

    rows = [[ours.rule, ours.bound, cell(theirs), cell(ours)] for theirs, ours in zip(student, s9net, strict=True)]
    return table(["requirement", "limit", "StudentNet", "S9Net"], rows)


def search_table() -> str:
    """The candidates of the search, the best first."""
    rows = [
        [
            row.candidate,
            row.base,
            row.change,
            rounded(row.held_out_accuracy, 2),
            row.seeds,
            f"{row.gain:+.2f}" if row.base else "",
            f"{row.parameters:,}",
            f"{row.multiply_adds / 1e6:.1f}",
            row.seconds_an_epoch,
        ]
        for row in compared(ROOT / "assets" / "search.csv").itertuples()
    ]
    titles = ["candidate", "base", "change", "validation accuracy, %", "seeds", "gain", "parameters", "MACs, M"]
    return table([*titles, "s/epoch"], rows)


def seeds_table() -> str:
    """The seeds of S9Net, with their mean and standard deviation."""
    keys = ("test_accuracy", "flip_averaged_accuracy")
    rows = [[row["seed"], *(f"{row[key]:.2f}" for key in keys), f"`{row['run']}`"] for row in SEEDS]
    rows += [[f"mean ± sd, n = {len(SEEDS)}", *(mean_and_sd(key) for key in keys), ""]]
    return table(["seed", "test accuracy, %", "with flip averaging, %", "run"], rows)


def mean_and_sd(key: str = "test_accuracy") -> str:
    """Mean and standard deviation over the seeds of S9Net."""
    column = [row[key] for row in SEEDS]
    spread = f" ± {rounded(statistics.stdev(column))}" if len(column) > 1 else ""
    return f"{rounded(statistics.mean(column))}{spread}"


def networks_table() -> str:
    """What the student's network, the same with all fixes, and S9Net cost and reach."""
    reached = accuracies()
    fixed = [run for run in LADDER if run.startswith("student-") or run in OLD_STUDENT_STEPS][-1]
    networks = (StudentNet(), StudentNet(use_relu=True, norm_strided=True, pad_strided=True, dropout=0.0), S9Net())
    seconds = value_of("train-student", "ours", unit="s/epoch"), value_of("train-s9net", "ours", unit="s/epoch")
    rows = [
        ["parameters", *(f"{sum(p.numel() for p in network.parameters()) / 1e3:.0f}{NARROW}k" for network in networks)],
        ["MACs", *(f"{multiply_adds(network) / 1e6:.1f}{NARROW}M" for network in networks)],
        ["s/epoch", f"{seconds[0]:.0f}", "–", f"{seconds[1]:.0f}"],
        ["accuracy", rounded(reached["student"]), rounded(reached[fixed]), mean_and_sd()],
        ["seeds", 1, 1, len(SEEDS)],
    ]
    return table(["", "student", "fixed", "S9Net"], rows)


def classes_table() -> str:
    """Precision and recall of each class, from the recorded confusion matrices."""
    classes, rows = CONFUSION["classes"], []
    for label, name in enumerate(classes):
        cells = []
        for matrix in (CONFUSION["student"], CONFUSION["s9net"]):
            right, called, there = matrix[label][label], sum(row[label] for row in matrix), sum(matrix[label])
            cells += [rounded(100 * right / max(called, 1), 0), rounded(100 * right / there, 0)]
        rows.append([name, *cells])
    return table(["class", "StudentNet, precision, %", "recall, %", "S9Net, precision, %", "recall, %"], rows)


def public_rows() -> list[dict]:
    """The published results and S9Net's, the best first."""
    ours = {
        "solution": f"**S9Net**, mean of {len(SEEDS)}",
        "parameters": SEEDS[0]["parameters"],
        "epochs": SEEDS[0]["epochs"],
        "test_accuracy": statistics.mean(row["test_accuracy"] for row in SEEDS),
        "note": "this kit",
        "short": "**S9Net**",
    }
    return sorted([*asset("public"), ours], key=lambda row: -row["test_accuracy"])


def public_table() -> str:
    """The wide table of comparison."""
    cells = [
        [linked(row), f"{row['parameters']:,}", row["epochs"], f"{rounded(row['test_accuracy'], 2)} %", row["note"]]
        for row in public_rows()
    ]
    return table(["solution", "parameters", "epochs", "test accuracy", "note"], cells)


def comparison_table() -> str:
    """The narrow one: four rows."""
    cells = [
        [
            linked(row, row["short"]),
            f"{row['parameters'] / 1e3:.0f}{NARROW}k",
            row["epochs"],
            rounded(row["test_accuracy"]),
        ]
        for row in public_rows()
        if "short" in row
    ]
    return table(["network", "size", "epochs", "accuracy"], cells)


def linked(row: dict, text: str | None = None) -> str:
    """A solution's name, as a link where it has an address."""
    name = text or row["solution"]
    return f"[{name}]({row['source']})" if "source" in row else name


def benchmarks(*names: str) -> list[dict]:
    """The records of the benchmarks of these names."""
    return [row for row in asset("benchmarks") if row["bench"] in names]


def value_of(bench: str, side: str, case: str = "", unit: str | None = None) -> float:
    """The one record of that bench, side, case and, where there are several, unit."""
    (row,) = [
        row for row in benchmarks(bench) if (row["side"], row["case"]) == (side, case) and unit in (None, row["unit"])
    ]
    return row["value"]


def benchmark_row(row: dict, *cells) -> list:
    """The cells that all tables of benchmarks share."""
    what = row["side"].replace("floor", "lower bound") + (f", {row['case']}" if row["case"] else "")
    return [
        row["bench"].replace("feed", "data loading"),
        what,
        *cells,
        f"{row['value']:,g} {row['unit']}",
        f"{row['spread']:,g}",
        row["n"],
    ]


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
            f"An epoch of {network} takes {seconds:.0f} s, {seconds / least:.1f} times its higher lower bound; data "
            f"loading takes {100 * feeding / seconds:.1f} % of it."
        )
    titles = ["benchmark", "implementation", "median", "range", "n", "relative time", "command"]
    return f"{table(titles, rows)}\n\n{' '.join(said)}"


def same_accuracy_table() -> str:
    """The table of same accuracy."""
    rows = [
        [row["bench"].removeprefix("train-"), row["side"], row["case"], f"{row['value']:.2f} %", f"`{row['command']}`"]
        for row in benchmarks("train-student", "train-s9net")
        if row["unit"] == "percent"
    ]
    return table(["network", "implementation", "what", "value", "command"], rows)


def time_to_accuracy_table() -> str:
    """The table of time to accuracy."""
    reached: dict[str, dict[str, str]] = {}
    for row in benchmarks("time-to-accuracy"):
        run, goal, epochs = re.fullmatch(r"(.+), to (.+ %) in (\d+) epochs", row["case"]).groups()
        reached.setdefault(run, {})[goal] = f"{row['value']:,.0f} s (epoch {epochs})"
    goals = list(dict.fromkeys(goal for goals in reached.values() for goal in goals))
    rows = [[f"`{run}`", *(times.get(goal, "not reached") for goal in goals)] for run, times in reached.items()]
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
    return table(["benchmark", "case", "s/epoch", "peak memory of training, MB"], rows)


def processes_table() -> str:
    """The table of processes."""
    rows = [[row["case"], f"{row['value']:g}", f"{row['spread']:g}", row["n"]] for row in benchmarks("ddp")]
    return table(["processes", "s/epoch", "range", "n"], rows)


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
        f"ring of eight adds it up in about {1e6 * reduced:.0f} µs, nearly all of it for its fourteen messages. So an "
        "epoch is launch-bound, and eight GPUs have as many launches as one: with 256 images per step they gain "
        "nothing. With CUDA graphs (`--compile reduce-overhead`), which launch all at once, they would be up to "
        f"{shared:.1f} times as fast as one, and with eight times the batch up to {full:.1f} times. Eight runs at once "
        "(`--sweep`) are eight times as fast in any case."
    )


def checks_table() -> str:
    """The checks of the review, from their registry."""
    rows = [[f"`{check.id}`", check.severity, check.doc.rstrip("."), check.advice] for check in CHECKS.values()]
    return table(["check", "severity", "looks for", "advice"], rows)


def watch_checks_table() -> str:
    """The checks of `watch`, from their registry."""
    rows = [[f"`{one.id}`", one.severity, one.doc.rstrip("."), one.advice] for one in WATCH_CHECKS.values()]
    return table(["check", "severity", "looks for", "advice"], rows)


def asset(name: str):
    """A record in assets/."""
    return json.loads((ROOT / "assets" / f"{name}.json").read_text(encoding="utf-8"))


def history(run: str) -> list[dict]:
    """The history of a recorded run."""
    return read_history(ROOT / "assets" / "runs" / f"{run}.jsonl")


def fenced(text: str) -> str:
    """A block of code in Markdown."""
    return f"```\n{text.strip()}\n```"
