"""What every contender of the cycle has in common: the scores, the clock, and one line of JSON for each turn.

A cycle is a draw of a batch and new scores for it. The scores at the start and the new ones are lognormal, from fixed
seeds, the same for all, and made before the clock runs. Imports only NumPy, so that it runs in a peer's environment.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.benchmarks.programs import parent

Scores = npt.NDArray[np.float32]

_CHUNK = 1 << 20
_POOL = 32
"""Arrays of new scores, taken in turn."""
_WARM_CYCLES = 3


@dataclass(frozen=True, slots=True)
class Case:
    """`draw` takes the size of the batch and answers its ids, in whatever the contender takes them back in; `update`
    takes them, with their new scores as `scores` made them of float32[batch] beforehand."""

    draw: Callable[[int], Any]
    update: Callable[[Any, Any], object]
    scores: Callable[[Scores], Any] = lambda values: values


def chunks(size: int) -> Iterator[tuple[int, Scores]]:
    """(first id, its score and those after it), of all `size` ids: pieces, since 1e9 of them need room."""
    for first in range(0, size, _CHUNK):
        rng = np.random.default_rng([1, first])
        yield first, rng.lognormal(size=min(_CHUNK, size - first)).astype(np.float32)


def all_scores(size: int) -> Scores:
    """float32[size]."""
    scores = np.empty(size, np.float32)
    for first, values in chunks(size):
        scores[first : first + len(values)] = values
    return scores


def main(cases_of: Callable[[int], Mapping[str, Callable[[], Case]]], told: Callable[[], str]) -> None:
    """Serves turns until its input ends. `cases_of(size)` gives makers of cases, called when one is first asked for;
    `told()` is what a reader must know: versions and threads."""
    parser = parent.parser()
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--hold", type=int, default=64, help="cases that are kept in memory at a time")
    args = parser.parse_args()
    parent.live_for(args.life)
    parent.keep_output()
    makers = cases_of(args.size)
    case_of = lru_cache(maxsize=args.hold)(lambda name: makers[name]())
    parent.say({"cases": list(makers), "told": told()})
    for line in sys.stdin:
        asked = json.loads(line)
        case = case_of(asked["case"])
        pool = _pool(asked["batch"])
        gc.collect()
        gc.freeze()
        parent.say(_turn(case, asked["batch"], [case.scores(values) for values in pool], asked["seconds"]))
    # What libraries say as they are taken down is of no use here.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


@lru_cache(maxsize=1)
def _pool(batch: int) -> Sequence[Scores]:
    rng = np.random.default_rng(2)
    return [rng.lognormal(size=batch).astype(np.float32) for _ in range(_POOL)]


def _turn(case: Case, batch: int, pool: Sequence[Any], seconds: float) -> dict[str, float]:
    """Mean seconds of a draw and of an update over `seconds` of cycles, after a tenth of that to warm up."""
    clock = time.perf_counter
    for least, limit in ((_WARM_CYCLES, seconds / 10), (1, seconds)):
        drawing = updating = 0.0
        cycles = 0
        while cycles < least or drawing + updating < limit:
            new = pool[cycles % len(pool)]
            begun = clock()
            ids = case.draw(batch)
            drawn = clock()
            case.update(ids, new)
            updating += clock() - drawn
            drawing += drawn - begun
            cycles += 1
    return {"draw": drawing / cycles, "update": updating / cycles}
