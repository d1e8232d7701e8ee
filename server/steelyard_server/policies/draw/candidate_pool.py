"""The transforms of Dynamic Loss-Based Sample Reweighting as draws: an adaptation, which is another algorithm.

Each step takes the next `pool` batches of a shuffle of all examples as candidates, turns their last reported losses L
into weights as the paper does those of a batch, and draws one batch by them:

    R   = max(L_max - L_min, min_range),   h_i = d (2 L_i - L_max - L_min) / R   over the candidates
    f_i = min(h_i + d, d) linupper,  1 - h_i^2 / d^2 quadratic,  |h_i| extremes,  (h_i + d) / 2 upper
    p(i | pool) = exp(f_i / r) / sum_j exp(f_j / r)

Source: the authors' src/trainer.py for the transforms (steelyard.weigh has the method itself).

What differs from the paper: it weighs the fresh losses of the batch that is trained on, all of it; here losses
are as old as the last report, the batch is drawn and its losses count alike, and most candidates of a pool are not
trained on. Losses outside the pool have no say, as those outside a batch have none in the paper. The probability
that is told is P(in the pool) · p(i | pool) with P = pool size / N, so that 1 / (N p), the weigh rule 'importance', is
the right correction for the mean over the pool. Weighing by the losses again would count them twice, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core import exact
from steelyard_server.core.random import Purpose, bits
from steelyard_server.core.sampling import Sampling, distinct_copies, sample
from steelyard_server.core.tree import Law, MassTree
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.contract import Drawer, Drawn, Examples, Float32s, Ids, LawSummary
from steelyard_server.policies.draw.engines.local import SampledDraw
from steelyard_server.policies.draw.rows import Float64s, unknown_share
from steelyard_server.policies.draw.shuffle import ShuffleDrawer

_LOG2_E = 1.4426950408889634
# The greatest leaf of a pool. With 2^31 candidates the total is below 2^59.
_BITS = 28

_STRATEGIES: Mapping[str, Callable[[Float64s], Float64s]] = {
    "linupper": lambda h: np.minimum(h + 1.0, 1.0),
    "quadratic": lambda h: 1.0 - h * h,
    "extremes": np.abs,
    "upper": lambda h: (h + 1.0) * 0.5,
}


class CandidatePool(SampledDraw):
    """Draws a batch from some batches of a shuffle by the losses last reported of these."""

    source: ClassVar[Source] = Source(
        "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model Pretraining (ICLR 2025)",
        "its transforms, src/trainer.py; drawing by them from a pool is our adaptation",
    )
    never_reported: ClassVar[str] = (
        "The greatest weight of their pool; a pool without a reported loss is drawn from uniformly."
    )

    method: Literal["candidate_pool"] = "candidate_pool"
    strategy: Literal["linupper", "quadratic", "extremes", "upper"] = "linupper"
    """The paper's transform of normalised losses."""
    pool: Annotated[int, Field(ge=1, le=4096)] = 8
    """The candidates of a step, in batches."""
    r: Annotated[float, Field(ge=1e-6, le=1e12)] = 1.0
    """Temperature of the softmax: the larger, the more uniform."""
    delta: Annotated[float, Field(ge=1e-6, le=1e6)] = 1.0
    """The scale d that losses are normalised to."""
    min_range: Annotated[float, Field(ge=1e-30, le=1e30)] = 1e-6
    """The least range R, in units of the loss."""
    signal: str = Field(default="loss", min_length=1, max_length=64)
    """The reported signal whose last value is the loss."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        return (Derived("last", self.signal),)

    @property
    def static(self) -> tuple[str, ...]:
        return ()

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> Drawer:
        return _PoolDrawer(self, examples, seed, batch_size, state)

    def log2_weights(self, losses: Float64s) -> Float64s:
        """log2 of the weight of each candidate, the greatest 0, float64[n]; NaN is a loss that is not known."""
        known = ~np.isnan(losses)
        if not known.any():
            return np.zeros(len(losses))
        low, high = losses[known].min(), losses[known].max()
        # In units of delta. Differences to both ends are exact for losses that lie close together.
        h = ((losses[known] - low) - (high - losses[known])) / max(high - low, self.min_range)
        scores = _STRATEGIES[self.strategy](h) * (1.0 if self.strategy == "quadratic" else self.delta)
        log2 = np.zeros(len(losses))
        log2[known] = (scores - scores.max()) * (_LOG2_E / self.r)
        return log2


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """The candidates of a step, ascending, and what the draw's state is behind them."""

    ids: Ids
    tree: MassTree
    draw_state: Mapping[str, Any]


class _PoolDrawer(Drawer):
    """A draw costs what a shuffle of `pool` batches does, and a tree over them."""

    def __init__(
        self,
        draw: CandidatePool,
        examples: Examples,
        seed: int,
        batch_size: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        self._draw = draw
        self._examples = examples
        self._seed = seed
        self._batch_size = batch_size
        self._shuffle = ShuffleDrawer(examples, seed, batch_size, state)

    def draw(self, step: int, count: int | None = None) -> Drawn:
        wanted = self._batch_size if count is None else count
        pool = self._pool(step, wanted)
        chosen = sample(
            pool.tree,
            Law(),
            wanted,
            self._draw.sampling,
            bits(self._seed, Purpose.DRAW, step),
            bits(self._seed, Purpose.ORDER, step),
        )
        in_pool = len(pool.ids) / self.drawable
        return Drawn(pool.ids[chosen.ids], chosen.probability * in_pool, 1.0 / self.drawable, pool.draw_state)

    def copies(self, ids: Ids, count: int) -> Float64s | None:
        if self._draw.sampling is not Sampling.DISTINCT:
            return None
        # The place in the shuffle moves with the draw's state alone, so that these are the candidates of the last draw.
        pool = self._pool(0, count)
        found = np.minimum(np.searchsorted(pool.ids, ids), len(pool.ids) - 1)
        copies = distinct_copies(pool.tree, Law(), found, count) * (len(pool.ids) / self.drawable)
        return np.where(pool.ids[found] == ids, copies, 0.0)

    def changed(self, ids: Ids) -> None:
        pass

    def grew(self) -> None:
        self._shuffle.grew()

    def retired(self, ids: Ids) -> None:
        self._shuffle.retired(ids)

    def get_state(self) -> Mapping[str, Any]:
        return self._shuffle.get_state()

    def set_draw_state(self, state: Mapping[str, Any]) -> None:
        self._shuffle.set_draw_state(state)

    @property
    def drawable(self) -> int:
        return self._shuffle.drawable

    @property
    def most(self) -> int | None:
        return self.drawable if self._draw.sampling is Sampling.DISTINCT else None

    @property
    def never_reported(self) -> int | None:
        unknown = np.isnan(self._losses)
        return int(np.count_nonzero(unknown)) - int(np.count_nonzero(unknown[self._examples.retired]))

    def effective_sample_ratio(self) -> float:
        if not self.drawable:
            return float("nan")
        pool = self._pool(0, self._batch_size)
        total = pool.tree.total(Law())
        return total**2 / (self.drawable * pool.tree.sum_of_squares(Law()))

    def summary(self, most: int) -> LawSummary:
        """Of the law only what holds beyond one step: the next draw is out of its own few candidates, which says
        nothing of how wide a run draws, and to find them is as much work as a draw."""
        return LawSummary(math.nan, math.nan, unknown_share(self._losses, self._examples.retired, most))

    def check(self) -> None:
        self._shuffle.check()

    @property
    def _losses(self) -> Float32s:
        return self._examples.columns[self._draw.derived[0].name]

    def _pool(self, step: int, count: int) -> _Pool:
        """The candidates for `count` places: `pool` whole batches, whatever the count, but as many as are needed.

        Where the stream meets the end of an epoch an id may come twice, which makes one candidate.
        """
        drawable = self.drawable
        least = min(count, drawable) if self._draw.sampling is Sampling.DISTINCT else 1
        take = min(self._draw.pool * self._batch_size, drawable)
        while True:
            stream = self._shuffle.draw(step, take)
            ids = np.unique(stream.ids)
            if len(ids) >= least:
                break
            take += least
        weights = self._draw.log2_weights(self._losses[ids].astype(np.float64))
        return _Pool(ids, MassTree(exact.quantise(weights, _BITS)), stream.draw_state)
