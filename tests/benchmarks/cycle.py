"""Draw a batch, give its ids new scores, again and again: in process, beside peers that do the same."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from tests.benchmarks import peers
from tests.benchmarks.measure import Options, Series, Table, in_turns
from tests.benchmarks.processes import Program

BATCH = 1024
OURS = "steelyard"
REFERENCE = f"{OURS}: stratified"
_TREE = f"{OURS}: tree alone"
BATCHES = (64, 256, 1024, 4096, 16384, 65536)
BATCHES_AT = 1_000_000
_LIFE_SECONDS = 3600.0
_PEERS_LIMIT = 100_000_000
"""A peer's trees of more than this many ids do not fit beside ours."""

_NOTES = (
    (
        "steelyard: all that a run does: random bits of the step, draw, probabilities, shuffle, the column, "
        "duplicates, scores to 32-bit masses, exact sums; a pure function of seed and step"
    ),
    (
        "torchrl, cpprb: independent or stratified ids from float sums, a min tree, importance weights; cpprb "
        "copies out a byte an example; distinct ids are nobody else's but torch.multinomial's"
    ),
    "alone: random targets to ids and new values into the tree, no more; multinomial and cumsum: no tree",
)


@dataclass(frozen=True, slots=True)
class _Contender:
    name: str
    cases: Sequence[str]
    program: Program
    told: str


@dataclass(slots=True)
class _Field:
    """The contenders at one number of ids, each a process of its own, and who is absent."""

    size: int
    contenders: list[_Contender] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def measure(options: Options) -> Iterator[Table]:
    sizes = [10_000] if options.quick else [10_000, 1_000_000, 10_000_000]
    if options.large or options.huge:
        sizes.append(100_000_000)
    with ExitStack() as stack:
        fields = [_open(stack, options, size) for size in sizes]
        yield from _by_size(options, fields)
    yield _by_batch(options, sizes[0] if options.quick else BATCHES_AT)
    if options.huge:
        yield _alone(options, 1_000_000_000)


def _open(stack: ExitStack, options: Options, size: int, names: Sequence[str] | None = None) -> _Field:
    """Starts the contenders; each answers when its libraries are there, and builds a case when it is asked for one."""
    found = _Field(size)
    modules = {OURS: ("", ""), "numpy": ("", "")}
    if importlib.util.find_spec("torch") is not None:
        modules["torch"] = ("", "")
    for peer in ("torchrl", "cpprb"):
        modules[peer] = peers.python_of(options.peers, peer)
    for name, (python, why) in modules.items():
        if names is not None and name not in names:
            continue
        if why or (name != OURS and size > _PEERS_LIMIT):
            found.absent.append(why or f"{name}: not at {size:.0e} ids")
            continue
        arguments = ("--size", size, "--hold", 64 if size <= _PEERS_LIMIT else 1)
        program = Program(f"cycle_{name}", *arguments, life=_LIFE_SECONDS, python=python or sys.executable)
        stack.enter_context(program)
        said = program.read()
        found.contenders.append(_Contender(name, said["cases"], program, f"{name}: {said['told']}"))
    return found


def _turn(program: Program, case: str, batch: int, seconds: float) -> dict[str, float]:
    program.tell({"case": case, "batch": batch, "seconds": seconds})
    answer: dict[str, float] = program.read()
    return answer


def _run(
    repeats: int, cases: Mapping[str, Callable[[], dict[str, float]]]
) -> dict[str, list[dict[str, float]]]:
    """The turns of each case, after one that is thrown away: the first builds what is measured."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in cases}

    def turn(name: str) -> float:
        found[name].append(cases[name]())
        return 0.0

    for case in cases.values():
        case()
    in_turns(repeats, {name: partial(turn, name) for name in cases})
    return found


def _by_size(options: Options, fields: Sequence[_Field]) -> Iterator[Table]:
    """All sizes in the same turns, so that one can be held against another."""
    seconds = 0.05 if options.quick else 0.2
    cases = {
        f"{one.size}/{contender.name}: {case}": partial(_turn, contender.program, case, BATCH, seconds)
        for one in fields
        for contender in one.contenders
        for case in contender.cases
    }
    found = _run(options.repeats, cases)
    for one in fields:
        prefix = f"{one.size}/"
        turns = {name.removeprefix(prefix): rows for name, rows in found.items() if name.startswith(prefix)}
        sizes = {"ids": one.size, "batch": BATCH, "seconds a turn": seconds}
        series = [*_series(turns, REFERENCE), *_over_tree_alone(turns)]
        yield Table("cycle: draw, then new scores", series, sizes, _notes(one))
    if len(fields) > 1:
        yield _growth(fields, found)


def _series(turns: Mapping[str, Sequence[Mapping[str, float]]], reference: str) -> list[Series]:
    cycle = {name: [1e6 * (row["draw"] + row["update"]) for row in rows] for name, rows in turns.items()}
    series = [
        Series(name, "µs", values, None if name == reference else reference) for name, values in cycle.items()
    ]
    for part in ("draw", "update"):
        series += [
            Series(f"{name}, {part}", "µs", [1e6 * row[part] for row in rows], shown=name.startswith(OURS))
            for name, rows in turns.items()
        ]
    return series


def _over_tree_alone(turns: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Series]:
    """What others do beside a tree is not what a run does beside its own: theirs over ours without any of that, too."""
    series = []
    for name, rows in turns.items():
        if name.partition(": ")[0] not in (OURS, "torch", "numpy"):
            values = [_cycle(row) / _cycle(own) for row, own in zip(rows, turns[_TREE], strict=True)]
            series.append(Series(f"{name} over {_TREE}", "x", values))
    return series


def _growth(fields: Sequence[_Field], found: Mapping[str, Sequence[Mapping[str, float]]]) -> Table:
    """A cycle at each number of ids over that of the same turn at 1e6."""
    names = dict.fromkeys(name.partition("/")[2] for name in found)
    series = []
    for name in names:
        base = found.get(f"{BATCHES_AT}/{name}")
        for one in fields:
            rows = found.get(f"{one.size}/{name}")
            if rows is None or base is None or one.size == BATCHES_AT:
                continue
            values = [_cycle(row) / _cycle(first) for row, first in zip(rows, base, strict=True)]
            series.append(Series(f"{name}, {one.size:.0e} ids", f"x at {BATCHES_AT:.0e}", values))
    return Table("cycle: growth with the number of ids", series, {"batch": BATCH})


def _cycle(row: Mapping[str, float]) -> float:
    return row["draw"] + row["update"]


def _by_batch(options: Options, size: int) -> Table:
    seconds = 0.02 if options.quick else 0.2
    batches = BATCHES[:2] if options.quick else BATCHES
    chosen = {
        OURS: ("stratified", "distinct"),
        "torchrl": ("PrioritizedSampler",),
        "cpprb": None,
        "numpy": None,
    }
    with ExitStack() as stack:
        one = _open(stack, options, size, list(chosen))
        cases = {
            f"{contender.name}: {case}, batch {batch}": partial(
                _turn, contender.program, case, batch, seconds
            )
            for batch in batches
            for contender in one.contenders
            for case in contender.cases
            if case in (chosen[contender.name] or contender.cases)
        }
        found = _run(options.repeats, cases)
    series = []
    for batch in batches:
        end = f", batch {batch}"
        turns = {name: rows for name, rows in found.items() if name.endswith(end)}
        series += _series(turns, REFERENCE + end)
    return Table("cycle: by batch", series, {"ids": size, "seconds a turn": seconds}, _notes(one))


def _alone(options: Options, size: int) -> Table:
    """One drawer at a time, and nobody beside it."""
    with ExitStack() as stack:
        one = _open(stack, options, size, [OURS])
        turns: dict[str, list[dict[str, float]]] = {}
        (contender,) = one.contenders
        for case in contender.cases:
            turn = partial(_turn, contender.program, case, BATCH, 1.0)
            turn()
            turns[f"{OURS}: {case}"] = [turn() for _ in range(options.repeats)]
    return Table("cycle: draw, then new scores", _series(turns, REFERENCE), {"ids": size, "batch": BATCH})


def _notes(one: _Field) -> list[str]:
    return [*_NOTES, "; ".join(contender.told for contender in one.contenders), *one.absent]
