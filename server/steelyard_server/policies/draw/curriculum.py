"""A curriculum over a difficulty: easy to hard, hard to easy, or a window that opens.

    easy_to_hard, hard_to_easy   each epoch goes through the examples in that order
    window                       batch t is uniform over the easiest share, start + (1 - start) t / pace_steps up to 1

The difficulty is an uploaded column (of item response theory as in Easy2Hard-Bench, a rating with its sign turned as
in QuRating), or a derived one, `mean_loss` for example. With `noise` the order is that of
difficulty + noise · Gumbel(0, 1): QuRating's order by sampled ratings, with its tau as the noise.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.columns import Derived, parse_derived
from steelyard_server.policies.draw.engines.epochs import Float64s
from steelyard_server.policies.draw.engines.ordered import OrderedDraw
from steelyard_server.policies.draw.rows import Moment, Rows


class Curriculum(OrderedDraw):
    """Goes through the examples by their difficulty; those without one come last."""

    source: ClassVar[Source] = Source(
        "Easy2Hard-Bench: Standardized Difficulty Labels for Profiling LLM Performance and Generalization "
        "(Ding et al., 2024); QuRating (Wettig et al., 2024)",
        "difficulty as a column; select_subset.py: the order by a (noisy) rating. The window's pace is linear, ours",
    )
    never_reported: ClassVar[str] = "What has no difficulty comes last, in a random order."

    method: Literal["curriculum"] = "curriculum"
    difficulty: str = Field(default="difficulty", min_length=1, max_length=128)
    """A static column, or a derived one; read at the start of each epoch."""
    order: Literal["easy_to_hard", "hard_to_easy", "window"] = "easy_to_hard"
    """Whether epochs go up or down, or batches are drawn from a window that opens from the easy side."""
    noise: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    """How much Gumbel noise is added to the difficulty, anew at each epoch."""
    start: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Of 'window': the share that the first batch is drawn from."""
    pace_steps: Annotated[int, Field(ge=1)] = 1000
    """Of 'window': the step from which all are drawn."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        derived = parse_derived(self.difficulty)
        return (derived,) if derived else ()

    @property
    def static(self) -> tuple[str, ...]:
        return () if self.derived else (self.difficulty,)

    def keys(self, rows: Rows, moment: Moment) -> Float64s:
        keys = rows[self.difficulty].astype(np.float64)
        if self.order == "hard_to_easy":
            keys = -keys
        return keys + self.noise * moment.gumbel(rows.size) if self.noise else keys

    def share(self, step: int) -> float | None:
        if self.order != "window":
            return None
        return min(1.0, self.start + (1.0 - self.start) * step / self.pace_steps)
