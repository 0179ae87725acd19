"""What a check finds, and the list of all checks: each is one function, registered where it is written."""

from __future__ import annotations

import html
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that holds a network back."""

    check: str  # which check found it, a fixed id such as "discarded-output"
    severity: str  # "error": it cannot work as meant; "warning": it costs accuracy; "note": worth knowing
    where: str  # path of a module, or "" for the whole
    evidence: str  # the numbers
    advice: str  # one sentence


class Check(NamedTuple):
    """A registered check."""

    id: str
    severity: str
    advice: str
    function: Callable

    @property
    def description(self) -> str:
        """The first line of its docstring."""
        return inspect.getdoc(self.function).partition("\n")[0]

    def findings(self, subject) -> Iterator[Finding]:
        """What it finds in a subject, whose attributes it is handed by the names of its parameters."""
        needed = {name: getattr(subject, name) for name in inspect.signature(self.function).parameters}
        for where, evidence, *changes in self.function(**needed):
            said = {"severity": self.severity, "advice": self.advice} | (changes[0] if changes else {})
            yield Finding(self.id, where=where, evidence=evidence, **said)


CHECKS: dict[str, Check] = {}  # by id, in the order in which they run


def check(id: str, severity: str, advice: str) -> Callable[[Callable], Callable]:
    """Register a generator as the check `id`.

    It yields (where, evidence) for each thing that it finds, or (where, evidence, {"severity": ..., "advice": ...})
    where these are not as usual. It is called with the attributes of a `Subject` that its parameters name.
    """

    def register(function: Callable) -> Callable:
        CHECKS[id] = Check(id, severity, advice, function)
        return function

    return register


class Findings(list):
    """Findings, the worst first; prints as a table, and shows as one in a notebook."""

    def __init__(self, findings: list[Finding] = ()):
        super().__init__(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        """One row for all findings of one check that say the same."""
        groups: dict[tuple, list[Finding]] = {}
        for finding in self:
            groups.setdefault((finding.severity, finding.check, finding.advice), []).append(finding)
        rows = []
        for (severity, name, advice), group in groups.items():
            places = ", ".join(finding.where for finding in group if finding.where) or "the whole"
            more = f" (and {len(group) - 1} more like it)" if len(group) > 1 else ""
            rows.append((severity, name, places, group[0].evidence + more, advice))
        return rows

    def __str__(self) -> str:
        if not self:
            return "No findings."
        lines = []
        for severity, name, places, evidence, advice in self._rows():
            lines += [f"{severity.upper()}  {name}  at {places}", f"    {evidence}", f"    {advice}"]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        titles = ("severity", "check", "where", "evidence", "advice")
        return html_table(titles, self._rows()) if self else "<p>No findings.</p>"


def html_table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table for a notebook, of cells of plain text."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
