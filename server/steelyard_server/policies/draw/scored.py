"""Ids in proportion to a score column.

The score becomes a weight (transform), the weight an integer mass (a leaf of the tree), and a share `floor` of the
law is spread evenly over all drawable ids. Prioritised replay's p_i ∝ P_i^alpha (Schaul et al. 2016, eq. 1) is
transform "power"; a Boltzmann draw is "softmax".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from steelyard.source import Source
from steelyard_server.core import kernels
from steelyard_server.core.exact import quantise
from steelyard_server.core.kernels.plain.scores import greatest_log2_weight, log2_weights
from steelyard_server.core.kernels.scores import FLAT, POWER, SOFTMAX
from steelyard_server.core.random import Purpose, bits
from steelyard_server.core.sampling import Sampling, distinct_copies, law_for, sample
from steelyard_server.core.tree import CHUNK, Law, MassTree
from steelyard_server.policies.columns import Derived, parse_derived
from steelyard_server.policies.draw.contract import Draw, Drawer, Drawn, Examples, Float32s, Ids

Float64s = npt.NDArray[np.float64]

_LOG2_E = 1.4426950408889634
# A leaf is 32 bits wide. After a rebuild the greatest weight leaves some room for greater ones.
_MOST_BITS = 31.5
_ROOM_BITS = 3
# Below this mean leaf, rounding to whole quanta would show; the leaves are then rebuilt at a finer scale.
_COARSE_MEAN = 1 << 12
# The total mass must stay below 2^63. With a floor f it is that of the leaves divided by 1 - f.
_TOTAL_BITS = 62.5
_MAX_FLOOR = 0.9999


class Scored(Draw):
    """Draws ids by a score column; never-reported examples take the mass that `unseen` states."""

    source: ClassVar[Source] = Source(
        "Prioritized Experience Replay (Schaul et al., 2016), for the power of a score",
        "eq. 1, proportional form",
    )
    never_reported: ClassVar[str] = (
        "As `unseen` states: the greatest mass that any had, the mean one, or that of a score."
    )

    method: Literal["scored"] = "scored"
    score: str = Field(default="last_loss", min_length=1, max_length=128)
    """A derived column (last_loss, mean_loss, ema_loss, count_loss, or of another signal) or a static one."""
    transform: Literal["identity", "power", "softmax"] = "power"
    """Weight of a score s: s, s^alpha, or exp(s / temperature)."""
    alpha: Annotated[float, Field(ge=0, le=64)] = 1.0
    temperature: Annotated[float, Field(ge=1e-9)] = 1.0
    floor: Annotated[float, Field(ge=0, le=_MAX_FLOOR)] = 0.0
    """The share of the law that is uniform over the drawable ids."""
    sampling: Sampling = Sampling.DISTINCT
    unseen: Literal["max", "mean"] | Annotated[float, Field(ge=0)] = "max"
    """Weight of an example without a score: the greatest that any example has had, the mean one of those that have a
    score now, or that of this score."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9

    @property
    def derived(self) -> tuple[Derived, ...]:
        derived = parse_derived(self.score, decay=self.ema_decay)
        return (derived,) if derived else ()

    @property
    def static(self) -> tuple[str, ...]:
        return () if self.derived else (self.score,)

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> ScoredDrawer:
        return ScoredDrawer(self, examples, seed, batch_size, state)

    def objection(self, column: str, values: Float32s) -> str | None:
        if self.transform == "softmax" or column != self.score:
            return None
        # fmin passes NaN over.
        if not len(values) or not np.fmin.reduce(values) < 0:
            return None
        at = int(np.flatnonzero(values < 0)[0])
        return (
            f"expected non-negative values for {column}, which transform {self.transform!r} turns into masses; "
            f"got {values[at]:g} at position {at} (transform 'softmax' takes any finite value)"
        )

    def too_small(self, drawable: int, batch_size: int) -> str | None:
        if self.sampling is Sampling.DISTINCT and drawable < batch_size:
            return f"sampling 'distinct' needs at least batch_size = {batch_size} drawable examples, got {drawable}"
        return super().too_small(drawable, batch_size)

    def log2_weight(self, scores: npt.NDArray[np.floating[Any]]) -> Float64s:
        """log2 of the weight of each score; NaN where there is no score.

        A negative score counts as 0 where masses need it: a policy may find such losses from before it.
        """
        return log2_weights(scores, *self.curve)

    @property
    def curve(self) -> tuple[int, float]:
        """How a score becomes a weight, in the terms of the kernels (core.kernels.scores)."""
        if self.transform == "softmax":
            return SOFTMAX, _LOG2_E / self.temperature
        if self.transform == "identity":
            return POWER, 1.0
        # 0^0 is 1: every known score weighs the same.
        return (POWER, self.alpha) if self.alpha else (FLAT, 0.0)


class _Scale(BaseModel):
    """What the leaves cannot tell. A leaf is round(weight · 2^scale); all leaves have the same scale."""

    model_config = ConfigDict(extra="forbid")

    scale: int = int(_MOST_BITS) - _ROOM_BITS
    greatest: float | None = None
    """The greatest log2 weight that any example has had."""
    coarse_mean: int = _COARSE_MEAN
    """Look for a finer scale when the mean leaf falls below this."""


class ScoredDrawer(Drawer):
    """The leaves follow from the score column, the retired ids and the scale alone.

    The scale changes in one pass over all leaves, where weights outgrow it or have become small against it.
    """

    def __init__(
        self, draw: Scored, examples: Examples, seed: int, batch_size: int, state: Mapping[str, Any] | None
    ) -> None:
        self._draw = draw
        self._examples = examples
        self._seed = seed
        self._batch_size = batch_size
        self._scale = _Scale() if state is None else _Scale.model_validate(state)
        self._curve = draw.curve
        self._unseen_score: float | None = None
        if isinstance(draw.unseen, float):
            self._unseen_score = float(draw.log2_weight(np.array([draw.unseen]))[0])
        if state is None:
            greatest = self._greatest_now()
            self._raise_greatest(greatest)
            self._fit(self._needed(greatest, unseen=self._any_unseen()))
        self._tree = MassTree.filled(examples.size, self._fill)

    def draw(self, step: int, count: int | None = None) -> Drawn:
        order = bits(self._seed, Purpose.ORDER, step)
        chosen = sample(
            self._tree,
            self._law(),
            self._batch_size if count is None else count,
            self._draw.sampling,
            bits(self._seed, Purpose.DRAW, step),
            order,
        )
        return Drawn(chosen.ids, chosen.probability, 1.0 / self._tree.live)

    def copies(self, ids: Ids, count: int) -> Float64s | None:
        if self._draw.sampling is not Sampling.DISTINCT:
            return None
        return distinct_copies(self._tree, self._law(), ids, count)

    def changed(self, ids: Ids) -> None:
        top = self._tree.reweigh(ids, self._scores, *self._curve, self._scale.scale)
        greatest = top if top > -math.inf else None
        self._raise_greatest(greatest)
        self._settle(greatest)

    def grew(self) -> None:
        before = self._most_bits(self._tree.size)
        self._tree.extend(self._examples.size, self._fill)
        narrower = self._most_bits(self._tree.size) < before
        self._settle(self._greatest_now() if narrower else None)

    def retired(self, ids: Ids) -> None:
        self._tree.set(ids, np.zeros(len(ids), np.uint32))
        self._settle(None)

    def get_state(self) -> Mapping[str, Any]:
        return self._scale.model_dump(mode="json")

    def set_draw_state(self, state: Mapping[str, Any]) -> None:
        pass

    def effective_sample_ratio(self) -> float:
        law = self._law()
        total = self._tree.total(law)
        return total**2 / (self._tree.live * self._tree.sum_of_squares(law)) if total else math.nan

    @property
    def drawable(self) -> int:
        return self._tree.live

    @property
    def most(self) -> int | None:
        return self._tree.live if self._draw.sampling is Sampling.DISTINCT else None

    @property
    def never_reported(self) -> int | None:
        return self._tree.unseen

    def check(self) -> None:
        self._tree.check()
        for start in range(0, self._tree.size, CHUNK):
            leaves = self._tree.all_leaves()[start : start + CHUNK]
            expected = np.empty(leaves.size, np.uint32)
            self._fill(start, expected)
            assert np.array_equal(expected, leaves), "leaves differ from the score column"
        needed = self._needed(self._greatest_now(), unseen=self._tree.unseen > 0)
        assert not self._overflows(needed), (needed, self._scale)

    # ---- the law ----

    def _law(self) -> Law:
        return law_for(self._tree, self._unseen_mass(), self._draw.floor)

    def _unseen_mass(self) -> int:
        if self._draw.unseen == "mean" and self._seen:
            return max(1, self._tree.mass // self._seen)
        return _mass_of(self._unseen_log2(), self._scale.scale)

    def _unseen_log2(self) -> float:
        """log2 of the weight of an example without a score, where that is not the mean one."""
        if self._unseen_score is not None:
            return self._unseen_score
        return 0.0 if self._scale.greatest is None else self._scale.greatest

    # ---- the leaves ----

    @property
    def _scores(self) -> Float32s:
        return self._examples.columns[self._draw.score]

    @property
    def _seen(self) -> int:
        return self._tree.live - self._tree.unseen

    def _fill(self, start: int, leaves: npt.NDArray[np.uint32]) -> None:
        """Writes the leaves of the ids from `start` on."""
        stop = start + len(leaves)
        kernels.active.leaves_of(self._scores[start:stop], *self._curve, self._scale.scale, leaves)
        leaves[_between(self._examples.retired, start, stop) - start] = 0

    # ---- the scale ----

    def _settle(self, greatest: float | None) -> None:
        """Rescales where weights up to log2 `greatest` are too great, or where the leaves became coarse."""
        needed = self._needed(greatest, unseen=self._tree.unseen > 0)
        if self._overflows(needed) or self._tree.mass < self._scale.coarse_mean * self._seen:
            self._rescale()

    def _rescale(self) -> None:
        """Takes the scale that today's greatest weight allows, unless the present one is as fine. O(size)."""
        needed = self._needed(self._greatest_now(), unseen=self._tree.unseen > 0)
        if self._overflows(needed) or self._finest(needed) > self._scale.scale:
            self._fit(needed)
            self._tree.refill(self._fill)
        if self._seen:
            # Where one weight dwarfs the others no scale helps: then the next look for one is put off.
            mean = self._tree.mass // self._seen
            self._scale.coarse_mean = _COARSE_MEAN if mean >= _COARSE_MEAN else mean // 4

    def _needed(self, greatest: float | None, *, unseen: bool) -> float | None:
        """The greatest log2 weight that the scale must hold: `greatest` or that of examples without a score."""
        weights = [] if greatest is None else [greatest]
        if unseen and self._draw.unseen != "mean":
            weights.append(self._unseen_log2())
        return max((weight for weight in weights if weight > -math.inf), default=None)

    def _fit(self, needed: float | None) -> None:
        self._scale.scale = self._finest(needed)

    def _finest(self, needed: float | None) -> int:
        """The scale that gives the greatest weight its bits; the present one where there is no weight."""
        if needed is None:
            return self._scale.scale
        return int(self._most_bits(self._examples.size)) - _ROOM_BITS - math.ceil(needed)

    def _overflows(self, needed: float | None) -> bool:
        return needed is not None and needed + self._scale.scale > self._most_bits(self._examples.size)

    def _most_bits(self, size: int) -> float:
        """What the greatest leaf may have: under this, the total mass stays below 2^63 with the floor mixed in."""
        floor = math.ceil(1 / (1 - self._draw.floor)) - 1
        return min(_MOST_BITS, _TOTAL_BITS - size.bit_length() - floor.bit_length())

    def _raise_greatest(self, greatest: float | None) -> None:
        if greatest is not None and (self._scale.greatest is None or greatest > self._scale.greatest):
            self._scale.greatest = greatest

    def _greatest_now(self) -> float | None:
        """log2 of the greatest weight of all scores whose ids may be drawn. O(size)."""
        top = -math.inf
        for start, scores in self._score_chunks():
            gone = _between(self._examples.retired, start, start + len(scores))
            kept = np.delete(scores, gone - start) if len(gone) else scores
            # fmax passes NaN over, and the transforms are monotone.
            top = max(top, float(np.fmax.reduce(kept, initial=np.float32(-np.inf))))
        weight = greatest_log2_weight(np.array([top], np.float32), *self._curve)
        return weight if weight > -math.inf else None

    def _any_unseen(self) -> bool:
        return any(bool(np.isnan(scores).any()) for _, scores in self._score_chunks())

    def _score_chunks(self) -> Iterator[tuple[int, Float32s]]:
        for start in range(0, self._examples.size, CHUNK):
            yield start, self._scores[start : start + CHUNK]


@lru_cache(maxsize=256)
def _mass_of(log2_weight: float, scale: int) -> int:
    """The leaf of one weight."""
    return int(quantise(np.array([log2_weight]), scale)[0])


def _between(ordered: Ids, start: int, stop: int) -> Ids:
    """Those of ascending `ordered` that are in start..stop-1."""
    first, last = np.searchsorted(ordered, (start, stop))
    return ordered[first:last]
