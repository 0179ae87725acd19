"""Files that are never half-written."""

import os
from pathlib import Path


def write_whole(path: Path, write) -> None:
    """Call `write(temporary)` and rename the result to `path`, so that `path` is never half-written."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
