"""The losses that a picture is made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

Float32s = npt.NDArray[np.float32]

DEFAULT = "1024 losses: log-normal around 2 (sigma 0.4), 2 % of them 4 to 8 times as large; seed 0"


def default_losses() -> Float32s:
    """float32[1024], as DEFAULT says: most examples alike, and a few that are hard or wrong."""
    generator = np.random.Generator(np.random.Philox(0))
    losses = 2.0 * np.exp(0.4 * generator.standard_normal(1024))
    outliers = generator.permutation(1024)[:20]
    losses[outliers] *= generator.uniform(4.0, 8.0, 20)
    return losses.astype(np.float32)


def read_losses(path: Path) -> Float32s:
    """The losses in a .npy file, or in a text file with one number a line; those that are not finite are left out.

    ValueError: fewer than 8 are left, or the file holds something else. OSError: it cannot be read.
    """
    try:
        found = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.loadtxt(path, ndmin=1)
        losses = np.asarray(found).astype(np.float32).reshape(-1)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: expected losses, one a line or as a .npy file: {error}") from error
    finite = losses[np.isfinite(losses)]
    if len(finite) < 8:
        raise ValueError(f"{path}: expected at least 8 finite losses, got {len(finite)}")
    return finite
