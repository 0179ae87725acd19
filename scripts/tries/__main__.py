"""Runs the tries and records them: `python -m scripts.tries [AREA...]`; all areas together write assets/tries.json."""

import argparse
import json
import sys

import torch

from s9.files import write_whole
from s9.results import ASSETS
from scripts.endings import exit_code
from scripts.tries import damages, exercises, networks, programs  # noqa: F401  (each registers its areas)
from scripts.tries.trying import AREAS, SENTENCE, WELL, run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tries", description=__doc__)
    parser.add_argument("areas", nargs="*", metavar="AREA", help=f"of {', '.join(AREAS)}")
    names = parser.parse_args(arguments).areas
    if unknown := [name for name in names if name not in AREAS]:
        parser.error(f"no such area: {', '.join(unknown)}; there are {', '.join(AREAS)}")
    return exit_code(_try, names)


def _try(names: list[str]) -> None:
    rows = []
    for row in run(names or list(AREAS)):
        print(f"{row['area']}: {row['tries']} tries, {row[WELL]} {WELL}, {row[SENTENCE]} {SENTENCE}", flush=True)
        for line in row["others"]:
            print(f"  OTHERWISE: {line}", flush=True)
        rows.append(row)
    if not names:
        report = {"torch": torch.__version__, "command": "python -m scripts.tries", "rows": rows}
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        write_whole(ASSETS / "tries.json", lambda path: path.write_text(text, encoding="utf-8"))
    if others := sum(len(row["others"]) for row in rows):
        raise ValueError(f"{others} tries ended otherwise than they should.")


if __name__ == "__main__":
    sys.exit(main())
