"""What a picture needs besides the losses, made up from them and stated below it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard_server.plots.losses import Float32s

GROUPS = 3
_WHOLE = ("group", "domain", "cluster", "bucket", "label", "class")


def column(name: str, losses: Float32s) -> Float32s:
    """A static column: groups in turn; a reference is a better model's loss; anything else is the loss itself."""
    if any(word in name for word in _WHOLE):
        return (np.arange(len(losses)) % GROUPS).astype(np.float32)
    if "reference" in name:
        return np.asarray(0.5 * losses[np.argsort(_lots(len(losses), 1), kind="stable")], np.float32)
    return np.array(losses)


def signal(name: str, ids: npt.NDArray[Any], losses: Float32s, step: int) -> Float32s:
    """What is reported of `ids` at a step: right more often the lower the loss; anything else is the loss itself."""
    if name.startswith("correct"):
        rank = np.argsort(np.argsort(losses, kind="stable"))[ids] / max(len(losses) - 1, 1)
        return np.asarray(_lots(len(losses), step + 2)[ids] >= rank, np.float32)
    return np.asarray(losses[ids])


def _lots(size: int, key: int) -> npt.NDArray[np.float64]:
    return np.random.Generator(np.random.Philox(key)).random(size)
