"""AFLite: leave out, round by round, what simple classifiers predict too well.

    predictability_i = share of held-out predictions of i that were right: the mean of the reported signal `correct`
    each round leaves out at most k, the most predictable of those with predictability >= threshold; for good

The classifiers are trained outside: each on a random part, and what it says of the rest is reported with `observe`.
An answer to an example that the classifier was trained on says nothing, so do not report those. With predictability
uploaded as a column, each round reads the column as it then is.

Our defaults (k 500, threshold 0.75) are as remembered from the paper; the authors' repository holds no such code. A
round comes with an epoch, the first after `after_epochs`; rounds go on until none is above the threshold.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.columns import Derived, parse_derived
from steelyard_server.policies.draw.engines.choice import everything, greatest
from steelyard_server.policies.draw.engines.subset import COPIES, Kept, SubsetDraw
from steelyard_server.policies.draw.rows import Moment, Rows


class Aflite(SubsetDraw):
    """Leaves out the most predictable, at most k a round, and never takes one back."""

    source: ClassVar[Source] = Source(
        "WinoGrande: An Adversarial Winograd Schema Challenge at Scale (Sakaguchi et al., 2020)",
        "algorithm AFLite, the filtering step",
    )
    never_reported: ClassVar[str] = "Kept: what nobody predicted is not judged."

    method: Literal["aflite"] = "aflite"
    score: str = Field(default="mean_correct", min_length=1, max_length=128)
    """A derived column, or a static one."""
    threshold: float = 0.75
    """From which predictability on an example may be left out."""
    k: Annotated[int, Field(ge=1)] = 500
    """How many a round leaves out at most."""
    rounds: Annotated[int, Field(ge=1)] | None = None
    """After so many, nothing more is left out. None: no end."""
    every: Annotated[int, Field(ge=1)] = 1
    """Epochs from one round to the next."""
    after_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs of all examples before the first round."""
    least: Annotated[int, Field(ge=1)] = 1
    """No round leaves fewer examples than this."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        derived = parse_derived(self.score)
        return (derived,) if derived else ()

    @property
    def static(self) -> tuple[str, ...]:
        return () if self.derived else (self.score,)

    def keep(self, rows: Rows, moment: Moment) -> Kept | None:
        since = moment.epoch - self.after_epochs
        if since < 0:
            return everything(rows)
        if since % self.every or (self.rounds is not None and since // self.every >= self.rounds):
            return None
        # Those appended since the round before have NaN there, and are in.
        there = rows[COPIES] != 0
        left = there & rows.live
        predictable = left & (rows[self.score] >= self.threshold)
        room = max(int(np.count_nonzero(left)) - self.least, 0)
        return Kept(there & ~greatest(rows[self.score], predictable, min(self.k, room), moment))
