"""What a try is, and how it ends: well, in one sentence, or otherwise, which must not happen."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import resource
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

WELL, SENTENCE = "well", "in one sentence"
LONGEST = 500  # characters of a sentence


@dataclass
class Try:
    """Something that somebody does."""

    what: str
    do: Callable[[], object]
    says: str | None = None  # what is in the sentence that it ends with, as a pattern; None where it goes well


AREAS: dict[str, Callable[[Path], Iterator[Try]]] = {}
COSTLY: set[str] = set()  # areas of which the tests try only the first few


def area(name: str, costly: bool = False):
    """Register a generator of tries that is given an empty folder."""

    def register(tries: Callable[[Path], Iterator[Try]]):
        AREAS[name] = tries
        COSTLY.update([name] if costly else [])
        return tries

    return register


class Ended(Exception):
    """A program ended with another exit code than 0; the text is what it said on standard error."""


def outcome(attempt: Try) -> str:
    """WELL, SENTENCE, or a line that says what came instead of what was expected."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            attempt.do()
    except (Exception, KeyboardInterrupt) as error:
        said = str(error).strip()
        if attempt.says is None or not re.search(attempt.says, said, re.DOTALL):
            return f"{type(error).__name__}: {said or 'without a word'}"
        return SENTENCE if "\n" not in said and len(said) <= LONGEST else f"more than a sentence: {said}"
    return WELL if attempt.says is None else "nothing was said"


def program(main: Callable[[list[str]], int], *arguments: object) -> Callable[[], None]:
    """A try that calls a program's `main` with a command line."""

    def do() -> None:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                code = main([str(argument) for argument in arguments])
            except SystemExit as stop:  # argparse, which shows the usage first
                code = stop.code
        if code:
            raise Ended(errors.getvalue().strip().rpartition("\n")[2] if code == 2 else errors.getvalue())

    return do


def must(holds: bool) -> None:
    """For tries that end well only if this holds."""
    if not holds:
        raise AssertionError("it ran through, to a wrong result")


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Stand in another folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def surroundings(**variables: str | None) -> Iterator[None]:
    """Other environment variables; None takes one away."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in variables.items() if value is not None})
    for name in [name for name, value in variables.items() if value is None]:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def full_disk(size: int = 1000) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Without the rights of the administrator, whom no permission holds back."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def run(names: list[str], most: int | None = None) -> Iterator[dict]:
    """A row an area: how many tries, how many ended well and in one sentence, and the lines of all others.

    Of costly areas only the first `most` tries, if that is given.
    """
    for name in names:
        ends, others = [], []
        with tempfile.TemporaryDirectory(prefix="s9-tries-") as folder, warnings.catch_warnings():
            os.chmod(folder, 0o755)  # as_nobody has to get in
            for attempt in itertools.islice(AREAS[name](Path(folder)), most if name in COSTLY else None):
                ends.append(outcome(attempt))
                if ends[-1] not in (WELL, SENTENCE):
                    others.append(f"{attempt.what}: {ends[-1]}")
        yield {
            "area": name,
            "tries": len(ends),
            WELL: ends.count(WELL),
            SENTENCE: ends.count(SENTENCE),
            "others": others,
        }
