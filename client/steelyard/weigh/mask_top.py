"""Mask top: leave out the most salient of each group, so that the model learns from the rest.

Within each group of the batch, of N examples: order by the loss or another reported signal, from high to low; drop
ceil(share N) of the highest, or, with `pool` above 1, as many of the highest ceil(pool share N) by lot.

    w_i = n/k for the k that are kept, 0 for the others

In the source the groups are bags of patches, the signal is the attention of a momentum teacher, and share falls to 0
along a cosine; a group here is what of it is in the batch. What differs: its further masks, of random patches and of
those with little attention, are not here; and of each group at least one example is kept, where dropping ceil(share)
of a single one would leave nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.flat import Flags, Flat, Floats
from steelyard.weigh.lots import lots
from steelyard.weigh.rule import Array, Context, Reads, Rule

_ROUNDING = 1e-9


@dataclass(frozen=True)
class MaskTop(Rule):
    """Drops a share of the highest within each group. Of equal ones the earlier is dropped."""

    method: ClassVar[str] = "mask_top"
    source: ClassVar[Source] = Source(
        "Multiple Instance Learning Framework with Masked Hard Instance Mining for Whole Slide Image Classification "
        "(Tang et al., 2023)",
        "masking of high attention; MHIM-MIL masking.py",
    )
    never_reported: ClassVar[str] = (
        "Nothing is remembered; an example whose signal or group is not known is kept."
    )
    reads: ClassVar[Reads] = "losses"
    selects: ClassVar[bool] = True

    share: float = 0.03
    """The part of each group that is dropped, rounded up; the source has 0.01 to 0.05."""
    signal: str = "loss"
    """What is salient: the loss, or another signal of the report."""
    group: str = "group"
    """The column of the group."""
    pool: float = 1.0
    """From how many times as many the dropped are chosen by lot; 1: the very highest, no lots."""
    cosine_steps: int | None = None
    """Where set, share falls to 0 over so many steps along half a cosine."""

    def __post_init__(self) -> None:
        name = self.method
        fields = {
            "share": checks.share(f"{name}.share", self.share),
            "signal": checks.text(f"{name}.signal", self.signal),
            "group": checks.text(f"{name}.group", self.group),
            "pool": checks.number(f"{name}.pool", self.pool, 1.0, 1e6),
        }
        if self.cosine_steps is not None:
            fields["cosine_steps"] = checks.count(f"{name}.cosine_steps", self.cosine_steps, low=1)
        for field, value in fields.items():
            object.__setattr__(self, field, value)

    @property
    def columns(self) -> tuple[str, ...]:
        """The group."""
        return (self.group,)

    @property
    def signals(self) -> tuple[str, ...]:
        """The signal, if it is not the loss."""
        return () if self.signal == "loss" else (self.signal,)

    @property
    def random(self) -> bool:
        """Whether lots decide which of the highest are dropped."""
        return self.pool > 1.0

    def share_at(self, step: int) -> float:
        """The part of each group that is dropped at a step."""
        if self.cosine_steps is None:
            return self.share
        done = min(step / self.cosine_steps, 1.0)
        return self.share * 0.5 * (1.0 + math.cos(math.pi * done)) if done < 1.0 else 0.0

    def weights(self, losses: Array, context: Context) -> Array:
        """n/k for what is kept, 0 for what is dropped; see steelyard.weigh.rule."""
        batch = Flat(self, losses, context)
        salience = batch.losses if self.signal == "loss" else batch.column(self.signal)
        group = batch.column(self.group)
        share = self.share_at(context.step)
        lot = lots(context.seed, context.step, len(batch)) if self.random else np.zeros(len(batch))
        dropped = np.zeros(len(batch), np.bool_)
        for one in np.unique(group[batch.valid & ~np.isnan(group)]) if share > 0.0 else ():
            dropped |= self._dropped(batch.valid & (group == one), salience, lot, share)
        return batch.chosen(~dropped)

    def _dropped(self, members: Flags, salience: Floats, lot: Floats, share: float) -> Flags:
        """bool[m]: what is dropped of one group."""
        places = np.flatnonzero(members & ~np.isnan(salience))
        whole = int(np.sum(members))
        count = min(math.ceil(share * whole - _ROUNDING), whole - 1)
        pool = math.ceil(share * self.pool * whole - _ROUNDING)
        places = places[np.argsort(-salience[places], kind="stable")][:pool]
        dropped = np.zeros(members.size, np.bool_)
        dropped[places[np.argsort(lot[places], kind="stable")][:count]] = True
        return dropped
