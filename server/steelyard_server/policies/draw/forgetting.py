"""Forgetting: keep the examples that the model unlearns most often.

    forgotten_i = how often a right answer to i was followed by a wrong one, over the presentations of i
    never answered right: as many as its presentations, or infinitely many
    sorted ascending, the least forgotten are dropped

The counts are folded from the reported signal `correct` (0 or 1) exactly, one report after the other
(policies/columns.py). They begin when the policy does: only losses have a history to fold from.

The authors count over a whole run and prune the next. Here the same run goes on with what was kept after
`after_epochs`; to prune before a run, upload the counts as a column and draw by `influence`.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.engines.choice import JudgedDraw, Share, greatest, scored, share_of
from steelyard_server.policies.draw.engines.epochs import Float64s
from steelyard_server.policies.draw.engines.subset import Kept
from steelyard_server.policies.draw.rows import Moment, Rows


class Forgetting(JudgedDraw):
    """Keeps the most forgotten; what was never reported is kept."""

    source: ClassVar[Source] = Source(
        "An Empirical Study of Example Forgetting during Deep Neural Network Learning (Toneva et al., 2019)",
        "order_examples_by_forgetting.py; data_diet/forgetting.py for the rule of one report",
    )
    never_reported: ClassVar[str] = "Kept: what was never presented is not judged."

    method: Literal["forgetting"] = "forgetting"
    signal: str = Field(default="correct", min_length=1, max_length=64)
    """Whether the model was right, reported with each step: 0 or 1."""
    never_learned: Literal["presentations", "infinite"] = "presentations"
    """What counts for examples that were never answered right: as many as they were presented (Toneva et al.), or more
    than any other has (Data Diet)."""
    keep_share: Share = 0.5
    """How much of what was reported is kept: the most forgotten."""
    drop_up_to: Annotated[int, Field(ge=0)] | None = None
    """Instead of a share: those forgotten so often or less are dropped. 0 drops the unforgettable."""
    after_epochs: Annotated[int, Field(ge=0)] = 10
    """How many epochs of all examples come first."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        return (Derived("forgotten", self.signal),)

    @property
    def epochs_before(self) -> int:
        return self.after_epochs

    def counts(self, rows: Rows) -> Float64s:
        """How often each was forgotten, never learned ones as configured: float64[size], NaN where never reported."""
        forgotten = rows[f"forgotten_{self.signal}"].astype(np.float64)
        never = rows[f"learned_{self.signal}"] == 0
        presented = rows[f"count_{self.signal}"].astype(np.float64)
        return np.where(never, np.inf if self.never_learned == "infinite" else presented, forgotten)

    def judge(self, rows: Rows, moment: Moment) -> Kept:
        counts = self.counts(rows)
        if self.drop_up_to is not None:
            return Kept(~(counts <= self.drop_up_to))
        k = share_of(self.keep_share, scored(counts, rows.live))
        return Kept(greatest(counts, rows.live, k, moment) | np.isnan(counts))
