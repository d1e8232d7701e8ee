"""A run as the list of what has happened to it. Going back keeps a part of the list and does all of it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twin import operations as op
from twin.columns import rounded, signal_of
from twin.state import State, full_draw, full_weigh, same


@dataclass
class Dataset:
    """What the owner has made of a dataset."""

    size: int
    retired: set[int] = field(default_factory=set)
    columns: dict[str, dict[int, float]] = field(default_factory=dict)


def slice_of(batch_size: int, world_size: int, rank: int) -> tuple[int, int]:
    """Offset and length of a rank's slice: the first batch_size % world_size ranks have one more."""
    sizes = [batch_size // world_size + (r < batch_size % world_size) for r in range(world_size)]
    return sum(sizes[:rank]), sizes[rank]


class Run:
    def __init__(self, spec: Mapping[str, Any], size: int) -> None:
        self.spec = dict(spec)
        self.size_at_first = size
        self.done: list[op.Operation] = []
        self.state = State(self.spec, size)
        self.oldest_step = 0
        """The run cannot go back behind it: a fork not behind the step that it began with."""

    def do(self, operation: op.Operation) -> None:
        self.state.apply(operation)
        self.done.append(operation)

    # ---- going back ----

    def past(self, step: int) -> list[op.Operation]:
        """What had happened when `step` was next, and what came later and is not undone."""
        at = self.done.index(op.Draw(step)) if step < self.state.next_step else len(self.done)
        return self.done[:at] + [one for one in self.done[at:] if op.survives(one, step)]

    def do_again(self, operations: Sequence[op.Operation]) -> None:
        self.done, self.state = [], State(self.spec, self.size_at_first)
        for operation in operations:
            self.do(operation)

    def rewind(self, step: int) -> None:
        """By the owner: the policy goes back as well, and the attempt is over."""
        self.do_again(self.past(step))
        self.do(op.Attempt("", 0, step))

    def fork(self, step: int, draw: Mapping[str, Any] | None, weigh: Mapping[str, Any] | None) -> Run:
        new = Run(self.spec, self.size_at_first)
        new.do_again(self.past(step))
        new.change_policy(draw, weigh)
        new.do(op.Fork(step))
        new.oldest_step = step
        return new

    # ---- attempts ----

    def begin_attempt(self, token: str, world_size: int, start: int | None) -> int:
        """By the first join of a token. Goes back where steps from `start` on left a trace, but keeps the policy."""
        start = max(self.state.closed_steps, self.oldest_step) if start is None else start
        draw, weigh = self.state.draw, self.state.weigh
        if self.left_a_trace(start):
            self.do_again(self.past(start))
        self.do(op.Attempt(token, world_size, start))
        self.change_policy(draw, weigh)
        return start

    def left_a_trace(self, start: int) -> bool:
        state = self.state
        return start < state.next_step and (
            state.staleness == "any"
            or state.closed_steps > start
            or state.rules[-1][0] > start
            or any(step > start for step in state.bookmarks.values())
            or any(served.closed or any(served.reported) for served in state.steps[start:])
            or any((seen.step or 0) >= start for seen in state.observed)
        )

    def first_step_of(self, world_size: int, rank: int) -> int:
        """Where a session of the attempt begins: at the first step of which its slice is not wholly reported."""
        state = self.state
        step = max(state.start_step, state.closed_steps)
        offset, length = slice_of(state.batch_size, world_size, rank)
        if not length:
            return step
        step = max(step, state.held)
        while step < state.next_step:
            served = state.steps[step]
            if not served.closed and not all(served.reported[offset : offset + length]):
                break
            step += 1
        return step

    # ---- the owner and the dataset ----

    def change_policy(self, draw: Mapping[str, Any] | None, weigh: Mapping[str, Any] | None) -> None:
        new_draw = self.state.draw if draw is None else full_draw(draw)
        new_weigh = self.state.weigh if weigh is None else full_weigh(weigh)
        if (new_draw, new_weigh) != (self.state.draw, self.state.weigh):
            self.do(op.ChangePolicy(new_draw, new_weigh))

    def take_news(self, dataset: Dataset) -> None:
        """What the dataset has become and the run does not know yet; columns as far as the policy reads them."""
        if dataset.size > self.state.size:
            self.do(op.Grow(dataset.size))
        if dataset.retired > self.state.retired:
            self.do(op.Retire(frozenset(dataset.retired - self.state.retired)))
        name = self.state.score
        if name and signal_of(name) is None:
            mine = self.state.columns[name]
            values = {i: rounded(x) for i, x in sorted(dataset.columns[name].items())}
            changed = {i: x for i, x in values.items() if not same(mine[i], x)}
            if changed:
                self.do(op.SetColumn(name, changed))
