"""A sampler's place in its run, as a trainer's checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steelyard.arguments import whole
from steelyard.errors import InvalidArgument

_VERSION = 1


def to_state(run: str, step: int, end: int | None = None) -> dict[str, Any]:
    """The state: plain values, the same on every rank and for any number of ranks. `end`: the step that the pass stops
    before, where it is a pass that is kept and has an end.
    """
    state = {"version": _VERSION, "run": run, "step": step}
    return state if end is None else {**state, "end": end}


def step_of(state: Mapping[str, Any], run: str) -> int:
    """The step to go on from. InvalidArgument: not a state, of a newer version, or of another run than `run`."""
    if not isinstance(state, Mapping) or not {"version", "run", "step"} <= state.keys():
        raise InvalidArgument(
            f"state: expected what state_dict() returned (version, run, step), got {state!r}"
        )
    if state["version"] != _VERSION:
        raise InvalidArgument(
            f"state: expected version {_VERSION}, which this release of steelyard knows; got {state['version']!r}"
        )
    if state["run"] != run:
        raise InvalidArgument(
            f"state: expected one of run {run!r}, which this sampler serves; got one of run {state['run']!r}"
        )
    return whole("state: step", state["step"])


def end_of(state: Mapping[str, Any]) -> int | None:
    """The step that a kept pass stops before, None where the state does not say."""
    end = state.get("end")
    return None if end is None else whole("state: end", end)
