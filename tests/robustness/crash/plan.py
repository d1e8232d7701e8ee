"""What happens in a round: a pure function of the seed and the round's number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

RUN_SEEDS = 1 << 31
MAX_WORLD = 4

STARTING_POINTS = ("load.begin", "load.end", "commit.begin", "commit.end")
"""Points that a server passes while it takes a run up from the disk."""
SERVING_POINTS = (
    "commit.begin",
    "commit.end",
    "commit.end",
    "answer.begin",
    "tail.end",
    "map.begin",
    "map.end",
    "prune.begin",
    "prune.end",
)
CHECKPOINT_POINTS = ("checkpoint.begin", "checkpoint.made", "checkpoint.end")

DECK = (
    "server",
    "server",
    "trainer",
    "trainers",
    "both",
    "boot",
    "recovery",
    "checkpoint",
    "checkpoint",
    "point",
    "point",
    "drain",
    "pause server",
    "pause trainer",
    "zombie",
    "attempt",
    "bookmark",
    "rewind",
    "fork",
    "policy",
    "grow",
    "retire",
)
"""Every kind of disturbance, as often as a full round has it. A round plays them in an order of its own."""


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What is done, `after` further batches were taken by the trainers, and then `delay` seconds later."""

    kind: str
    after: int
    delay: float
    worlds: Sequence[int]
    """World sizes of the next attempt, one for each run in turn, where the disturbance brings one about."""
    choice: int
    """Picks among what is there then: which trainer, which bookmark, which run."""
    point: str = ""
    """Where the server kills itself, and at the how manieth time that it comes there."""
    nth: int = 1
    delays: Sequence[float] = ()
    """Seconds between a start of the server and its death: one for each time that this is done."""

    def __str__(self) -> str:
        where = f" at {self.point} number {self.nth}" if self.point else ""
        times = f" after {', '.join(f'{one:.3f}' for one in self.delays)} s" if self.delays else ""
        return (
            f"{self.kind}{where}{times}: {self.after} batches and {self.delay * 1000:.0f} ms on; world sizes "
            f"{list(self.worlds)}, choice {self.choice}"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A round. `runs` are the arguments of Client.create_run by name."""

    seed: int
    number: int
    durability: str
    size: int
    runs: Mapping[str, Mapping[str, Any]]
    worlds: Sequence[int]
    disturbances: Sequence[Disturbance]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"round {self.number} of seed {self.seed}: durability {self.durability}, {self.size} examples"
        ]
        lines += [f"  run {name}: {dict(fields)}" for name, fields in self.runs.items()]
        lines.append(f"  world sizes {list(self.worlds)}")
        lines += [f"  {number:2} {one}" for number, one in enumerate(self.disturbances)]
        return "\n".join(lines)


def plan_of(seed: int, number: int, kinds: Sequence[str] = DECK) -> Plan:
    """The plan of a round, which plays `kinds` in an order of its own."""
    choices = Random(f"steelyard crash {seed} {number}")
    deck = choices.sample(list(kinds), len(kinds))
    return Plan(
        seed=seed,
        number=number,
        durability=("sync", "interval")[number % 2],
        size=choices.randrange(101, 260),
        runs=_runs(choices),
        worlds=_worlds(choices),
        disturbances=[_disturbance(kind, choices) for kind in deck],
        settings={
            "map_size_bytes": 1 << 20,
            "checkpoint_interval_seconds": 0.2,
            "durability_interval_seconds": choices.choice((0.05, 0.3, 1.0)),
        },
    )


def _runs(choices: Random) -> dict[str, dict[str, Any]]:
    scored = {"method": "scored", "score": "last_loss"}
    return {
        "shuffle": {
            "staleness": 4,
            "draw": {"method": "shuffle"},
            **_common(choices),
        },
        "fresh": {
            "staleness": 0,
            "draw": {**scored, "sampling": "distinct", "alpha": 1.0, "floor": 0.1},
            "retain_steps": 120,
            **_common(choices),
        },
        "stratified": {
            "staleness": 4,
            "draw": {**scored, "score": "ema_loss", "sampling": "stratified", "alpha": 0.5, "floor": 0.2},
            "weigh": {"method": "importance", "beta": 1.0},
            **_common(choices),
        },
        "weighed": {
            "staleness": 2,
            "draw": {**scored, "score": "mean_loss", "transform": "softmax", "sampling": "independent"},
            "weigh": {"method": "uniform"},
            **_common(choices),
        },
        "linupper": {
            "staleness": 2,
            "draw": {"method": "shuffle"},
            "weigh": {"method": "linupper", "r": 0.4, "where": "server"},
            **_common(choices),
        },
    }


def _common(choices: Random) -> dict[str, Any]:
    return {
        "batch_size": choices.randrange(5, 13),
        "seed": choices.randrange(RUN_SEEDS),
        "history_size": choices.choice((0, 2, 8)),
    }


def _worlds(choices: Random) -> list[int]:
    return [choices.randrange(1, MAX_WORLD + 1) for _ in range(3)]


def _disturbance(kind: str, choices: Random) -> Disturbance:
    point, nth, delays = "", 1, []
    if kind == "checkpoint":
        point, nth = choices.choice(CHECKPOINT_POINTS), choices.randrange(1, 9)
    elif kind == "point":
        point, nth = choices.choice(SERVING_POINTS), choices.randrange(1, 40)
        if point.startswith("map"):
            nth = 1
    elif kind == "boot":
        delays = [choices.uniform(0.0, 1.2) for _ in range(choices.randrange(1, 4))]
    elif kind == "recovery":
        delays = [choices.uniform(0.0, 0.3) for _ in range(choices.randrange(1, 4))]
        point, nth = choices.choice(("", *STARTING_POINTS)), choices.randrange(1, 6)
    elif kind in _POINTS_OF:
        point, nth = choices.choice(_POINTS_OF[kind]), choices.randrange(1, 4)
    elif kind.startswith("pause"):
        delays = [choices.uniform(0.05, 0.8)]
    return Disturbance(
        kind=kind,
        after=choices.randrange(5, 60),
        delay=choices.uniform(0.0, 0.05),
        worlds=_worlds(choices),
        choice=choices.randrange(1 << 16),
        point=point,
        nth=nth,
        delays=delays,
    )


_POINTS_OF = {
    "attempt": ("rewind.begin", "rewind.end", "commit.begin", "commit.end"),
    "policy": ("", "rewind.begin", "rewind.end", "commit.begin", "commit.end"),
    "rewind": ("", "rewind.begin", "rewind.end", "commit.begin", "commit.end"),
    "fork": ("", "fork.half", "fork.half", "commit.begin", "commit.end"),
    "grow": ("", "dataset.told", "commit.begin", "commit.end"),
    "retire": ("", "dataset.told", "commit.begin", "commit.end"),
    "bookmark": ("", "commit.begin", "commit.end"),
}
"""Where the server dies while its owner asks for something, or a new attempt begins; nowhere, for the empty word."""
