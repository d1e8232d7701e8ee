"""Importance by the losses of the last few steps, in the manner of CacheSampler.

    score_i = 1 + a N (s_i + smooth) / S    for examples whose loss is cached, S = sum of s_j + smooth over these
            = 1                             for all others,   a = cache_prob / (1 - cache_prob)

and p_i ∝ score_i, which is a mixture: with probability cache_prob a cached example in proportion to its loss, otherwise
any example at all. Drawn so, exactly. Where nothing is cached the draw is uniform.

Source: the class CacheSampler of Katharopoulos and Fleuret's code (importance-sampling, samplers.py), with its
cache_prob 0.5, smooth 0.2 and staleness 3, here `stale_after`. The weights that undo it, 1 / (N p), are the weigh rule
'importance'.

What differs: there an entry's age is counted in updates, here in steps that were reported, so that it does not matter
in how many parts the ranks of a job report a step. A loss of step t is dropped when one of step t + stale_after is
folded; whether the authors count the update itself is not known to us. Negative losses count as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core.sampling import Sampling
from steelyard_server.policies.columns import Derived, last_occurrence
from steelyard_server.policies.draw.contract import Drawer, Examples, Float32s, Ids
from steelyard_server.policies.draw.engines.local import ByColumn, SampledDraw, ScoredDrawer

_SCORE, _STEP = "own:score", "own:step"
# A step is kept modulo this, which float32 holds exactly; ages are far below it.
_STEPS = 1 << 22


class LossHistory(SampledDraw):
    """A share of the draws by the losses of the last few steps, the rest uniform."""

    source: ClassVar[Source] = Source(
        "Not All Samples Are Created Equal: Deep Learning with Importance Sampling (Katharopoulos and Fleuret, 2018)",
        "importance-sampling samplers.py, CacheSampler",
    )
    never_reported: ClassVar[str] = "A score of 1, like all that are not cached: the uniform share alone."

    method: Literal["loss_history"] = "loss_history"
    signal: str = Field(default="loss", min_length=1, max_length=64)
    """The reported signal that is cached, 0 or more."""
    cache_prob: Annotated[float, Field(ge=1e-4, le=0.9999)] = 0.5
    """The share of the draws that goes to cached examples by their losses."""
    smooth: Annotated[float, Field(ge=0, le=1e30)] = 0.2
    """Added to each cached loss, so that one of 0 is drawn still."""
    stale_after: Annotated[int, Field(ge=1, le=1 << 16)] = 3
    """A loss is dropped when one that is so many steps newer comes."""
    sampling: Sampling = Sampling.INDEPENDENT

    @property
    def derived(self) -> tuple[Derived, ...]:
        return ()

    @property
    def static(self) -> tuple[str, ...]:
        return ()

    @property
    def own(self) -> tuple[str, ...]:
        return (_SCORE, _STEP)

    @property
    def listens(self) -> tuple[str, ...]:
        return (self.signal,)

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> Drawer:
        return _CacheDrawer(self, examples, seed, batch_size, state)


class _CacheDrawer(ScoredDrawer):
    """A draw by the column of cached scores, NaN where none is, with the uniform share as its floor."""

    def __init__(
        self,
        draw: LossHistory,
        examples: Examples,
        seed: int,
        batch_size: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        by = ByColumn(_SCORE, unseen="none", floor=1.0 - draw.cache_prob, sampling=draw.sampling)
        super().__init__(by, examples, seed, batch_size, None if state is None else state["scale"])
        self._signal = draw.signal
        self._smooth = draw.smooth
        self._stale_after = draw.stale_after
        self._newest: int | None = None if state is None else state["newest"]
        self._cached = {} if self._newest is None else self._found(self._newest)

    def folded(self, step: int, ids: Ids, signals: Mapping[str, Float32s]) -> None:
        values = signals.get(self._signal)
        if values is None:
            return
        if self._newest is None or step > self._newest:
            self._newest = step
            self._drop()
        if step <= self._newest - self._stale_after:
            return
        known = ~np.isnan(values)
        at = last_occurrence(ids[known])
        once, last = ids[known][at], values[known][at].astype(np.float64)
        scores = np.minimum(np.maximum(last, 0.0) + self._smooth, np.finfo(np.float32).max)
        self._put(once, scores.astype(np.float32), np.full(len(once), step % _STEPS, np.float32))
        self._cached.setdefault(step, []).append(once)

    def get_state(self) -> Mapping[str, Any]:
        return {"scale": super().get_state(), "newest": self._newest}

    def check(self) -> None:
        super().check()
        found = {} if self._newest is None else self._found(self._newest)
        for step, parts in found.items():
            known = np.concatenate(self._cached[step])
            assert np.isin(np.concatenate(parts), known).all(), (
                f"a cached loss of step {step} would never be dropped"
            )

    def _drop(self) -> None:
        """Forgets the losses of steps that have become stale."""
        assert self._newest is not None
        found = []
        for step in [step for step in self._cached if step <= self._newest - self._stale_after]:
            ids = np.unique(np.concatenate(self._cached.pop(step)))
            # Those that were reported again since stay.
            found.append(ids[self._examples.columns[_STEP][ids] == step % _STEPS])
        # All at once: the scale that comes of it must not depend on the order in which steps were cached.
        stale = np.concatenate([np.empty(0, np.int64), *found])
        nothing = np.full(len(stale), np.nan, np.float32)
        self._put(stale, nothing, nothing)

    def _put(self, ids: Ids, scores: Float32s, steps: Float32s) -> None:
        self._examples.put(_SCORE, ids, scores)
        self._examples.put(_STEP, ids, steps)
        self.changed(ids)

    def _found(self, newest: int) -> dict[int, list[Ids]]:
        """The cached ids by step, from the columns. O(size)."""
        ids = np.flatnonzero(~np.isnan(self._examples.columns[_STEP]))
        ages = (newest - self._examples.columns[_STEP][ids].astype(np.int64)) % _STEPS
        return {newest - int(age): [ids[ages == age]] for age in np.unique(ages)}
