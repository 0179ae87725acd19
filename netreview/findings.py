"""What a review finds, and the register of the checks that find it."""

import html
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One problem of a network."""

    check: str  # which check found it, a fixed id such as "discarded-output"
    severity: str  # "error": does not work as intended; "warning": costs accuracy; "note": for information
    where: str  # path of a module, or "" for the network
    evidence: str  # the numbers
    advice: str  # one sentence


class Findings(list):
    """Findings, most severe first; rendered as a table in print and in notebooks."""

    def __init__(self, findings: Iterable[Finding] = ()):
        super().__init__(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))

    def _rows(self) -> list[tuple[str, str, str, str, str]]:
        """One row for all identical findings of one check."""
        groups: dict[tuple, list[Finding]] = {}
        for finding in self:
            groups.setdefault((finding.severity, finding.check, finding.advice), []).append(finding)
        rows = []
        for (severity, check, advice), group in groups.items():
            places = ", ".join(finding.where for finding in group if finding.where) or "the whole"
            more = f" (and {len(group) - 1} more like it)" if len(group) > 1 else ""
            rows.append((severity, check, places, group[0].evidence + more, advice))
        return rows

    def __str__(self) -> str:
        if not self:
            return "No findings."
        lines = []
        for severity, check, places, evidence, advice in self._rows():
            lines += [f"{severity.upper()}  {check}  at {places}", f"    {evidence}", f"    {advice}"]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        if not self:
            return "<p>No findings.</p>"
        head = "".join(f"<th>{title}</th>" for title in ("severity", "check", "where", "evidence", "advice"))
        cells = [[f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row] for row in self._rows()]
        return f"<table><tr>{head}</tr>" + "".join(f"<tr>{''.join(row)}</tr>" for row in cells) + "</table>"


class Found(NamedTuple):
    """What a check yields: a place and its evidence; advice and severity only where they are not the check's own."""

    where: str
    evidence: str
    advice: str | None = None
    severity: str | None = None


class Check(NamedTuple):
    """One check: what it is called, how bad what it finds is, what to do about it, and the code that finds it."""

    id: str
    severity: str
    advice: str
    finds: Callable[..., Iterable[Found]]
    unless: tuple[str, ...]  # ids or severities: where there are such findings already, they are the cause
    stops: bool  # whether nothing else can be asked where it finds something

    @property
    def doc(self) -> str:
        """What it looks for, in one line."""
        return (self.finds.__doc__ or "").strip().partition("\n")[0]

    def __call__(self, subject) -> Iterator[Finding]:
        for where, evidence, advice, severity in self.finds(subject):
            yield Finding(self.id, severity or self.severity, where, evidence, advice or self.advice)


CHECKS: dict[str, Check] = {}  # by id, in the order in which they are asked


def check(id: str, severity: str, advice: str, unless: tuple[str, ...] = (), stops: bool = False) -> Callable:
    """Register a function from a Subject to what it finds; its docstring's first line says what it looks for."""

    def register(finds: Callable[..., Iterable[Found]]) -> Check:
        CHECKS[id] = Check(id, severity, advice, finds, unless, stops)
        return CHECKS[id]

    return register
