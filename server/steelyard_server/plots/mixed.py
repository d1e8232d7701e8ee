"""A mix method over a simulated training: groups that learn the faster the more they are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from steelyard_server.plots.losses import Float32s
from steelyard_server.plots.made_up import GROUPS, column
from steelyard_server.policies import mix as mixes
from steelyard_server.policies.mix import GroupReport
from steelyard_server.runs.spec import explain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STEPS = 400
_MOST_STEPS = 20_000
_ROWS = 48
_NOISE = 0.05
_FLOOR = 0.3

Float64s = npt.NDArray[np.float64]


def panels(config: Mapping[str, Any], losses: Float32s, axes: list[Axes]) -> str:
    """Draws into two axes; what was made up, in words."""
    try:
        mix = mixes.METHODS[config["method"]].parse(config)
    except ValidationError as error:
        raise ValueError(f"mix: {explain(error)}") from error
    whole = np.array([len(part) for part in _parts(losses)], np.int64)
    sizes = _kept(mix, losses, whole)
    steps = min(max(_STEPS, 5 * int(getattr(mix, "every", 0))), _MOST_STEPS)
    shares, group_losses = _train(mix, losses, sizes, steps)
    for group in range(GROUPS):
        label = f"group {group}: {whole[group]} examples"
        axes[0].plot(shares[:, group], label=label, linewidth=1)
        axes[1].plot(group_losses[:, group], label=label, linewidth=1)
    axes[0].set(xlabel="step", ylabel="share of a batch", ylim=(0, 1), title="masses, summing to 1")
    axes[0].legend(fontsize=7)
    axes[1].set(xlabel="step", ylabel="loss", title="simulated loss of each group")
    chosen = "" if (sizes == whole).all() else f"keeps {sizes.tolist()} of {len(losses)} examples; "
    return chosen + (
        f"three groups: the losses in ascending order, cut at 1/2 and 5/6; {steps} steps with {_ROWS} reports each "
        f"by the masses; each group's loss falls to {_FLOOR:g} of its mean as it is drawn, the harder the slower"
    )


def _kept(mix: mixes.Mix, losses: Float32s, whole: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many examples of each group there are to draw: where the method chooses among them, those that it keeps."""
    groups = np.repeat(np.arange(GROUPS), whole)
    kept = mix.keep(groups, {name: column(name, np.sort(losses)) for name in mix.columns}, 0)
    return whole if kept is None else np.bincount(groups[kept], minlength=GROUPS)


def _parts(losses: Float32s) -> list[Float32s]:
    """The losses in ascending order, in groups of unequal size."""
    ordered, size = np.sort(losses), len(losses)
    return np.split(ordered, [size // 2, size * 5 // 6])


def _train(
    mix: mixes.Mix, losses: Float32s, sizes: npt.NDArray[np.int64], steps: int
) -> tuple[Float64s, Float64s]:
    """The shares and the mean losses of the groups at each step: float64[steps, K] both."""
    start = np.array([part.mean() for part in _parts(losses)], np.float64)
    columns = {name: column(name, np.sort(losses)).astype(np.float64) for name in mix.columns}
    whole = np.array([len(part) for part in _parts(losses)], np.int64)
    first = np.concatenate([[0], np.cumsum(whole)[:-1]])
    generator = np.random.Generator(np.random.Philox(1))
    state, drawn = mix.start(sizes), np.zeros(GROUPS)
    shares, seen = np.empty((steps, GROUPS)), np.empty((steps, GROUPS))
    for step in range(steps):
        masses = np.where(sizes > 0, mix.masses(state, sizes, step), 0.0)
        shares[step] = masses / masses.sum()
        seen[step] = start * (
            _FLOOR + (1 - _FLOOR) * np.exp(-drawn / (0.3 * steps * np.arange(1, GROUPS + 1)))
        )
        drawn += shares[step]
        groups = np.repeat(np.arange(GROUPS), _comb(shares[step]))
        rows = first[groups] + generator.integers(0, whole[groups])
        noise = 1 + _NOISE * generator.standard_normal(len(groups))
        values = dict.fromkeys(mix.signals, seen[step][groups] * noise)
        values.update({name: column[rows] for name, column in columns.items()})
        state = mix.update(state, GroupReport(step, groups, values, sizes))
    return shares, seen


def _comb(shares: Float64s) -> npt.NDArray[np.int64]:
    """How many of _ROWS each group gets."""
    edges = np.rint(np.cumsum(shares) * _ROWS).astype(np.int64)
    return np.diff(edges, prepend=0)
