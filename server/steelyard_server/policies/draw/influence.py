"""Influence scores: prune by VoG, PVI, TracIn, or any score of influence or difficulty, as reported or uploaded.

    VoG     deviation of the input gradient over checkpoints, mean over the inputs; standardised within the class
    PVI     log2 p_model(y|x) - log2 p_null(y) = (L_null - L_model) / ln 2   (steelyard.signals.pvi)
    TracIn  of an example with itself: sum over checkpoints of rate · ||gradient||^2, as remembered from the paper

All three need the model, so trainers report them (`last_vog`, `mean_vog`, ...) or a column is uploaded. Here the
ranking is made, within classes if one is named, and a share is pruned: the lowest, the highest, at random (the
baseline), or by lots where the standardised score over a temperature is the log of the chance (our way to sample by a
score: the authors' exact form is not known to us).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.columns import Derived, parse_derived
from steelyard_server.policies.draw.engines.choice import (
    JudgedDraw,
    Share,
    greatest,
    least,
    scored,
    share_of,
    standardised,
)
from steelyard_server.policies.draw.engines.epochs import Float64s
from steelyard_server.policies.draw.engines.subset import Kept
from steelyard_server.policies.draw.rows import Moment, Rows


class Influence(JudgedDraw):
    """Prunes a share by a score; what has none is kept."""

    source: ClassVar[Source] = Source(
        "Influence Scores at Scale for Efficient Language Data Sampling (Anand et al., 2023)",
        "pruning by a score or at random; VOG (chirag126/VOG) for the scores within a class",
    )
    never_reported: ClassVar[str] = "Kept: what has no score, or no class where one is named, is not judged."

    method: Literal["influence"] = "influence"
    score: str = Field(default="last_vog", min_length=1, max_length=128)
    """A derived column (last_vog, mean_pvi, ...), or a static one."""
    prune: Literal["lowest", "highest", "random", "sampled"] = "lowest"
    """What is left out."""
    keep_share: Share = 0.5
    """How much of what has a score is kept."""
    within: str | None = Field(default=None, min_length=1, max_length=128)
    """The static column of the class: scores are then standardised within each, so that none is pruned away because
    its scores are low."""
    temperature: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Of 'sampled': higher is closer to random."""
    after_epochs: Annotated[int, Field(ge=0)] = 10
    """Of a reported score: how many epochs of all examples come first."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        derived = parse_derived(self.score)
        return (derived,) if derived else ()

    @property
    def static(self) -> tuple[str, ...]:
        score = () if self.derived else (self.score,)
        return score if self.within is None else tuple(dict.fromkeys((*score, self.within)))

    @property
    def epochs_before(self) -> int:
        return self.after_epochs if self.derived else 0

    def judge(self, rows: Rows, moment: Moment) -> Kept:
        keys = self._keys(rows, moment)
        k = share_of(self.keep_share, scored(keys, rows.live))
        best = least if self.prune == "highest" else greatest
        return Kept(best(keys, rows.live, k, moment) | np.isnan(keys))

    def _keys(self, rows: Rows, moment: Moment) -> Float64s:
        """What the examples are ranked by, NaN where one is not judged."""
        classes = None if self.within is None else rows[self.within]
        if self.prune == "random":
            return np.where(np.isnan(rows[self.score]), np.nan, moment.uniform(rows.size))
        if self.prune == "sampled":
            scores = standardised(rows[self.score], rows.live, classes)
            return scores / self.temperature + moment.gumbel(rows.size)
        if classes is None:
            return rows[self.score].astype(np.float64)
        return standardised(rows[self.score], rows.live, classes)
