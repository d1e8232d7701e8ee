"""The undisturbed runs: the same story folded step by step, with no server, journal, checkpoint or crash.

A batch is drawn, its losses are reported in full, the next one is drawn. Going back to a step takes the state as it was
then. The fold is the product's own (steelyard_server.runs.state), which other tests hold to a model of its meaning;
what is at stake here is everything around it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steelyard_server.core.events import (
    BatchDrawn,
    DatasetGrown,
    IdsRetired,
    LossesReported,
    PolicyChanged,
    RunCreated,
)
from steelyard_server.policies.policy import parse_policy
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import HistoryEntry, RunState
from steelyard_server.runs.weighing import StepWeights, draw_weight
from tests.robustness.crash.chronicle import Chronicle, Forked, Grown, Launch, PolicyOf, Story
from tests.robustness.crash.losses import losses_of

Losses = Callable[[str, int, int, npt.NDArray[np.int64]], npt.NDArray[np.float32]]
"""Of run, attempt, step and ids."""


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A global batch, and the weights that reporting it in full gives: ones where no rule reads losses."""

    ids: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]
    weight: npt.NDArray[np.float32]
    answered: npt.NDArray[np.float32]
    version: int
    digest: int


@dataclass(slots=True, eq=False)
class Standing:
    """A run before the draw of `state.next_step`, everything before it reported; and how many of the dataset's changes
    it knows."""

    state: RunState
    changes: int

    def copy(self) -> Standing:
        return copy.deepcopy(self)


@dataclass(slots=True, eq=False)
class CalmRun:
    """`served[attempt][step]`: what that attempt must have been served, as far as it was looked for. `end` is the run
    when the last attempt has reported every step below the stop."""

    served: dict[int, dict[int, Served]]
    end: RunState

    @property
    def last(self) -> Mapping[int, Served]:
        """What was served, over all attempts, of what is not undone."""
        whole: dict[int, Served] = {}
        for batches in self.served.values():
            if batches:
                first = min(batches)
                whole = {step: one for step, one in whole.items() if step < first} | batches
        return whole


def fold(
    story: Story,
    steps: Mapping[str, Mapping[int, int]],
    drawn: Mapping[str, int],
    stop: Mapping[str, int],
    losses: Losses = losses_of,
) -> dict[str, CalmRun]:
    """Every run of the story. `steps[run][attempt]` is the first step that the attempt need not be folded to, `drawn`
    the next step to draw at the end, and `stop` the first that is not reported then."""
    begun: dict[str, Standing] = {}
    done: dict[str, CalmRun] = {}
    for name, chronicle in story.runs.items():  # a fork comes after its parent
        standing = begun.pop(name) if chronicle.parent else Standing(_created(story, chronicle), 0)
        done[name] = _Teller(story, chronicle, standing, begun, losses).tell(
            steps.get(name, {}), drawn[name], stop[name]
        )
    return done


class _Teller:
    def __init__(
        self,
        story: Story,
        chronicle: Chronicle,
        standing: Standing,
        begun: dict[str, Standing],
        losses: Losses,
    ) -> None:
        self._losses = losses
        self._story, self._chronicle, self._begun = story, chronicle, begun
        self._stations = {one.start if isinstance(one, Launch) else one.at for one in chronicle.tale}
        self._saved = {standing.state.next_step: standing}

    def tell(self, steps: Mapping[int, int], drawn: int, stop: int) -> CalmRun:
        served: dict[int, dict[int, Served]] = {}
        launches = [one for one in self._chronicle.tale if isinstance(one, Launch)]
        end = next(iter(self._saved.values())).state
        for one in self._chronicle.tale:
            if isinstance(one, Forked):
                self._begun[one.name] = self._fork(one)
                continue
            if isinstance(one, PolicyOf):
                policy = parse_policy(one.policy["draw"], one.policy["weigh"])
                self._saved[one.at].state.apply(PolicyChanged(policy.canonical()))
                continue
            last = one is launches[-1]
            until = drawn if last else max(steps.get(one.attempt, 0), self._next_station(one))
            served[one.attempt], end = self._launch(one, until, stop if last else until)
        return CalmRun(served, end)

    def _next_station(self, launch: Launch) -> int:
        """The furthest step that something goes on from before another attempt takes over: the fold must get there."""
        furthest = launch.start
        for one in self._chronicle.tale[self._chronicle.tale.index(launch) + 1 :]:
            furthest = max(furthest, one.start if isinstance(one, Launch) else one.at)
            if isinstance(one, Launch):
                break
        return furthest

    def _launch(self, launch: Launch, until: int, stop: int) -> tuple[dict[int, Served], RunState]:
        """Serves `launch.start` .. `until`-1, of which those below `stop` are reported."""
        self._saved = {step: one for step, one in self._saved.items() if step <= launch.start}
        standing = self._saved[launch.start]
        _learn(standing, self._story, launch.changes)
        standing = standing.copy()
        state, served = standing.state, {}
        for step in range(launch.start, until):
            if step in self._stations and step not in self._saved:
                self._saved[step] = standing.copy()
            drawn = state.draw()
            state.apply(drawn)
            if step < stop:
                losses = self._losses(self._chronicle.name, launch.attempt, step, drawn.ids)
                state.apply(LossesReported(step, 0, {"loss": losses}))
            served[step] = _served(state, drawn)
        if until in self._stations and until not in self._saved:
            self._saved[until] = standing.copy()
        return served, state

    def _fork(self, fork: Forked) -> Standing:
        standing = self._saved[fork.at].copy()
        _learn(standing, self._story, fork.changes)
        return standing


def _created(story: Story, chronicle: Chronicle) -> RunState:
    spec = parse_spec(
        {"weigh": {"method": "uniform"}, **chronicle.fields, "name": chronicle.name, "dataset": "d"}
    )
    return RunState(RunCreated(spec.model_dump(mode="json"), story.size))


def _learn(standing: Standing, story: Story, changes: int) -> None:
    for change in story.changes[standing.changes : changes]:
        if isinstance(change, Grown):
            standing.state.apply(DatasetGrown(change.size))
        else:
            standing.state.apply(IdsRetired(np.asarray(change.ids, np.int64)))
    standing.changes = max(changes, standing.changes)


def _served(state: RunState, drawn: BatchDrawn) -> Served:
    rule, record = state.rule_of(drawn.step), state.steps[drawn.step]
    count = len(drawn.ids)
    weight = draw_weight(rule, record, state.spec.seed)
    weight = np.ones(count, np.float32) if weight is None else weight
    answered = StepWeights().of(state, record) if rule.reads == "losses" and record.closed else weight
    probability = drawn.probability
    if probability is None:
        probability = np.full(count, drawn.uniform_probability)
    return Served(drawn.ids, probability, weight, answered, drawn.state_version, drawn.digest)


def history_of(state: RunState, size: int, keep: int) -> list[list[tuple[int, float]]]:
    """The last `keep` (step, loss) of each id, the reported ones included that no draw knows yet."""
    waiting = [
        HistoryEntry(
            step, record.drawn.ids[record.reported].astype(np.uint32), record.signals["loss"][record.reported]
        )
        for step, record in sorted(state.steps.items())
        if step >= state.folded_steps and record.reported.any()
    ]
    rows: list[list[tuple[int, float]]] = [[] for _ in range(size)]
    for entry in [*state.unsaved_history, *waiting]:
        for example, loss in zip(entry.ids.tolist(), entry.losses.tolist(), strict=True):
            rows[example].append((entry.step, loss))
    return [row[-keep:] if keep else [] for row in rows]
