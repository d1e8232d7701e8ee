"""Bytes of memory and of disk that an example costs a server, in a run that draws by its losses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.benchmarks.lives import DRAW, Life, lives, sizes
from tests.benchmarks.measure import Options, Series, Table
from tests.benchmarks.wire import BATCH

_COLUMN = 4
"""Bytes of last_loss, the only column that this policy keeps."""

_NOTES = (
    (
        "anonymous memory (RssAnon) over that of the same server with a run of 4096 examples that has served; "
        "each example has a loss, the run has trained and saved itself, and nothing goes on"
    ),
    "peaks: sampled every 5 ms; VmHWM counts pages of the store too, which the system may drop at any time",
)


def measure(options: Options) -> Iterator[Table]:
    for size in sizes(options):
        yield _table(size, lives(options, size))


def _table(size: int, found: list[Life]) -> Table:
    def an_example(name: str, value: Callable[[Life], float]) -> Series:
        return Series(name, "B", [max(0.0, value(life)) / size for life in found])

    def of_all(name: str, value: Callable[[Life], float]) -> Series:
        return Series(name, "MB", [value(life) / 1e6 for life in found])

    series = [
        an_example("an example: all", lambda life: life.settled - life.empty),
        an_example("an example: beyond its column", lambda life: life.settled - life.empty - _COLUMN * size),
        an_example(
            "an example: at the peak, observing and saving", lambda life: life.peak_observing - life.empty
        ),
        an_example("an example: after a restart", lambda life: life.recovered - life.empty),
        an_example("an example: at the peak, restarting", lambda life: life.peak_recovering - life.empty),
        an_example("an example: on disk", lambda life: life.disk),
        of_all("server: with a run of 4096 examples", lambda life: life.empty),
        of_all("server: run created, not drawn from", lambda life: life.created),
        of_all("server: all", lambda life: life.settled),
        of_all("server: at the peak", lambda life: max(life.peak_observing, life.peak_recovering)),
        of_all("server: VmHWM", lambda life: life.peak_resident),
    ]
    return Table("memory: what a run takes", series, {"ids": size, "batch": BATCH, **DRAW}, _NOTES)
