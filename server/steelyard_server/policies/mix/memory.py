"""What rules that read reports remember of each group: its last mean, and what came since the last round."""

from __future__ import annotations

import numpy as np

from steelyard_server.policies.mix.contract import Float64s, GroupReport, State


def array(state: State, name: str) -> Float64s:
    """A list of the state as float64[n]."""
    return np.array(state[name], np.float64)


def listed(**arrays: Float64s) -> dict[str, list[float]]:
    """Arrays as lists of a state."""
    return {name: values.tolist() for name, values in arrays.items()}


def nothing(groups: int, *names: str) -> dict[str, list[float]]:
    """A list of `groups` zeros under each name."""
    return {name: [0.0] * groups for name in names}


def with_others_mean(values: Float64s, known: Float64s) -> Float64s:
    """`values` where `known` is not 0; elsewhere the mean of those, so that a group of which nothing is known is
    neither raised nor lowered by that. 0 where none is known."""
    there = known > 0
    return np.where(there, values, values[there].mean() if there.any() else 0.0)


def fresh_round(groups: int) -> dict[str, list[float]]:
    """The part of a state that `gather` and `close_round` keep. The first round begins with the mix, at whatever step
    of the run that is."""
    return {**nothing(groups, "sum", "count", "last", "known"), "due": [-1.0]}


def gather(state: State, report: GroupReport, signal: str, every: int) -> dict[str, list[float]]:
    """The state with the report's values of `signal` added to what came since the last round."""
    total, count = report.sums(signal)
    added = listed(sum=array(state, "sum") + total, count=array(state, "count") + count)
    first = report.step if report.since is None else report.since
    due = state["due"] if state["due"][0] >= 0 else [float(first + every)]
    return {**state, **added, "due": due}


def has_ended(state: State, step: int) -> bool:
    """Whether the round is over before the draw of `step`, and something came in it. One in which nothing came goes on
    until something does."""
    return 0 <= state["due"][0] <= step and any(state["count"])


def close_round(state: State, step: int, every: int) -> dict[str, list[float]]:
    """The state once the round is over: `last` holds each group's mean of it, or of its last one with values, `known`
    whether there was one; the next round ends `every` steps behind the draw of `step`."""
    total, count = array(state, "sum"), array(state, "count")
    came = count > 0
    last = np.divide(total, count, out=array(state, "last"), where=came)
    known = np.where(came, 1.0, array(state, "known"))
    none = nothing(len(total), "sum", "count")
    return {**state, **none, **listed(last=last, known=known), "due": [float(step + every)]}
