"""The cycle by what a run itself draws with: the drawer of a scored policy, and the tree beneath it alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from steelyard_server.core import kernels
from steelyard_server.core.kernels import plain
from steelyard_server.core.random import Purpose, bits
from steelyard_server.core.sampling import comb
from steelyard_server.core.tree import Law, MassTree
from steelyard_server.policies.columns import ascending, last_occurrence
from steelyard_server.policies.draw import Examples
from steelyard_server.policies.draw.scored import Scored
from tests.benchmarks import own_kernels
from tests.benchmarks.programs import cycles
from tests.benchmarks.programs.cycles import Case, Scores

_QUANTA = 2.0**20
"""A leaf's mass of a score of 1, where the tree is by itself."""


def cases_of(size: int) -> Mapping[str, Callable[[], Case]]:
    scores = cycles.all_scores(size)
    steps = itertools.count()
    return {
        **{
            mode: partial(_drawer, mode, size, scores, steps)
            for mode in ("stratified", "distinct", "independent")
        },
        "stratified, NumPy kernels": lambda: _uncompiled(_drawer("stratified", size, scores, steps)),
        "tree alone": lambda: _tree(scores, steps),
    }


def _uncompiled(case: Case) -> Case:
    """The same where compiled kernels cannot be had."""
    usual = kernels.active

    def draw(batch: int) -> Any:
        kernels.use(plain)
        return case.draw(batch)

    def update(ids: Any, values: Any) -> None:
        case.update(ids, values)
        kernels.use(usual)

    return Case(draw, update)


def _drawer(mode: str, size: int, scores: Scores, steps: itertools.count[int]) -> Case:
    """All that a run does with a step's losses: the batch with its probabilities, the fold into the column, duplicates
    taken out, scores to masses, the tree."""
    draw = Scored.parse({"method": "scored", "score": "last_loss", "sampling": mode})
    examples = Examples(size, np.empty(0, np.int64), {"last_loss": scores})
    (derived,) = draw.derived
    drawers: dict[int, Any] = {}

    def drawn(batch: int) -> Any:
        # One drawer for all sizes of batch, as far as it lets itself be told.
        if batch not in drawers:
            drawers.clear()
            drawers[batch] = draw.drawer(examples, seed=1, batch_size=batch)
        return drawers[batch].draw(next(steps)).ids

    def update(ids: Any, values: Any) -> None:
        changed = ascending(ids)
        derived.fold(examples.columns, ids, values, distinct=len(changed) == len(ids))
        next(iter(drawers.values())).changed(changed)

    return Case(drawn, update)


def _tree(scores: Scores, steps: itertools.count[int]) -> Case:
    """What a segment tree does: random targets to ids, and their new masses; a batch's duplicates are taken out before,
    since masses would not otherwise be those of the last one."""
    tree = MassTree(_leaves(scores))
    law = Law()

    def draw(batch: int) -> Any:
        total = tree.total(law)
        offsets = bits(1, Purpose.DRAW, next(steps)).below(total, batch)
        return tree.find(comb(total, batch, offsets), law)

    def update(ids: Any, leaves: Any) -> None:
        last = last_occurrence(ids)
        tree.set(ids[last], leaves[last])

    return Case(draw, update, _leaves)


def _leaves(scores: Scores) -> np.ndarray:
    leaves: np.ndarray = np.maximum(scores * np.float32(_QUANTA), 1).astype(np.uint32)
    return leaves


def told() -> str:
    return f"numpy {np.__version__}, {own_kernels.take()}, 1 thread"


if __name__ == "__main__":
    cycles.main(cases_of, told)
