"""Just Train Twice: what a first model got wrong comes more often.

    error set E = examples that were wrong when last reported, after `after_epochs` epochs
    then each example of E is there 1 + up_weight times, all others once

The second training begins from a new model: start it yourself, at the step where the first epochs end, or begin a run
of its own with the errors as an uploaded column. up_weight 20, 50 and 100 were tried by the authors; -1 balances:
so many copies, rounded down, that E takes as many places as all others.

More copies are more weight. Do not weigh the same examples up again.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.engines.choice import JudgedDraw
from steelyard_server.policies.draw.engines.subset import Kept
from steelyard_server.policies.draw.rows import Moment, Rows


class Jtt(JudgedDraw):
    """Repeats what the first epochs got wrong."""

    source: ClassVar[Source] = Source(
        "Just Train Twice: Improving Group Robustness without Training Group Information (Liu et al., 2021)",
        "anniesch/jtt run_expt.py: up_weight",
    )
    never_reported: ClassVar[str] = "They are no errors, and come once an epoch."

    method: Literal["jtt"] = "jtt"
    signal: str = Field(default="correct", min_length=1, max_length=64)
    """Whether the model was right, reported with each step: below 0.5 it was not."""
    errors: str | None = Field(default=None, min_length=1, max_length=128)
    """Instead of the signal: a static column that is above 0.5 for the error set. There are no first epochs then."""
    up_weight: Annotated[int, Field(ge=-1, le=10**6)] = 20
    """How many more times an error comes than others; -1 balances both."""
    after_epochs: Annotated[int, Field(ge=1)] = 1
    """How many epochs of all examples the first model is trained for."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        return () if self.errors else (Derived("last", self.signal),)

    @property
    def static(self) -> tuple[str, ...]:
        return (self.errors,) if self.errors else ()

    @property
    def epochs_before(self) -> int:
        return 0 if self.errors else self.after_epochs

    def judge(self, rows: Rows, moment: Moment) -> Kept:
        wrong = rows[self.errors] > 0.5 if self.errors else rows[f"last_{self.signal}"] < 0.5
        live = rows.live
        wrong &= live
        errors = max(int(np.count_nonzero(wrong)), 1)
        balanced = max(int(np.count_nonzero(live & ~wrong)) // errors, 1)
        copies = np.where(wrong, balanced if self.up_weight == -1 else 1 + self.up_weight, 1)
        return Kept(np.ones(rows.size, np.bool_), copies)
