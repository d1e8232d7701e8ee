"""Drawing in proportion to one column, through the integer tree: the weight of a row follows from that row alone.

A number of the column becomes a weight (curve), the weight an integer mass (a leaf of the tree), and a share `floor`
of the law is spread evenly over all drawable ids.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from steelyard_server.core import kernels
from steelyard_server.core.exact import quantise
from steelyard_server.core.kernels.plain.scores import greatest_log2_weight, log2_weights
from steelyard_server.core.kernels.scores import POWER
from steelyard_server.core.random import Purpose, bits
from steelyard_server.core.sampling import Sampling, distinct_copies, law_for, sample
from steelyard_server.core.tree import CHUNK, Law, MassTree
from steelyard_server.policies.draw.contract import Draw, Drawer, Drawn, Examples, Float32s, Ids, LawSummary

# A leaf is 32 bits wide. After a rebuild the greatest weight leaves some room for greater ones.
_MOST_BITS = 31.5
_ROOM_BITS = 3
# Below this mean leaf, rounding to whole quanta would show; the leaves are then rebuilt at a finer scale.
COARSE_MEAN = 1 << 12
# The total mass must stay below 2^63. With a floor f it is that of the leaves divided by 1 - f.
_TOTAL_BITS = 62.5
MAX_FLOOR = 0.9999


class SampledDraw(Draw):
    """A draw from the tree."""

    sampling: Sampling = Sampling.DISTINCT
    """independent: with replacement; stratified: with replacement, one from each of batch_size equal parts of the law;
    distinct: no id twice."""

    def too_small(self, drawable: int, batch_size: int) -> str | None:
        if self.sampling is Sampling.DISTINCT and drawable < batch_size:
            return f"sampling 'distinct' needs at least batch_size = {batch_size} drawable examples, got {drawable}"
        return super().too_small(drawable, batch_size)


class MassDraw(SampledDraw):
    """A draw from the tree that may be mixed with the uniform one."""

    floor: Annotated[float, Field(ge=0, le=MAX_FLOOR)] = 0.0
    """The share of the law that is uniform over the drawable ids."""


@dataclass(frozen=True, slots=True)
class ByColumn:
    """The law of a draw by one column.

    `curve` says how a number becomes a weight, in the terms of the kernels (core.kernels.scores). A row without a
    number weighs as `unseen` says: the greatest weight that any row has had, the mean one of those that have one now,
    nothing ("none"), or the weight of that number. `greatest` is log2 of the greatest weight before any row had one.
    """

    column: str
    curve: tuple[int, float] = (POWER, 1.0)
    unseen: Literal["max", "mean", "none"] | float = "max"
    floor: float = 0.0
    sampling: Sampling = Sampling.DISTINCT
    greatest: float | None = None


class _Scale(BaseModel):
    """What the leaves cannot tell. A leaf is round(weight · 2^scale); all leaves have the same scale."""

    model_config = ConfigDict(extra="forbid")

    scale: int = int(_MOST_BITS) - _ROOM_BITS
    greatest: float | None = None
    """The greatest log2 weight that any example has had."""
    coarse_mean: int = COARSE_MEAN
    """Look for a finer scale when the mean leaf falls below this."""


class ScoredDrawer(Drawer):
    """The leaves follow from the column, the retired ids and the scale alone.

    The scale changes in one pass over all leaves, where weights outgrow it or have become small against it.
    """

    def __init__(
        self, by: ByColumn, examples: Examples, seed: int, batch_size: int, state: Mapping[str, Any] | None
    ) -> None:
        self._by = by
        self._examples = examples
        self._seed = seed
        self._batch_size = batch_size
        self._scale = _Scale() if state is None else _Scale.model_validate(state)
        self._curve = by.curve
        self._unseen_score: float | None = None
        if isinstance(by.unseen, float):
            self._unseen_score = float(log2_weights(np.array([by.unseen]), *by.curve)[0])
        if state is None:
            self._raise_greatest(by.greatest)
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
            self._by.sampling,
            bits(self._seed, Purpose.DRAW, step),
            order,
        )
        return Drawn(chosen.ids, chosen.probability, 1.0 / self._tree.live)

    def copies(self, ids: Ids, count: int) -> npt.NDArray[np.float64] | None:
        if self._by.sampling is not Sampling.DISTINCT:
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

    def summary(self, most: int) -> LawSummary:
        law = self._law()
        total = self._tree.total(law)
        return LawSummary(
            self.effective_sample_ratio(),
            self._tree.greatest(law, most) / total if total else math.nan,
            self._never_reported_share(most),
        )

    def _never_reported_share(self, most: int) -> float | None:
        unseen, left = self.never_reported, self._examples.size - len(self._examples.retired)
        return None if unseen is None or not left else unseen / left

    @property
    def drawable(self) -> int:
        return self._tree.live

    @property
    def most(self) -> int | None:
        return self._tree.live if self._by.sampling is Sampling.DISTINCT else None

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
        return law_for(self._tree, self._unseen_mass(), self._by.floor)

    def _unseen_mass(self) -> int:
        if self._by.unseen == "none":
            return 0
        if self._by.unseen == "mean" and self._seen:
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
        return self._examples.columns[self._by.column]

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
            self._scale.coarse_mean = COARSE_MEAN if mean >= COARSE_MEAN else mean // 4

    def _needed(self, greatest: float | None, *, unseen: bool) -> float | None:
        """The greatest log2 weight that the scale must hold: `greatest` or that of examples without a score."""
        weights = [] if greatest is None else [greatest]
        if unseen and self._by.unseen not in ("mean", "none"):
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
        floor = math.ceil(1 / (1 - self._by.floor)) - 1
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


# Under a mix each group has a scale of its own.
@lru_cache(maxsize=1 << 14)
def _mass_of(log2_weight: float, scale: int) -> int:
    """The leaf of one weight."""
    return int(quantise(np.array([log2_weight]), scale)[0])


def _between(ordered: Ids, start: int, stop: int) -> Ids:
    """Those of ascending `ordered` that are in start..stop-1."""
    first, last = np.searchsorted(ordered, (start, stop))
    return ordered[first:last]
