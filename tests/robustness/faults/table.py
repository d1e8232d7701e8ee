"""The table of tests/robustness/README.md, made of the score: everything between its two marks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from tests.robustness.faults.outcome import ROOT, Outcome, read
from tests.robustness.faults.registry import Fault, faults

README = ROOT / "tests" / "robustness" / "README.md"
BEGIN, END = "<!-- the score: written by make faults KEEP=1 -->\n", "<!-- the end of the score -->\n"


def write(path: Path = README) -> None:
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(before + BEGIN + made(read()) + END + after)


def made(outcomes: Sequence[Outcome]) -> str:
    lines = [
        "| fault | how | bar | rounds held | load, batches/s | found | last |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in faults().values():
        mine = [outcome for outcome in outcomes if outcome.fault == one.name]
        lines.append(_row(one, mine))
    return "\n".join(lines) + "\n"


def _row(one: Fault, mine: Sequence[Outcome]) -> str:
    if not mine:
        return f"| {one.name} | {one.how} | {one.bar} | none yet | | | |"
    held = sum(not outcome.broken for outcome in mine)
    broken = f", {len(mine) - held} broken" if held < len(mine) else ""
    last = mine[-1]
    return (
        f"| {one.name} | {one.how} | {one.bar} | {held}{broken} | {_load(mine)} | {_figures(mine)} | "
        f"{last.date} {last.commit} |"
    )


def _load(mine: Sequence[Outcome]) -> str:
    loads = [outcome.load for outcome in mine if outcome.load is not None]
    return f"{_range(loads, 0)}" if loads else "none"


def _figures(mine: Sequence[Outcome]) -> str:
    names = list(dict.fromkeys(name for outcome in mine for name in outcome.figures))
    shown = []
    for name in names:
        values = [outcome.figures[name] for outcome in mine if name in outcome.figures]
        if all(isinstance(value, int) for value in values):
            shown.append(f"{sum(values)} {name}")
        else:
            shown.append(f"{name}: {_range(values, 2)}")
    return "; ".join(shown)


def _range(values: Sequence[float], digits: int) -> str:
    """The median, with the least and the greatest."""
    least, middle, most = min(values), statistics.median(values), max(values)
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} [{least:.{digits}f}..{most:.{digits}f}]"
