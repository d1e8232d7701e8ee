"""Diversify and conquer: clusters first alike, then, round by round, by what was reported of them.

    round 0:              p_c = 1 / K
    a later round,
        form "reward":     p_c = exp(mean gap_c) / sum
        form "perplexity": p_c = mean perplexity_c / sum

of the round before; a cluster of which nothing came keeps its last mean, and has that of the others before it had any.
Yu et al. (2024), `selection/iter.py` and `kmeansiter.py` of the authors: K-means clusters, three rounds. The gap is the
reward model's score of the given answer less that of the model's own.

Where this differs: the authors choose a subset, a round at a time, and train on it at the end; here a round is `every`
steps, its mix is what is drawn, and after the last round the mix stays. That an example is not chosen twice is the
inner draw's matter. Their size of a later round divides by K once more than the first one's, and does not arise here.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.mix.contract import Float64s, GroupReport, Int64s, Mix, State
from steelyard_server.policies.mix.memory import (
    array,
    close_round,
    fresh_round,
    gather,
    has_ended,
    listed,
    with_others_mean,
)
from steelyard_server.policies.mix.shares import drawable, normalised, softmax, uniform


class ClusterSoftmax(Mix):
    """Clusters by their mean gap or perplexity of the round before."""

    source: ClassVar[Source] = Source(
        paper="Diversify and Conquer: Diversity-Centric Data Selection with Iterative Refinement "
        "(Yu et al., 2024)",
        where="iterative refinement; selection/iter.py, kmeansiter.py",
    )
    never_reported: ClassVar[str] = (
        "Drawn like every other example of their cluster; a cluster without a report has the mean of the others."
    )

    method: Literal["cluster_softmax"] = "cluster_softmax"
    form: Literal["reward", "perplexity"] = "reward"
    """What is reported: "reward", a gap that goes into a softmax, or "perplexity", which counts as it is."""
    signal: str = "gap"
    """The reported gap, or perplexity; what is below 0 of a perplexity counts as 0."""
    rounds: Annotated[int, Field(ge=1)] | None = 3
    """How many rounds there are, round 0 included; None: without end."""
    every: Annotated[int, Field(ge=1)] = 1000
    """Steps of a round; our default."""

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.signal,)

    def fresh(self, sizes: Int64s) -> State:
        groups = len(sizes)
        return {**fresh_round(groups), **listed(p=uniform(groups)), "round": [0.0]}

    def update(self, state: State, report: GroupReport) -> State:
        if self._is_last(state):
            return state
        return gather(self.prepared(state, report.sizes, report.step), report, self.signal, self.every)

    def prepared(self, state: State, sizes: Int64s, step: int) -> State:
        if self._is_last(state) or not has_ended(state, step):
            return state
        state = close_round(state, step, self.every)
        means = with_others_mean(array(state, "last"), array(state, "known"))
        p = softmax(means) if self.form == "reward" else normalised(np.maximum(means, 0.0))
        return {**state, **listed(p=p), "round": [state["round"][0] + 1]}

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        return drawable(array(self.prepared(state, sizes, step), "p"), sizes)

    def _is_last(self, state: State) -> bool:
        """Whether the mix stays as it is."""
        return self.rounds is not None and state["round"][0] + 1 >= self.rounds
