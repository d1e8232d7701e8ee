"""Two pictures of how costs grow, from the values of `make bench`: python tests/benchmarks/plots.py [JSON ...]

The first has the number of ids on x: a draw and an update (`cycle`), memory (`memory`) and recovery (`scale`). The
second has the batch on x (`cycle`). A table that is in several files is taken from the last of them: a run of a few
sizes adds to, or replaces, what a longer one found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parents[2]

_WITHOUT_UPDATE = ("numpy: ", "torch: ")
"""These store a new score, and make all else of it when they draw."""

_STYLES: Mapping[str, tuple[str, str]] = {
    "steelyard: stratified": ("#0b5394", "o"),
    "steelyard: distinct": ("#3d85c6", "s"),
    "torchrl: PrioritizedSampler": ("#cc4125", "^"),
    "cpprb: PrioritizedReplayBuffer": ("#e69138", "v"),
    "numpy: cumsum, searchsorted": ("#888888", "x"),
    "torch: with replacement": ("#6aa84f", "+"),
}


@dataclass(frozen=True, slots=True)
class Point:
    """A median with its least and greatest."""

    x: float
    median: float
    least: float
    greatest: float


def points(tables: Sequence[Mapping[str, Any]], title: str, name: str) -> list[Point]:
    """The series `name` of every table of that title, by its number of ids."""
    found = [
        _point(float(table["sizes"]["ids"]), series)
        for table in tables
        if table["title"] == title
        for series in table["series"]
        if series["name"] == name
    ]
    return sorted(found, key=lambda point: point.x)


def by_batch(tables: Sequence[Mapping[str, Any]], contender: str, part: str) -> list[Point]:
    found = []
    for table in tables:
        if table["title"] != "cycle: by batch":
            continue
        for series in table["series"]:
            name, _, rest = series["name"].partition(", batch ")
            batch, _, which = rest.partition(", ")
            if name == contender and which == part:
                found.append(_point(float(batch), series))
    return sorted(found, key=lambda point: point.x)


def _point(x: float, series: Mapping[str, Any]) -> Point:
    return Point(x, series["median"], series["least"], series["greatest"])


def _line(
    axes: Axes, line: Sequence[Point], label: str, colour: str, marker: str, scale: float = 1.0
) -> None:
    """Nothing where there is no point: a peer that was not there is not in the picture."""
    if not line:
        return
    x, y = [point.x for point in line], [point.median * scale for point in line]
    axes.plot(x, y, label=label, color=colour, marker=marker, markersize=5, linewidth=1.4)
    least, greatest = [p.least * scale for p in line], [p.greatest * scale for p in line]
    axes.fill_between(x, least, greatest, color=colour, alpha=0.15, linewidth=0)


def _frame(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set(title=title, xlabel=x, ylabel=y, xscale="log", yscale="log")
    axes.grid(visible=True, which="major", alpha=0.35)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color="#888888")


def _contenders(part: str) -> Mapping[str, tuple[str, str]]:
    """With colour and marker, those that have something to do in that part of a cycle."""
    return {
        name: style
        for name, style in _STYLES.items()
        if part == "draw" or not name.startswith(_WITHOUT_UPDATE)
    }


def draw_ids(tables: Sequence[Mapping[str, Any]], told: str, to: Path) -> None:
    figure, grid = plt.subplots(2, 2, figsize=(11, 8), layout="constrained", sharex=True)
    for axes, part in ((grid[0, 0], "draw"), (grid[0, 1], "update")):
        for name, (colour, marker) in _contenders(part).items():
            line = points(tables, "cycle: draw, then new scores", f"{name}, {part}")
            _line(axes, line, name, colour, marker)
        what = "Draw 1024 ids" if part == "draw" else "New scores for 1024 ids"
        _frame(axes, what, "", "µs, in process")
    memory, recovery = grid[1]
    for name, label, (colour, marker) in (
        ("server: all", "at rest", ("#0b5394", "o")),
        ("server: at the peak", "at the peak", ("#cc4125", "^")),
    ):
        _line(memory, points(tables, "memory: what a run takes", name), label, colour, marker, 1e-3)
    _frame(memory, "Memory of the server (RssAnon)", "ids in the run", "GB")
    for name, label, (colour, marker) in (
        ("restart to the first batch", "files in memory", ("#0b5394", "o")),
        ("restart to the first batch, cold files", "files on disk", ("#cc4125", "^")),
    ):
        _line(recovery, points(tables, "scale: a life", name), label, colour, marker)
    _frame(recovery, "Restart after kill -9, to the first batch", "ids in the run", "s")
    _save(figure, "Growth with the number of ids", told, to / "growth-ids.png")


def draw_batches(tables: Sequence[Mapping[str, Any]], told: str, to: Path) -> None:
    figure, grid = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for axes, part in zip(grid, ("draw", "update"), strict=True):
        for name, (colour, marker) in _contenders(part).items():
            _line(axes, by_batch(tables, name, part), name, colour, marker)
        what = "Draw a batch" if part == "draw" else "New scores for a batch"
        _frame(axes, what, "ids in the batch", "µs, in process")
        axes.set_xscale("log", base=2)
    sizes = {table["sizes"]["ids"] for table in tables if table["title"] == "cycle: by batch"}
    ids = ", ".join(f"{int(size):,}" for size in sorted(sizes))
    _save(figure, f"Growth with the batch, {ids} ids", told, to / "growth-batch.png")


def _save(figure: Any, title: str, told: str, path: Path) -> None:
    figure.suptitle(title)
    figure.supxlabel(told, fontsize=7, color="#555555")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path, nargs="*", default=[ROOT / ".cache" / "bench.json"])
    parser.add_argument("--to", type=Path, default=Path(__file__).parent)
    args = parser.parse_args()
    values = [json.loads(path.read_text()) for path in args.json]
    tables = together([value["tables"] for value in values])
    if not any(table["title"].startswith("cycle: ") for table in tables):
        files = ", ".join(map(str, args.json))
        raise SystemExit(f"expected the tables of cycle, memory and scale in {files}, got none of cycle")
    machines = [value["machine"] for value in values]
    told = "medians, and least to greatest; " + " / ".join(dict.fromkeys(map(_machine, machines)))
    for draw in (draw_ids, draw_batches):
        draw(tables, told, args.to)


def together(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """The tables of all; one that comes again, at the same number of ids, replaces the earlier one."""
    found = {(table["title"], table["sizes"].get("ids")): table for tables in runs for table in tables}
    return list(found.values())


def _machine(told: Mapping[str, str]) -> str:
    """Without its load, which differs from one run to the next."""
    cpu = told["cpu"].partition(", load")[0]
    return f"{cpu}; Python {told['python']}; {told['libraries']}"


if __name__ == "__main__":
    main()
