"""One pass of a loader over a sampler, and its place, which a stateful loader keeps with every batch it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from steelyard.errors import InvalidArgument
from steelyard.run import Run
from steelyard.torch.pending import Part
from steelyard.torch.state import end_of, to_state


class Sampler(Protocol):
    """What an iteration asks of its sampler."""

    @property
    def step(self) -> int:
        """The first step that is not trained."""

    @property
    def run(self) -> Run: ...

    def _next_part(self, iteration: Iteration) -> Part:
        """The next part. StopIteration at the end."""

    def _lacks_losses(self) -> bool:
        """Whether something that was handed out is not reported."""

    def _keep(self, step: int) -> None:
        """A state with this step may be kept: what it counts is to be durable before its trainer goes on."""

    def _go_on_from(self, state: Mapping[str, Any], iteration: Iteration | None) -> None:
        """As load_state_dict; `iteration` is the one that goes on there."""


class Iteration:
    """Goes on after an error, where a generator would be over and look like an end.

    torchdata's StatefulDataLoader finds state_dict() here. It asks for it after each batch that it takes, long before
    the batch is trained, and gives the answer out once it has handed that batch to the trainer. So the state counts
    what was handed out, where the sampler's own counts what was trained; both are the same when the trainer has
    reported all that its loader gave it.
    """

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.end: int | None = None
        """The step to stop before, None where that is not known yet, or there is none."""
        self._step: int | None = None  # the first that is not handed out in full, once one was
        self._taken = 0  # parts
        self._asked = 0  # parts taken when the state was asked for last
        self.asked_now = False
        """Whether the state was asked for and nothing happened since."""
        self._ahead = False  # whether a loader takes batches ahead and keeps a state with each

    def __iter__(self) -> Iteration:
        return self

    def __next__(self) -> list[int]:
        if self._ahead and self._asked < self._taken and self._sampler._lacks_losses():
            raise InvalidArgument(
                "snapshot_every_n_steps: expected 1 of a StatefulDataLoader over this sampler, which was not asked for "
                f"its state after batch {self._taken}. From an older state the loader would skip batches that were "
                "trained, and their reports would be lost"
            )
        part = self._sampler._next_part(self)
        self.asked_now = False
        self._taken += 1
        self._step = part.batch.step + part.last
        ids: list[int] = part.ids.tolist()
        return ids

    def state_dict(self) -> dict[str, Any]:
        """The place after what was handed out: version, run, step and the end of the pass. Does not wait."""
        step = self._sampler.step if self._step is None else self._step
        self._asked, self.asked_now = self._taken, True
        self._sampler._keep(step)
        return to_state(self._sampler.run.name, step, self.end)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there, as the sampler's load_state_dict does, to the same end."""
        end = end_of(state)
        self._sampler._go_on_from(state, self)
        self.end = end

    def asked_before_its_sampler(self) -> bool:
        """Whether the state of the last part was just asked for here: only a loader that takes batches ahead then asks
        the sampler for its own."""
        asked, self.asked_now = self.asked_now, False
        self._ahead = self._ahead or (asked and self._taken == 0)
        return asked
