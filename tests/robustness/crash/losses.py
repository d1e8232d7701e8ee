"""Losses that are a pure function of run, attempt, step and id.

Of the attempt too: so a report of a superseded attempt that were folded after all would show.
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

_ODD = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
NONFINITE_ONE_IN = 256


def losses_of(run: str, attempt: int, step: int, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """float32[n] in 0.1 .. 6.1, now and then NaN."""
    salt = zlib.crc32(f"{run} {attempt} {step}".encode())
    bits = _mixed(ids.astype(np.uint64) * np.uint64(_ODD[0]) + np.uint64(salt))
    values = ((bits >> np.uint64(40)).astype(np.float64) / (1 << 24) * 6 + 0.1).astype(np.float32)
    values[bits % np.uint64(NONFINITE_ONE_IN) == 0] = np.nan
    return values


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A fixed permutation of 64-bit words that leaves no pattern (the finaliser of SplitMix64)."""
    for shift, factor in ((30, _ODD[1]), (27, _ODD[2])):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(31))
