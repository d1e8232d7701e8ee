"""The life of a large run in seconds: made, a loss for every example, trained, saved, killed -9, serving again."""

from __future__ import annotations

from collections.abc import Iterator

from tests.benchmarks.lives import Life, lives, sizes
from tests.benchmarks.measure import Options, Series, Table
from tests.benchmarks.wire import BATCH

_NOTES = (
    "until it is saved: from its last report until nothing was written for longer than between two checkpoints",
    (
        "restarts: from the start of the process to the first batch in the trainer's hands; with the store's "
        "files in the system's memory as the killed server left them, and again with that dropped"
    ),
)


def measure(options: Options) -> Iterator[Table]:
    for size in sizes(options):
        yield _table(size, lives(options, size))


def _table(size: int, found: list[Life]) -> Table:
    series = [Series(name, "s", [life.seconds[name] for life in found]) for name in found[0].seconds]
    observed = [size / life.seconds["observe a loss for each"] for life in found]
    series.append(Series("losses observed a second", "/s", observed))
    series.append(Series("journal records replayed", "", [life.replayed for life in found]))
    return Table("scale: a life", series, {"ids": size, "batch": BATCH}, _NOTES)
