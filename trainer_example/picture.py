"""The picture of a comparison: how the losses fell, and how they are spread over the examples in the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt

mpl.use("agg")  # needs no display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {"uniform": "#3b6fb6", "linupper": "#d1603d"}
SMOOTHED_STEPS = 20


def draw(
    path: Path,
    *,
    evaluated: Sequence[int],
    held_out: Mapping[str, npt.NDArray[np.float64]],
    training: Mapping[str, npt.NDArray[np.float64]],
    last: Mapping[str, npt.NDArray[np.float64]],
    killed_at: Sequence[int],
) -> None:
    """Writes a PNG. By weigher: `held_out` float64[seeds, evaluations], `training` float64[seeds, steps], `last`
    float64[n]. Bands are one standard deviation over the seeds to each side.
    """
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4), constrained_layout=True)
    for name, colour in COLOURS.items():
        band(left, evaluated, held_out[name], name, colour)
        steps = np.arange(SMOOTHED_STEPS, training[name].shape[1] + 1)
        band(middle, steps, smoothed(training[name]), name, colour)
    bins = np.linspace(0, np.quantile(np.concatenate(list(last.values())), 0.998), 60)
    for name, colour in COLOURS.items():
        right.hist(last[name], bins, density=True, histtype="step", color=colour, label=name)
    left.set(title="text never trained on", xlabel="step", ylabel="loss per byte, nats")
    middle.set(title=f"batches trained on, unweighed, mean of {SMOOTHED_STEPS} steps", xlabel="step")
    right.set(title="last loss of each example, second half", xlabel="loss per byte, nats", ylabel="density")
    for axes in (left, middle):
        for k, step in enumerate(sorted(set(killed_at))):
            axes.axvline(step, color="grey", linewidth=0.6, linestyle=":", label="" if k else "server killed")
    for axes in (left, middle, right):
        axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def band(
    axes: Axes, x: Sequence[int] | npt.NDArray[np.int64], y: npt.NDArray[np.float64], name: str, colour: str
) -> None:
    mean, spread = y.mean(axis=0), y.std(axis=0, ddof=min(1, len(y) - 1))
    axes.plot(x, mean, color=colour, label=name, marker="." if len(x) < SMOOTHED_STEPS else "")
    axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)


def smoothed(curves: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Means of SMOOTHED_STEPS steps in a row: float64[seeds, steps] to float64[seeds, steps - SMOOTHED_STEPS + 1]."""
    windows = np.lib.stride_tricks.sliding_window_view(curves, SMOOTHED_STEPS, axis=1)
    means: npt.NDArray[np.float64] = windows.mean(axis=-1)
    return means
