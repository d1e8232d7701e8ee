"""The numbers of a comparison, as text. What it says is decided by the measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def mean_and_spread(values: npt.NDArray[np.float64]) -> str:
    """mean ± standard deviation over the seeds; the value alone where there is one seed."""
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"{values.mean():.4f} ± {values.std(ddof=1):.4f}"


def half_width(differences: npt.NDArray[np.float64]) -> float:
    """Half of the 95 % interval of the mean of paired differences, one for each seed; infinite for one seed."""
    n = len(differences)
    if n == 1:
        return math.inf
    quantile = STUDENT[min(n - 1, len(STUDENT)) - 1]
    return float(quantile * differences.std(ddof=1) / math.sqrt(n))


def verdict(differences: npt.NDArray[np.float64]) -> str:
    """What the paired differences linupper - uniform at the last step, one for each seed, say in plain words."""
    mean, width = differences.mean(), half_width(differences)
    if math.isinf(width):
        return f"One seed cannot tell whether LinUpper is better than uniform here (difference {mean:+.4f})."
    interval = f"{mean:+.4f} ± {width:.4f}, 95 % over {len(differences)} seeds"
    if mean + width < 0:
        return f"LinUpper is better than uniform on this text: its held-out loss is lower ({interval})."
    if mean - width > 0:
        return f"LinUpper is not better than uniform on this text: its held-out loss is higher ({interval})."
    return f"LinUpper is not shown to be better than uniform on this text: no clear difference ({interval})."


def held_out_table(steps: Sequence[int], curves: Mapping[str, npt.NDArray[np.float64]]) -> str:
    """Held-out loss at equal steps: `curves` holds float64[seeds, evaluations] of "uniform" and "linupper"."""
    uniform, linupper = curves["uniform"], curves["linupper"]
    rows = [("step", "uniform", "linupper", "linupper - uniform")]
    rows += [
        (
            str(step),
            mean_and_spread(uniform[:, k]),
            mean_and_spread(linupper[:, k]),
            signed(mean_and_spread(linupper[:, k] - uniform[:, k])),
        )
        for k, step in enumerate(steps)
    ]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, (6, 17, 17, 19), strict=True)) for row in rows
    )


def signed(text: str) -> str:
    return text if text.startswith("-") else "+" + text


def waits(seconds: npt.NDArray[np.float64]) -> str:
    """How long the steps waited for the sampler: float64[steps], in seconds."""
    median, high, most = np.quantile(seconds, [0.5, 0.99, 1.0]) * 1e3
    return f"median {median:.2f} ms, 99 % within {high:.2f} ms, longest {most:.0f} ms"
