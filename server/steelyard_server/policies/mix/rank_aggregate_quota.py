"""One choice of k examples by several rankings, with at least so many from each group.

Each column ranks the m examples that are in a group: rank 1 is the best. An example's score is the sum over columns of
    borda: m - rank
    sntv:  1 where rank = 1, else 0
First the best `least[g]` of each group g are taken, then the best of all others, until there are k. The score of a set
is the sum over its examples, so that this is the best set that meets the bounds. Where bounds and k cannot be met, as
many are taken as there are. Equal scores go to the lower id.

Subset selection from multiple rankings under fairness constraints (Boehmer et al., 2023); scores as we remember them
from the paper. The committee score of the Chamberlin-Courant kind, where an example counts only as far as none better
is taken, is not offered.

A choice, no mixing: what is kept is drawn in proportion to the groups' sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from steelyard.source import Source
from steelyard_server.policies.mix.contract import Bools, Float64s, Int64s, Mix, State


class RankAggregateQuota(Mix):
    """The best k under lower bounds a group."""

    source: ClassVar[Source] = Source(
        paper="Subset Selection Based On Multiple Rankings in the Presence of Bias: Effectiveness of Fairness "
        "Constraints for Multiwinner Voting Score Functions (Boehmer et al., 2023)",
        where="multiwinner score functions; lower bounds a group",
    )
    never_reported: ClassVar[str] = "Chosen like every other example, by its ranks: reports are not read."
    example: ClassVar[Mapping[str, Any]] = {"rankings": ["quality", "difficulty"], "k": 12}
    per_group: ClassVar[dict[str, float]] = {"least": 0.0}

    method: Literal["rank_aggregate_quota"] = "rank_aggregate_quota"
    rankings: Annotated[tuple[str, ...], Field(min_length=1, max_length=64)]
    """Static columns; an example without a value stands behind all that have one."""
    k: Annotated[int, Field(ge=1)]
    """How many examples are kept."""
    least: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """How many of each group at least; None: no bounds."""
    score: Literal["borda", "sntv"] = "borda"
    """What a rank is worth."""
    order: Literal["ascending", "descending"] = "ascending"
    """Which end of a column is the best: "ascending" for ranks (1 is best), "descending" for scores."""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.rankings

    def start(self, sizes: Int64s) -> State:
        state = super().start(sizes)
        if self.least is not None and sum(self.least) > self.k:
            raise ValueError(
                f"mix.least: expected bounds that sum to at most k = {self.k}, got {sum(self.least)}"
            )
        return state

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        return sizes.astype(np.float64)

    def keep(self, groups: Int64s, columns: Mapping[str, npt.NDArray[Any]], step: int) -> Bools:
        candidates = np.flatnonzero(groups >= 0)
        within = groups[candidates]
        score = self._scores({name: columns[name][candidates] for name in self.rankings}, len(candidates))
        best_first = np.argsort(-score, kind="stable")
        owed = best_first[self._owed(within[best_first])][: self.k]
        taken = np.zeros(len(candidates), np.bool_)
        taken[owed] = True
        more = best_first[~taken[best_first]][: self.k - len(owed)]
        kept = np.zeros(len(groups), np.bool_)
        kept[candidates[owed]] = True
        kept[candidates[more]] = True
        return kept

    def _scores(self, columns: Mapping[str, npt.NDArray[Any]], count: int) -> Float64s:
        """The sum over columns of what each rank is worth, float64[count]."""
        total = np.zeros(count)
        for values in columns.values():
            ranks = self._ranks(np.asarray(values, np.float64))
            total += count - ranks if self.score == "borda" else (ranks == 1)
        return total

    def _ranks(self, values: Float64s) -> Float64s:
        """1 for the best; equal values share the best of their ranks, NaN has the last one: float64[m]."""
        known = ~np.isnan(values)
        signed = values[known] if self.order == "ascending" else -values[known]
        ranks = np.full(len(values), float(len(values)))
        ranks[known] = np.searchsorted(np.sort(signed, kind="stable"), signed) + 1.0
        return ranks

    def _owed(self, groups: Int64s) -> Bools:
        """Of examples from the best down: which are among the first `least` of their group, bool[m]."""
        if not len(groups) or self.least is None:
            return np.zeros(len(groups), np.bool_)
        bounds = self.numbers("least", int(groups.max()) + 1)
        by_group = np.argsort(groups, kind="stable")
        ordered = groups[by_group]
        place = np.empty(len(groups), np.int64)
        place[by_group] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
        return np.asarray(place < bounds[groups])
