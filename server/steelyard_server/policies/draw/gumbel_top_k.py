"""Top k of a perturbed score: a sample without replacement, each pick in proportion to exp(score / temperature).

    key_i = score_i / temperature + Gumbel(0, 1),   keep the largest keys

DSIR: the score is a log importance weight, temperature 1. QuRating: a rating, standardised over the corpus, with
temperature tau, taken until a budget of tokens is met (the last document included), each domain with a quota
proportional to its tokens. GOT-D: without noise, from the bottom of a column of calibrated gradients
(`steelyard.signals.calibrated_gradient`; the sign as remembered from the paper).

The score is an uploaded column. The lots are the run's, so each epoch has the same choice while the columns stay.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from steelyard.source import Source
from steelyard_server.policies.draw.contract import Float32s, Ids
from steelyard_server.policies.draw.engines.choice import (
    JudgedDraw,
    Share,
    ascending,
    mask_of,
    share_of,
    standardised,
)
from steelyard_server.policies.draw.engines.epochs import Float64s
from steelyard_server.policies.draw.engines.subset import Kept
from steelyard_server.policies.draw.rows import Moment, Rows


class GumbelTopK(JudgedDraw):
    """Samples without replacement by a static score; what has none is left out."""

    source: ClassVar[Source] = Source(
        "Data Selection for Language Models via Importance Resampling (Xie et al., 2023); "
        "QuRating: Selecting High-Quality Data for Training Language Models (Wettig et al., 2024)",
        "p-lambda/dsir: Gumbel top-k; QuRating select_subset.py: tokens, domains, normalisation",
    )
    never_reported: ClassVar[str] = "It reads no reports; what lacks a score, a group or tokens is left out."

    method: Literal["gumbel_top_k"] = "gumbel_top_k"
    score: str = Field(default="log_weight", min_length=1, max_length=128)
    """A static column."""
    temperature: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """What the score is divided by before the noise is added: higher is closer to random."""
    noise: bool = True
    """Without it: the top k."""
    normalise: bool = False
    """Standardises the score over all examples that have one first."""
    bottom: bool = False
    """From the lowest score up."""
    keep_share: Share = 0.5
    """How much of what can be judged is kept, where neither `k` nor `budget` is given."""
    k: Annotated[int, Field(ge=1)] | None = None
    """How many are kept, instead of a share."""
    budget: Annotated[int, Field(ge=1)] | None = None
    """So many tokens instead; the example that meets it is included."""
    tokens: str | None = Field(default=None, min_length=1, max_length=128)
    """The static column of their number, for a budget, or for quotas in proportion to it."""
    group: str | None = Field(default=None, min_length=1, max_length=128)
    """A static column: each value of it gets a quota in proportion to its tokens, or to its examples where no tokens
    are named; a quota of examples is rounded."""

    @property
    def static(self) -> tuple[str, ...]:
        return tuple(name for name in dict.fromkeys((self.score, self.tokens, self.group)) if name)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.budget is not None and self.tokens is None:
            raise ValueError("a budget needs tokens, the column of how many each example has")
        if self.budget is not None and self.k is not None:
            raise ValueError("expected k or budget, got both")
        return self

    def objection(self, column: str, values: Float32s) -> str | None:
        if column != self.tokens or not len(values) or values.min() >= 0:
            return None
        at = int(np.flatnonzero(values < 0)[0])
        return f"expected numbers of tokens in {column}, got {values[at]:g} at position {at}"

    def judge(self, rows: Rows, moment: Moment) -> Kept:
        best_first = self._best_first(rows, moment)
        parts, whole = [best_first], self._size(rows, best_first)
        if self.group is not None:
            groups = rows[self.group][best_first]
            parts = [best_first[groups == value] for value in np.unique(groups)]
        sizes = np.array([self._size(rows, part) for part in parts])
        limit = self._limit(len(best_first))
        quotas = limit * (sizes / (whole or 1.0))
        chosen = [self._best(rows, part, quota) for part, quota in zip(parts, quotas, strict=True)]
        return Kept(mask_of(np.concatenate(chosen), rows.size))

    def keys(self, rows: Rows, moment: Moment) -> Float64s:
        """What is kept has the largest of these, float64[size]; NaN where there is no score."""
        scores = rows[self.score].astype(np.float64)
        if self.normalise:
            scores = standardised(scores, rows.live)
        keys = (-scores if self.bottom else scores) / self.temperature
        return keys + moment.gumbel(rows.size) if self.noise else keys

    def _best_first(self, rows: Rows, moment: Moment) -> Ids:
        keys, known = self.keys(rows, moment), self._known(rows)
        if not self.noise:
            return ascending(keys, known, moment)[::-1]
        # Equal ones are too rare for lots.
        ids = np.flatnonzero(known)
        return ids[np.argsort(-keys[ids], kind="stable")]

    def _known(self, rows: Rows) -> npt.NDArray[np.bool_]:
        known = rows.live
        for name in self.static:
            known &= ~np.isnan(rows[name])
        return known

    def _size(self, rows: Rows, ids: Ids) -> float:
        """How much `ids` are: tokens where they are named, or examples."""
        return float(rows[self.tokens][ids].sum(dtype=np.float64)) if self.tokens else float(len(ids))

    def _limit(self, count: int) -> float:
        """How much is taken of all: tokens under a budget, or examples."""
        return float(self.budget or self.k or share_of(self.keep_share, count))

    def _best(self, rows: Rows, best_first: Ids, quota: float) -> Ids:
        if self.budget is None or self.tokens is None:
            return best_first[: round(quota)]
        before = np.cumsum(rows[self.tokens][best_first].astype(np.float64))
        # Taken while what came before does not meet the quota.
        return best_first[: int(np.searchsorted(before, quota, side="left")) + 1]
