"""How the programs end: one sentence and an exit code, never a traceback where a sentence is due."""

import sys
from collections.abc import Callable

from s9.data import DataError


def exit_code(work: Callable, *arguments) -> int:
    """Do `work(*arguments)`: 0 where all went well, 1 where it did not, 130 where it was stopped, as a shell has it."""
    try:
        work(*arguments)
    except KeyboardInterrupt as stop:
        print(str(stop) or "Stopped; the same command resumes.", file=sys.stderr)
        return 130
    except OSError as error:
        print(f"{error.filename}: {error.strerror}." if error.filename else error, file=sys.stderr)
        return 1
    except (DataError, ValueError, FloatingPointError, MemoryError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
