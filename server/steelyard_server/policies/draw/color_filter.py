"""CoLoR-Filter: keep what a model fine-tuned on the target finds more likely than the one before.

    score_i = L_prior,i - L_conditional,i      (mean loss of a token under each)
    keep the largest n / tau

Both losses are uploaded columns. One selection before training: the columns decide it, at each epoch anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.draw.engines.choice import JudgedDraw, greatest, scored
from steelyard_server.policies.draw.engines.subset import Kept
from steelyard_server.policies.draw.rows import Moment, Rows


class ColorFilter(JudgedDraw):
    """Keeps the n / tau that gained most; what lacks either loss is left out."""

    source: ClassVar[Source] = Source(
        "CoLoR-Filter: Conditional Loss Reduction Filtering for Targeted Language Model Pre-training "
        "(Brandfonbrener et al., 2024)",
        "select_index_np.py; tau 7, 16, 32 and 64 in gen-idx.yaml",
    )
    never_reported: ClassVar[str] = "It reads no reports; what lacks either loss is left out."

    # Of the few examples that the contract is tried with, nearly all.
    example: ClassVar[Mapping[str, Any]] = {"tau": 1.5}

    method: Literal["color_filter"] = "color_filter"
    prior: str = Field(default="prior_loss", min_length=1, max_length=128)
    """The static column of the loss under the model before."""
    conditional: str = Field(default="conditional_loss", min_length=1, max_length=128)
    """That under the model fine-tuned on the target."""
    tau: Annotated[float, Field(ge=1)] = 16.0
    """One in so many of those that have both losses is kept."""

    @property
    def static(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.prior, self.conditional)))

    def judge(self, rows: Rows, moment: Moment) -> Kept:
        gained = rows[self.prior].astype(np.float64) - rows[self.conditional]
        k = max(int(scored(gained, rows.live) / self.tau), 1)
        return Kept(greatest(gained, rows.live, k, moment))
