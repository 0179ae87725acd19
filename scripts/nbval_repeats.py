"""Executes the notebook under nbval again and again, in the smoke profile, while something else loads all cores.

`python -m scripts.nbval_repeats [TIMES]` does so in a clone whose path has spaces and other letters, without any data,
and writes assets/nbval.json.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time

from s9.results import ROOT

COMMAND = [sys.executable, "-m", "pytest", "-q", "-x", "--nbval-lax", "--nbval-current-env", "S9.ipynb"]


def load_a_core() -> None:
    """Compute for ever."""
    while True:
        sum(range(10_000))


def attempts(times: int, loaded: bool) -> dict:
    """Execute the notebook `times` times, and count how often it passed."""
    cores = os.cpu_count() or 1
    loads = [multiprocessing.Process(target=load_a_core, daemon=True) for _ in range(cores if loaded else 0)]
    for load in loads:
        load.start()
    passed, seconds = 0, []
    with tempfile.TemporaryDirectory(prefix="S9 für Ærø ") as folder:
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        environment = {name: value for name, value in os.environ.items() if name != "S9_DATA_DIR"}
        for attempt in range(times):
            started = time.perf_counter()
            result = subprocess.run(
                COMMAND, cwd=folder, env=environment | {"S9_PROFILE": "smoke"}, capture_output=True, text=True
            )
            seconds.append(round(time.perf_counter() - started))
            passed += result.returncode == 0
            print(
                f"{attempt + 1}: {'passed' if result.returncode == 0 else result.stdout}", seconds[-1], "s", flush=True
            )
    for load in loads:
        load.terminate()
    where = f"with {cores} other processes on {cores} cores" if loaded else "alone on the machine"
    return {
        "tried": f"notebook executed by nbval, without data, in a path with spaces and other letters, {where}",
        "times": times,
        "lost": times - passed,
        "seconds": seconds,
    }


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    rows = [attempts(count, loaded) for loaded in (False, True)]
    report = {"command": "python -m scripts.nbval_repeats", "rows": rows}
    (ROOT / "assets" / "nbval.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
