"""Changes that are not reported by trainers, as events: of the policy, and what going back must take along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from steelyard_server.core.events import AttemptBegan, Bookmarked, ColumnSet, Event, PolicyChanged
from steelyard_server.policies.policy import Policy, PolicyError, parse_policy
from steelyard_server.runs.errors import Invalid
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.state import RunState


def changed_policy(
    state: RunState,
    draw: Mapping[str, Any] | None,
    weigher: Mapping[str, Any] | None,
    mix: Mapping[str, Any] | None = None,
) -> Policy:
    """The run's policy with the given parts in place of its own; Invalid where it cannot serve the run."""
    try:
        policy = parse_policy(draw or state.spec.draw, weigher or state.spec.weigh, mix or state.spec.mix)
    except PolicyError as error:
        raise Invalid(str(error)) from error
    drawable = state.examples.size - len(state.examples.retired)
    obstacle = policy.too_small(drawable, state.spec.batch_size)
    if obstacle is not None:
        raise Invalid(obstacle)
    return policy


def policy_events(state: RunState, policy: Policy, log: RunLog, seq: int | None) -> list[Event]:
    """The change to `policy`, with the derived columns that the state lacks, folded from the history as of `seq`."""
    events: list[Event] = [PolicyChanged(policy.canonical())]
    for derived in policy.derived:
        if any(name not in state.examples.columns for name in derived.columns):
            for name, values in log.rebuilt_columns(derived, state, seq).items():
                # A count that was kept for another column is of more losses than the rest is folded from.
                kept = state.examples.columns.get(name, values)
                at = np.flatnonzero(~(np.isnan(values) & np.isnan(kept)))
                if len(at):
                    events.append(ColumnSet(name, at, values[at]))
    return events


def outliving(past: RunState, present: RunState) -> list[Event]:
    """What `past`, to which a run goes back from `present`, must still learn: which bookmarks of earlier steps there
    are now, and the attempts that began since, so that their trainers stay refused."""
    step = past.next_step
    known = set(past.attempts.tokens)
    events: list[Event] = [
        AttemptBegan(token, 0, step) for token in present.attempts.tokens if token and token not in known
    ]
    held = {name: at for name, at in present.bookmarks.items() if at <= step}
    # By name: the order of a state that was read from a checkpoint is another.
    events += [Bookmarked(name, None) for name in sorted(past.bookmarks) if name not in held]
    return events + [
        Bookmarked(name, at) for name, at in sorted(held.items()) if past.bookmarks.get(name) != at
    ]
