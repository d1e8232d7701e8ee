"""Data Diet: keep the examples of the highest early scores, or a window of the ranking.

    score_i = mean over independent runs (or reports) of EL2N, ||softmax(logits) - onehot(y)||_2, or of GraNd
    keep the k largest (smallest, largest in absolute value), or places [offset, offset + k) in ascending order

The window leaves out the `offset` easiest and the hardest, which are often noise. The scores are reported or observed
as a signal (its mean is kept here), or uploaded as a column. `steelyard.signals.el2n` computes one.

Against the authors' code: they prune before a run, by scores of ten others; a run that reports its own scores is
judged after `after_epochs`, our default of 10 as remembered from the paper, and its choice then stands.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.columns import Derived, parse_derived
from steelyard_server.policies.draw.engines.choice import JudgedDraw, Share, least, scored, share_of
from steelyard_server.policies.draw.engines.subset import Kept
from steelyard_server.policies.draw.rows import Moment, Rows


class DataDiet(JudgedDraw):
    """Keeps the highest scores, or a window of them; what has no score is kept."""

    source: ClassVar[Source] = Source(
        "Deep Learning on a Data Diet: Finding Important Examples Early in Training (Paul et al., 2021)",
        "data_diet/data.py and scores.py: top scores, and the offset window",
    )
    never_reported: ClassVar[str] = "Kept, besides those that are chosen: what has no score is not judged."

    method: Literal["data_diet"] = "data_diet"
    score: str = Field(default="mean_el2n", min_length=1, max_length=128)
    """A derived column, or a static one."""
    keep_share: Share = 0.5
    """How much of what has a score is kept, where `k` is not given."""
    k: Annotated[int, Field(ge=1)] | None = None
    """How many are kept, instead of a share."""
    by: Literal["largest", "smallest", "absolute"] = "largest"
    """Which end of the ranking is kept."""
    offset: Annotated[int, Field(ge=0)] | None = None
    """The window of ascending scores that begins there is kept; `by` then has no say, but 'absolute' still ranks by
    the absolute score. It moves down as far as k places need."""
    after_epochs: Annotated[int, Field(ge=0)] = 10
    """Of a reported score: how many epochs of all examples come first. 0 is for scores observed before the run."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        derived = parse_derived(self.score)
        return (derived,) if derived else ()

    @property
    def static(self) -> tuple[str, ...]:
        return () if self.derived else (self.score,)

    @property
    def epochs_before(self) -> int:
        return self.after_epochs if self.derived else 0

    def judge(self, rows: Rows, moment: Moment) -> Kept:
        scores, live = rows[self.score], rows.live
        if self.by == "absolute":
            scores = np.abs(scores)
        count = scored(scores, live)
        k = min(self.k or share_of(self.keep_share, count), count)
        if self.offset is not None:
            start = min(self.offset, count - k)
        else:
            start = 0 if self.by == "smallest" else count - k
        below = least(scores, live, start, moment)
        return Kept((least(scores, live, start + k, moment) & ~below) | np.isnan(scores))
