"""Quad: a bandit (UCB) over clusters, whose reward spreads to the clusters nearby.

    score_c = R_c / T_c + alpha · sqrt(2 · ln T / (T_c + 1)), R_c / T_c = 0 before the first pull, T = sum of T_c
    a pull of cluster g with mean influence r, for every c within `threshold` of g, g itself included:
        R_c <- R_c + (r - offset) · (1 - distance_gc / threshold);  T_c <- T_c + 1

A round pulls the `per_round` clusters with the greatest scores (of equal ones those with lower numbers), all with the
same mass; a cluster of which `passes` times its examples were reported is exhausted and not pulled again, until all
are. Zhang et al. (2024), main script of the authors: alpha 1e-4, 50 clusters a round, threshold .2, offset .002; the
shape of the score is that of the paper as we remember it.

The influence is computed by the trainer and reported under `signal`; a round of it is the mean over the rows of a
cluster. Where this differs: the authors probe 10 items of a cluster and then keep or drop a chunk of it by the sign of
the reward; here what is drawn is trained, and a cluster without reward is simply not pulled again. Clusters without
neighbours (`distances` not given) are arms of an ordinary UCB, but that an arm never pulled counts as reward 0 and not
as infinity: where rewards are far above alpha, the first cluster that pays is stayed with until it is exhausted. And a
pull spreads only a part of its reward but a whole count, so a cluster beside a good one looks worse than it is until it
is pulled itself. Distances are K · K numbers of the policy: they suit hundreds of clusters, not ten thousand.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core.exact import log
from steelyard_server.policies.mix.contract import (
    Float64s,
    GroupReport,
    Int64s,
    MassPerGroup,
    Mix,
    State,
    expect_square,
)
from steelyard_server.policies.mix.memory import (
    array,
    close_round,
    fresh_round,
    gather,
    has_ended,
    listed,
    nothing,
)


class ClusterUcb(Mix):
    """The clusters that the bandit would pull next."""

    source: ClassVar[Source] = Source(
        paper="Harnessing Diversity for Important Data Selection in Pretraining Large Language Models "
        "(Quad; Zhang et al., 2024)",
        where="cluster score; main script of the authors' code",
    )
    never_reported: ClassVar[str] = (
        "Drawn like every other example of their cluster; a cluster without a report has reward 0 and the widest bonus."
    )

    method: Literal["cluster_ucb"] = "cluster_ucb"
    signal: str = "influence"
    """The reported influence of an example."""
    alpha: Annotated[float, Field(ge=0, le=1e6)] = 1e-4
    """How much a cluster gains for having been pulled rarely."""
    per_round: Annotated[int, Field(ge=1)] = 50
    """How many clusters a round pulls."""
    every: Annotated[int, Field(ge=1)] = 1
    """Steps of a round."""
    offset: Annotated[float, Field(ge=-1e30, le=1e30)] = 0.002
    """What is taken off a reward: an influence below it lowers a cluster."""
    threshold: Annotated[float, Field(gt=0, le=1e30)] = 0.2
    """How far neighbours are at most."""
    distances: tuple[MassPerGroup, ...] | None = None
    """The distances between clusters, one row a cluster; None: no cluster has neighbours, as those that come later."""
    passes: Annotated[float, Field(gt=0, le=1e9)] | None = 1.0
    """How often all of a cluster's examples are reported until it is exhausted; None: never."""

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.signal,)

    def start(self, sizes: Int64s) -> State:
        expect_square("distances", self.distances, len(sizes))
        return super().start(sizes)

    def fresh(self, sizes: Int64s) -> State:
        groups = len(sizes)
        return {**nothing(groups, "rewards", "pulls", "reported"), **fresh_round(groups)}

    def update(self, state: State, report: GroupReport) -> State:
        came = np.bincount(report.groups[report.groups >= 0], minlength=len(report.sizes))
        state = gather(self.prepared(state, report.sizes, report.step), report, self.signal, self.every)
        return {**state, **listed(reported=array(state, "reported") + came)}

    def prepared(self, state: State, sizes: Int64s, step: int) -> State:
        if not has_ended(state, step):
            return state
        pulled = np.flatnonzero(array(state, "count"))
        state = close_round(state, step, self.every)
        reward = array(state, "last")[pulled] - self.offset
        rewards, pulls = array(state, "rewards"), array(state, "pulls")
        if self.distances is None:
            rewards[pulled] += reward
            pulls[pulled] += 1.0
        else:
            near, closeness = self._neighbours(pulled, self.distances, len(rewards))
            rewards += (reward[:, None] * closeness).sum(axis=0)
            pulls += near.sum(axis=0)
        return {**state, **listed(rewards=rewards, pulls=pulls)}

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        open_, state = sizes > 0, self.prepared(state, sizes, step)
        if self.passes is not None:
            fresh = open_ & (array(state, "reported") < self.passes * sizes)
            open_ = fresh if fresh.any() else open_
        scores = np.where(open_, self.scores(state), -np.inf)
        best = np.argsort(-scores, kind="stable")[: self.per_round]
        masses = np.zeros(len(sizes))
        masses[best] = 1.0
        return masses * open_

    def scores(self, state: State) -> Float64s:
        """CS_c of each cluster, float64[K]."""
        rewards, pulls = array(state, "rewards"), array(state, "pulls")
        total = np.maximum(pulls.sum(), 1.0)
        bonus = self.alpha * np.sqrt(2.0 * log(np.array([total]))[0] / (pulls + 1.0))
        return np.asarray(rewards / np.maximum(pulls, 1.0) + bonus)

    def _neighbours(
        self, pulled: Int64s, distances: tuple[MassPerGroup, ...], groups: int
    ) -> tuple[Float64s, Float64s]:
        """For each pulled cluster (rows) and each cluster: 1 where that is near, and how close from 0 to 1."""
        known = len(distances)
        distance = np.full((groups, groups), np.inf)
        distance[:known, :known] = distances
        np.fill_diagonal(distance, 0.0)
        distance = distance[pulled]
        near = (distance <= self.threshold).astype(np.float64)
        return near, np.maximum(1.0 - distance / self.threshold, 0.0)
