"""InfoBatch, its weighing half: what the draw kept in place of others counts for them.

    w_i = 1 / keep   for a well-learned example that survived the pruning,   1 for all others

The draw `infobatch` prunes at each epoch's start and gives every row that weight; this rule hands it on, so that the
mean over an epoch is that of the dataset. Nothing is normalised: a batch with many survivors counts more, as in the
authors' code. Under a draw that gives no weights every one is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from steelyard.source import Source
from steelyard.weigh.namespace import as_float, cast, counted, namespace, same_kind
from steelyard.weigh.rule import Array, Context, Reads, Rule


@dataclass(frozen=True)
class InfobatchRescale(Rule):
    """The draw's own weights. One that is no finite number of at least 0 counts as 1."""

    method: ClassVar[str] = "infobatch_rescale"
    source: ClassVar[Source] = Source(
        "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning (Qin et al., 2024)",
        "rescaling of the gradients; infobatch.py",
    )
    never_reported: ClassVar[str] = "They weigh 1: the draw does not prune them."
    reads: ClassVar[Reads] = "draw"

    def weights(self, losses: Array, context: Context) -> Array:
        """What the draw gave; see steelyard.weigh.rule."""
        losses = as_float(losses)
        xp = namespace(losses)
        mask, _ = counted(losses, context.mask)
        weights = xp.ones_like(losses)
        if context.weight is not None:
            given = as_float(same_kind("weight", context.weight, losses))
            known = xp.isfinite(given) & (given >= 0.0)
            weights = cast(xp.where(known, given, 1.0), losses.dtype)
        return weights if mask is None else xp.where(mask, weights, 0.0)
