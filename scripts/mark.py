"""Reviews a folder of submissions: `python -m scripts.mark FOLDER` writes a table of all as HTML and as CSV.

Each file of Python, notebook or folder in FOLDER is one student's. What a student's code does stays in a process of its
own, with a time limit and a memory limit.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from netreview.__main__ import page
from netreview.findings import SEVERITIES, Finding, Findings
from s9.brief import Brief, Rule
from s9.results import ROOT


def submissions_in(folder: Path) -> list[Path]:
    """The files of Python, notebooks and folders of a folder.

    Raises:
        ValueError: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: name the one that holds the submissions.")
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() or path.suffix in (".py", ".ipynb")]
    found = [path for path in found if not path.name.startswith((".", "__"))]
    if not found:
        raise ValueError(f"{folder} holds no submission: neither a folder, nor a .py or .ipynb file.")
    return found


def marked(submission: Path, given: argparse.Namespace) -> dict:
    """The row of one submission, made in a process of its own."""
    command = [sys.executable, "-m", "scripts.submissions", str(submission.resolve()), "--args", given.args]
    try:
        done = subprocess.run(
            [*command, "--memory", str(given.memory)], cwd=ROOT, capture_output=True, text=True,
            timeout=given.seconds, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        problem = f"It was not done after {given.seconds} seconds."
    except (json.JSONDecodeError, IndexError):
        problem = f"It ended its process (exit code {done.returncode}): {(done.stderr.splitlines() or [''])[-1][:200]}"
    return {"submission": submission.name, "network": "", "parameters": "", "problem": problem}


def columns(row: dict) -> dict[str, str]:
    """A row as the cells of a table."""
    severities = [finding["severity"] for finding in row.get("findings", ())]
    rules = {rule["rule"]: f"{'pass' if rule['passed'] else 'FAIL'}: {rule['found']}" for rule in row.get("rules", ())}
    return {
        "submission": row["submission"],
        "network": row["network"],
        "parameters": str(row["parameters"]),
        "rules broken": "; ".join(f"{rule} ({cell[6:]})" for rule, cell in rules.items() if cell.startswith("FAIL")),
        **{f"{severity}s": str(severities.count(severity)) for severity in SEVERITIES},
        "findings": "; ".join(dict.fromkeys(finding["check"] for finding in row.get("findings", ()))),
        "problem": row["problem"],
    }


def html_of(rows: list[dict]) -> str:
    """A table of all submissions, and behind it each one's rules and findings."""
    titles = list(columns(rows[0]))
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    lines = []
    for number, row in enumerate(rows):
        cells = [html.escape(cell) for cell in columns(row).values()]
        cells[0] = f'<a href="#s{number}">{cells[0]}</a>'
        lines.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    parts = [f"<table><tr>{head}</tr>{''.join(lines)}</table>"]
    for number, row in enumerate(rows):
        parts.append(f'<h2 id="s{number}">{html.escape(row["submission"])}</h2><p>{html.escape(row["network"])}</p>')
        if row["problem"]:
            parts.append(f"<p>{html.escape(row['problem'])}</p>")
        if row.get("rules"):
            parts.append(Brief(Rule(**rule) for rule in row["rules"])._repr_html_())
            parts.append(Findings(Finding(**finding) for finding in row["findings"])._repr_html_())
    return page(f"{len(rows)} submissions", "".join(parts))


def mark_all(given: argparse.Namespace) -> list[dict]:
    """Mark all submissions of a folder, some at a time, and write the tables."""
    submissions = submissions_in(given.folder)
    with ThreadPoolExecutor(given.jobs) as pool:
        each = pool.map(lambda submission: marked(submission, given), submissions)
        rows = list(tqdm(each, total=len(submissions), desc="Submissions", unit="submission"))
    given.to.with_suffix(".html").write_text(html_of(rows), encoding="utf-8")
    with given.to.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(columns(rows[0])))
        writer.writeheader()
        writer.writerows(map(columns, rows))
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 2 where there is no submission that could be marked."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.mark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of submissions")
    parser.add_argument("--to", type=Path, default=Path("marks"), help="name of the tables (default: marks)")
    parser.add_argument("--args", default="", help="arguments for networks that cannot be made without")
    parser.add_argument("--seconds", type=float, default=300, help="for one submission (default: 300)")
    parser.add_argument("--memory", type=float, default=8, help="gigabytes for one submission (default: 8)")
    parser.add_argument("--jobs", type=int, default=1, help="submissions at a time (default: 1)")
    given = parser.parse_args(arguments)
    try:
        rows = mark_all(given)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    marked_ones = sum(not row["problem"] for row in rows)
    print(f"{marked_ones} of {len(rows)} marked: {given.to.with_suffix('.html')} and {given.to.with_suffix('.csv')}")
    for row in rows:
        if row["problem"]:
            print(f"{row['submission']}: {row['problem']}")
    return 0 if marked_ones else 2


if __name__ == "__main__":
    sys.exit(main())
