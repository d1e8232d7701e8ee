"""One figure a method: the panels of its family, what it was made from below them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard_server.catalogue import Entry
from steelyard_server.plots import drawn, mixed, weighed
from steelyard_server.plots.losses import Float32s

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Panels = Callable[[Mapping[str, Any], Float32s, list[Axes]], str]

_PANELS: Mapping[str, tuple[int, Panels]] = {
    "weigh": (2, weighed.panels),
    "draw": (3, drawn.panels),
    "mix": (2, mixed.panels),
}


class PlotError(RuntimeError):
    """No picture can be made; the message says what is missing."""


def save(entry: Entry, parameters: Mapping[str, Any], losses: Float32s, made_from: str, path: Path) -> None:
    """Writes a picture, of the format that the name of `path` ends in.

    `parameters` stand beside the method's example and defaults. PlotError: matplotlib is not installed. ValueError:
    parameters that the method refuses, or a format that matplotlib does not know. OSError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise PlotError(
            "pictures need the packages of the extra `plot`, and 'matplotlib' is not installed: "
            "pip install 'steelyard[plot]'"
        ) from error
    config = {"method": entry.name, **entry.method.example, **parameters}
    count, panels = _PANELS[entry.family]
    figure = Figure(figsize=(4.6 * count, 4.2), layout="constrained")
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    note = panels(config, losses, axes)
    shown = {name: value for name, value in config.items() if name != "method"}
    figure.suptitle(
        f"{entry.family} {entry.name}   {json.dumps(shown) if shown else ''}".rstrip(), fontsize=11
    )
    lines = textwrap.wrap(f"{made_from}. {note}", 75 * count)
    figure.supxlabel("\n".join(lines), fontsize=7, color="0.35")
    figure.savefig(path, dpi=110)
