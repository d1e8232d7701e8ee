"""A weigh rule: the weight of each loss of one batch, and what the batch looks like once they count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from steelyard import weigh
from steelyard_server.plots.losses import Float32s
from steelyard_server.plots.made_up import column, signal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BATCHES_BEFORE = 20


def panels(config: Mapping[str, Any], losses: Float32s, axes: list[Axes]) -> str:
    """Draws into two axes; what was made up, in words."""
    rule = weigh.parse(config)
    weights, told = _weights(rule, losses)
    against, histogram = axes
    order = np.argsort(losses)
    against.plot(losses[order], weights[order], ".", markersize=3, alpha=0.6)
    against.set(xlabel="loss", ylabel="weight", title="weight of each loss", xscale=_scale(losses))
    against.axhline(1.0, color="0.7", linewidth=0.8)
    bins = _bins(losses)
    histogram.hist(losses, bins, color="0.8", label="as they came")
    histogram.hist(losses, bins, weights=weights, histtype="step", label="as they count")
    histogram.set(xlabel="loss", ylabel="examples", title="the batch", xscale=_scale(losses))
    histogram.legend(fontsize=7)
    return told


def _weights(rule: weigh.Rule, losses: Float32s) -> tuple[npt.NDArray[Any], str]:
    size, told = len(losses), ["one batch of all losses"]
    mean = float(losses.mean())
    probability = np.full(size, 1.0 / size)
    weight = np.ones(size, np.float32)
    if rule.reads in ("probability", "draw"):
        probability = np.maximum(losses, 1e-6) / np.maximum(losses, 1e-6).sum()
        weight = np.where(losses < mean, 2.0, 1.0).astype(np.float32)
        told.append("drawn in proportion to the loss; the draw's own weight is 2 below the mean loss")
    ids = np.arange(size)
    columns = {name: column(name, losses) for name in rule.columns}
    columns.update({name: signal(name, ids, losses, 0) for name in rule.signals})
    if columns:
        told.append(f"made up: {', '.join(columns)}")
    past: Mapping[str, npt.NDArray[np.float64]] | None = None
    steps = _BATCHES_BEFORE if rule.remembers else 0
    if steps:
        told.append(f"after {steps} such batches")
    for step in range(steps):
        context = weigh.Context(step, probability, size, None, columns, weight, past)
        past = rule.remember(losses, context)
    context = weigh.Context(steps, probability, size, None, columns, weight, past)
    return np.asarray(rule.weights(losses, context)), "; ".join(told)


def _scale(losses: Float32s) -> str:
    return "log" if losses.min() > 0 else "linear"


def _bins(losses: Float32s) -> list[float]:
    low, high = float(losses.min()), float(losses.max())
    high = high if high > low else low + 1.0
    edges = np.geomspace(low, high, 40) if low > 0 else np.linspace(low, high, 40)
    return [float(edge) for edge in edges]
