"""A sampler's place in its run, as a trainer's checkpoint holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steelyard.arguments import whole
from steelyard.errors import InvalidArgument
from steelyard.run import Run

_VERSION = 1


def to_state(run: str, step: int, end: int | None = None) -> dict[str, Any]:
    """The state: plain values, the same on every rank and for any number of ranks. `end`: the step that the pass stops
    before, where it is a pass that is kept and has an end.
    """
    state = {"version": _VERSION, "run": run, "step": step}
    return state if end is None else {**state, "end": end}


def step_of(state: Mapping[str, Any], run: Run) -> int:
    """The step to go on from. InvalidArgument: not a state, of a newer version, or of another run than `run` and the
    one that it was forked from at that step.
    """
    if not isinstance(state, Mapping) or not {"version", "run", "step"} <= state.keys():
        raise InvalidArgument(
            f"state: expected what state_dict() returned (version, run, step), got {state!r}"
        )
    if state["version"] != _VERSION:
        raise InvalidArgument(
            f"state: expected version {_VERSION}, which this release of steelyard knows; got {state['version']!r}"
        )
    step = whole("state: step", state["step"])
    if state["run"] != run.name and not _was_forked(run, state["run"], step):
        raise InvalidArgument(
            f"state: expected one of run {run.name!r}, which this sampler serves; got one of run {state['run']!r}. A "
            "fork goes on from its parent's state where it was forked at that very step; otherwise make the sampler "
            "without a state"
        )
    return step


def _was_forked(run: Run, parent: Any, step: int) -> bool:
    info = run.info()
    return (info.parent, info.parent_step) == (parent, step)


def end_of(state: Mapping[str, Any]) -> int | None:
    """The step that a kept pass stops before, None where the state does not say."""
    end = state.get("end")
    return None if end is None else whole("state: end", end)
