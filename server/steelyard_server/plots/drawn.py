"""A draw method in a run of its own: what is drawn how often, and when, by the server's own fold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from steelyard_server.core import events as e
from steelyard_server.plots.losses import Float32s
from steelyard_server.plots.made_up import column, signal
from steelyard_server.policies import draw as draws
from steelyard_server.policies.columns import SERVED
from steelyard_server.runs.errors import Invalid
from steelyard_server.runs.spec import explain, parse_spec
from steelyard_server.runs.state import RunState

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EPOCHS = 4
_MOST_EPOCHS = 24


def panels(config: Mapping[str, Any], losses: Float32s, axes: list[Axes]) -> str:
    """Draws into three axes; what was made up, in words."""
    batch_size = max(1, min(32, len(losses) // 4))
    run = _run(config, losses, batch_size)
    signals = _signals(run)
    batches = []
    # A method that chooses once after some epochs is looked at behind them.
    epochs = min(_EPOCHS + (getattr(run.policy.draw, "after_epochs", 0) or 0), _MOST_EPOCHS)
    for _ in range(-(-epochs * len(losses) // batch_size)):
        drawn = run.draw()
        run.apply(drawn)
        told = {name: signal(name, drawn.ids, losses, drawn.step) for name in signals}
        run.apply(e.LossesReported(drawn.step, 0, told))
        batches.append(drawn)
    last = batches[-(-(epochs - _EPOCHS) * len(losses) // batch_size) :]
    _probabilities(last, losses, axes[0])
    _counts(last, losses, axes[1])
    _order(batches, losses, axes[2])
    made_up = ", ".join(name for name in (*signals, *run.policy.static) if name != "loss")
    return (
        f"{len(losses)} examples with these losses, all observed at first; {epochs} epochs' worth of batches of "
        f"{batch_size}, each reported{f'; made up from the losses: {made_up}' if made_up else ''}"
    )


def _run(config: Mapping[str, Any], losses: Float32s, batch_size: int) -> RunState:
    values = {"name": "plot", "dataset": "plot", "batch_size": batch_size, "staleness": 0}
    try:
        draw = draws.METHODS[config["method"]].parse(config)
        weigher = "infobatch_rescale" if draw.gives_weights else "uniform"
        policy = {"draw": dict(config), "weigh": {"method": weigher}}
        spec = parse_spec({**values, **policy}).model_dump(mode="json")
    except ValidationError as error:
        raise ValueError(f"draw: {explain(error)}") from error
    except Invalid as error:
        raise ValueError(str(error)) from error
    run = RunState(e.RunCreated(spec, len(losses)))
    ids = np.arange(len(losses))
    for name in run.policy.static:
        run.apply(e.ColumnSet(name, ids, column(name, losses)))
    run.apply(e.SignalsObserved(None, ids, {name: signal(name, ids, losses, 0) for name in _signals(run)}))
    return run


def _signals(run: RunState) -> list[str]:
    read = {one.signal for one in run.policy.derived if one.signal != SERVED}
    return sorted({"loss", *read, *run.policy.listens})


def _probabilities(batches: list[e.BatchDrawn], losses: Float32s, axes: Axes) -> None:
    """Of one epoch's worth: what each id was drawn with, times the number of examples."""
    first = batches[: -(-len(batches) // _EPOCHS)]
    for drawn in first:
        chances = drawn.probability
        if chances is None:
            chances = np.full(len(drawn.ids), drawn.uniform_probability)
        axes.plot(losses[drawn.ids], chances * len(losses), "C0.", markersize=3, alpha=0.5)
    axes.axhline(1.0, color="0.7", linewidth=0.8)
    axes.set(
        xlabel="loss",
        ylabel="probability · N",
        title=f"chance of what was drawn, {_EPOCHS} epochs from the end",
    )
    axes.set_ylim(bottom=0)
    _log(axes, losses)


def _counts(batches: list[e.BatchDrawn], losses: Float32s, axes: Axes) -> None:
    counts = np.bincount(np.concatenate([drawn.ids for drawn in batches]), minlength=len(losses))
    never = counts == 0
    axes.plot(losses[~never], counts[~never], "C0.", markersize=3, alpha=0.5, label="drawn")
    axes.plot(losses[never], counts[never], "C3.", markersize=3, alpha=0.5, label=f"never: {never.sum()}")
    axes.set(xlabel="loss", ylabel="times", title=f"drawn in the last {_EPOCHS} epochs' worth")
    axes.set_ylim(bottom=-0.2)
    axes.legend(fontsize=7)
    _log(axes, losses)


def _order(batches: list[e.BatchDrawn], losses: Float32s, axes: Axes) -> None:
    steps: npt.NDArray[Any] = np.repeat(
        [drawn.step for drawn in batches], [len(drawn.ids) for drawn in batches]
    )
    axes.plot(
        steps, losses[np.concatenate([drawn.ids for drawn in batches])], "C0.", markersize=1.5, alpha=0.4
    )
    axes.set(xlabel="step", ylabel="loss", title="what came when")
    if losses.min() > 0:
        axes.set_yscale("log")


def _log(axes: Axes, losses: Float32s) -> None:
    if losses.min() > 0:
        axes.set_xscale("log")
