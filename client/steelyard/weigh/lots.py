"""The lots that a random rule draws: a function of (seed, step, position)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_PURPOSE = 0x5745494748  # apart from every stream that a draw reads


def lots(seed: int, step: int, count: int, stream: int = 0) -> npt.NDArray[np.float64]:
    """float64[count] uniform on (0, 1), never at its ends; `stream` tells the uses of one step apart.

    Raw words of Philox only, which NumPy promises for ever; position i gets the i-th.
    """
    philox = np.random.Philox(
        key=np.array([seed % 2**64, _PURPOSE], np.uint64),
        counter=np.array([0, 0, stream, step], np.uint64),
    )
    words = philox.random_raw(count) >> np.uint64(12)
    # 52 bits and a half: exact, and no end of the interval can come.
    return (words.astype(np.float64) + 0.5) * 2.0**-52
