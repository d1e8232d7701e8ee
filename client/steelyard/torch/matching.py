"""Whether losses belong to the batch that they are reported for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from steelyard.errors import InvalidArgument, MismatchedLosses
from steelyard.torch.pending import Part

# Ids of an error message.
_SHOWN = 8


def check_losses(part: Part, losses: Any) -> None:
    """MismatchedLosses: not a tensor of one loss for each id."""
    if isinstance(losses, torch.Tensor) and losses.shape == (part.count,):
        return
    came = f"shape {tuple(losses.shape)}" if isinstance(losses, torch.Tensor) else type(losses).__name__
    raise MismatchedLosses(
        f"{part}: expected a tensor of {part.count} losses, one for each id of the batch, got {came}; make the loss "
        'with reduction="none", and reduce every dimension but the first'
    )


def check_ids(part: Part, ids: Any) -> None:
    """MismatchedLosses: other ids, or in another order. `ids` are in host memory: a tensor, an array or a list."""
    came = np.asarray(ids).reshape(-1)
    if len(came) != part.count:
        raise MismatchedLosses(f"{part}: expected {part.count} ids, got {len(came)}")
    differ = np.flatnonzero(came != part.ids)
    if len(differ):
        raise MismatchedLosses(
            f"{part}: expected the ids {_few(part.ids)}, got {_few(came)}; {len(differ)} differ, the first at position "
            f"{differ[0]}. Losses are reported in the order in which batches were served"
        )


def signal_tensors(part: Part, signals: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The signals as tensors. MismatchedLosses: another count than the losses."""
    if "loss" in signals:
        raise InvalidArgument('signals: "loss" is what the losses are reported as; expected another name')
    tensors = {name: torch.as_tensor(values) for name, values in signals.items()}
    for name, tensor in tensors.items():
        if tensor.shape != (part.count,):
            raise MismatchedLosses(
                f"{part}: signal {name!r}: expected {part.count} numbers, one for each loss, got shape "
                f"{tuple(tensor.shape)}"
            )
    return tensors


def _few(ids: Any) -> str:
    text = ", ".join(str(one) for one in ids[:_SHOWN])
    return f"[{text}, ...]" if len(ids) > _SHOWN else f"[{text}]"
