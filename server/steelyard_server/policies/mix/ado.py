"""ADO: domains whose loss still falls fast, by power laws fitted while the run goes on.

Every `every` steps after `ignored` ones, L_k(n) = e^floor_k + e^gain_k · n^-exponent_k is fitted to what was reported
of each domain since then (power_law.py says how, and how that differs from the authors' L-BFGS). After each report:

    slope_k = max(exponent_k, least_exponent) · (L_k(n) - e^floor_k) / n
    d   = normalise(slope · prior · h^credit), raised to at least `least` and normalised again
    p   = average_share · average + (1 - average_share) · d
    average <- running mean of d;  h <- history · h + (1 - history) · (shares of the reported rows)

Until the first fit, p is the prior. Jiang et al. (2025), `ado.py` of the authors: 1000 steps each (500 ignored in their
configurations), least exponent .05, credit .5, least .01, average share .9, history .9.

n is the number of examples reported in all, the same for every domain, as by default in their code; its unit cancels.
The losses of a domain are kept as at most `points` means over stretches of the run of equal length: when they are
full, neighbours are joined. The running mean begins with the prior, which counts as one report. Both are ours. A domain
that cannot be fitted yet takes the mean slope of the others.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core.exact import exp, log
from steelyard_server.policies.mix.contract import Float64s, GroupReport, Int64s, Mix, SharePerGroup, State
from steelyard_server.policies.mix.memory import array, listed, nothing, with_others_mean
from steelyard_server.policies.mix.power_law import fit
from steelyard_server.policies.mix.shares import drawable, normalised, softmax, with_least

# Where a slope is 0 its logarithm is this.
_NO_SLOPE = -1e9


class Ado(Mix):
    """Domains by how fast their fitted losses fall."""

    source: ClassVar[Source] = Source(
        paper="Adaptive Data Optimization: Dynamic Sample Selection with Scaling Laws (Jiang et al., 2025)",
        where="ado.py of the authors' code",
    )
    never_reported: ClassVar[str] = (
        "Drawn like every other example of their domain; a domain without reports takes the mean slope of the others."
    )
    per_group: ClassVar[dict[str, float]] = {"prior": 0.0}

    method: Literal["ado"] = "ado"
    signal: str = "loss"
    """What is fitted; values that are not above 0 are left out of a fit."""
    prior: SharePerGroup | None = None
    """The mix to start from; None: in proportion to the sizes."""
    ignored: Annotated[int, Field(ge=0)] = 1000
    """Steps at the start whose losses are not fitted."""
    every: Annotated[int, Field(ge=1)] = 1000
    """Steps between two fits; the first comes so many after the ignored ones."""
    least_exponent: Annotated[float, Field(ge=0, le=3)] = 0.05
    """A fitted exponent counts as at least this in a slope."""
    credit: Annotated[float, Field(ge=0, le=4)] = 0.5
    """The exponent of h: how much of a fall is put down to the domain's own data."""
    least: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """The least that a share of d is raised to."""
    average_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    """How much of the mix is the running mean of what was preferred so far."""
    history: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """The decay of h, the mean of the shares that were reported."""
    points: Annotated[int, Field(ge=8, le=1024)] = 64
    """How many means of stretches of the run are kept for each domain."""

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.signal,)

    def fresh(self, sizes: Int64s) -> State:
        groups, prior = len(sizes), self._prior(sizes)
        return {
            **listed(h=prior, p=prior, average=prior),
            **nothing(groups, "floor", "gain", "exponent", "fitted"),
            **nothing(groups, "sum", "count"),
            "sums": [],
            "counts": [],
            "ends": [],
            "reports": [0.0],
            "width": [1.0],
            "examples": [0.0],
            "updates": [0.0],
            "due": [-1.0],
            "news": [0.0],
        }

    def grown(self, state: State, sizes: Int64s) -> State:
        groups, bins = len(state["h"]), len(state["ends"])
        kept = {}
        for name in ("sums", "counts"):
            wide = np.zeros((bins, len(sizes)))
            wide[:, :groups] = array(state, name).reshape(bins, groups)
            kept[name] = wide.ravel().tolist()
        return {**super().grown(state, sizes), **kept}

    def update(self, state: State, report: GroupReport) -> State:
        rows = np.bincount(report.groups[report.groups >= 0], minlength=len(report.sizes)).astype(np.float64)
        total = float(rows.sum())
        if not total:
            return state
        h = self.history * array(state, "h") + (1.0 - self.history) * (rows / total)
        state = {**state, **listed(h=h), "examples": [state["examples"][0] + total], "news": [1.0]}
        if report.step >= self.ignored:
            state = self._recorded(state, report)
        if state["due"][0] < 0:
            first = report.step if report.since is None else report.since
            state = {**state, "due": [float(max(first, self.ignored) + self.every)]}
        # A fit that ends with this report's step comes before the mix that it changes.
        if report.step + 1 >= state["due"][0]:
            state = self._closed(state, report.step + 1)
        return self._mixed(state, report.sizes) if any(state["fitted"]) else state

    def prepared(self, state: State, sizes: Int64s, step: int) -> State:
        if not 0 <= state["due"][0] <= step or not any(state.get("news", [1.0])):
            return state
        state = self._closed(state, step)
        return self._mixed(state, sizes) if any(state["fitted"]) else state

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        return drawable(array(self.prepared(state, sizes, step), "p"), sizes)

    def _closed(self, state: State, step: int) -> State:
        """The state with curves fitted to all that came before the draw of `step`; the next fit is `every` steps on."""
        return {**self._fitted(state), "due": [float(step + self.every)], "news": [0.0]}

    def _prior(self, sizes: Int64s) -> Float64s:
        return normalised(
            sizes.astype(np.float64) if self.prior is None else self.numbers("prior", len(sizes))
        )

    def _recorded(self, state: State, report: GroupReport) -> State:
        """The state with the report's losses in the open stretch; a full stretch becomes a point."""
        total, count = report.sums(self.signal)
        state = {
            **state,
            **listed(sum=array(state, "sum") + total, count=array(state, "count") + count),
            "reports": [state["reports"][0] + 1.0],
        }
        if state["reports"][0] < state["width"][0]:
            return state
        state = {
            **state,
            "sums": [*state["sums"], *state["sum"]],
            "counts": [*state["counts"], *state["count"]],
            "ends": [*state["ends"], state["examples"][0]],
            **nothing(len(state["sum"]), "sum", "count"),
            "reports": [0.0],
        }
        return self._joined(state) if len(state["ends"]) >= self.points else state

    def _joined(self, state: State) -> State:
        """The state with half as many points, each of two; an odd one at the end goes back into the open stretch."""
        groups, pairs = len(state["sum"]), len(state["ends"]) // 2
        joined = {}
        for name, open_ in (("sums", "sum"), ("counts", "count")):
            points = array(state, name).reshape(-1, groups)
            joined[name] = points[: 2 * pairs].reshape(pairs, 2, groups).sum(axis=1).ravel().tolist()
            joined[open_] = points[2 * pairs :].sum(axis=0).tolist()
        odd = len(state["ends"]) - 2 * pairs
        return {
            **state,
            **joined,
            "ends": state["ends"][1 : 2 * pairs : 2],
            "reports": [state["width"][0] * odd],
            "width": [state["width"][0] * 2],
        }

    def _fitted(self, state: State) -> State:
        """The state with a curve for each domain that has points enough; the others keep what they had."""
        groups, ends = len(state["h"]), array(state, "ends")
        if not len(ends):
            return state
        sums, counts = (array(state, name).reshape(-1, groups) for name in ("sums", "counts"))
        # A stretch stands for the number of examples at its middle.
        middle = (
            (ends + np.concatenate(([2.0 * ends[0] - ends[1]], ends[:-1]))) / 2 if len(ends) > 1 else ends
        )
        middle = np.maximum(middle, 1.0)
        means = np.divide(sums, counts, out=np.zeros_like(sums), where=counts > 0)
        laws = fit(middle, means.T, counts.T)
        new = laws.fitted
        return {
            **state,
            **listed(
                floor=np.where(new, laws.floor, array(state, "floor")),
                gain=np.where(new, laws.gain, array(state, "gain")),
                exponent=np.where(new, laws.exponent, array(state, "exponent")),
                fitted=np.where(new, 1.0, array(state, "fitted")),
            ),
        }

    def _mixed(self, state: State, sizes: Int64s) -> State:
        """The state with the mix that the curves give where the run is now."""
        d = with_least(self._preferred(state, sizes), self.least)
        average, updates = array(state, "average"), state["updates"][0] + 1.0
        p = self.average_share * average + (1.0 - self.average_share) * d
        average = average + (d - average) / (updates + 1.0)
        return {**state, **listed(p=p, average=average), "updates": [updates]}

    def _preferred(self, state: State, sizes: Int64s) -> Float64s:
        """normalise(slope · prior · h^credit), float64[K]. By logarithms, since slopes may be of any size; n divides
        all slopes alike and is left out."""
        logs = log(np.array(state["examples"]))
        exponent = np.maximum(array(state, "exponent"), self.least_exponent)
        falling = array(state, "gain") - array(state, "exponent") * logs
        slope = np.maximum(log(exponent) + falling, _NO_SLOPE)
        slope = self._filled(slope, array(state, "fitted"))
        factor = log(self._prior(sizes)) + self.credit * log(array(state, "h"))
        return softmax(slope + factor)

    def _filled(self, log_slope: Float64s, fitted: Float64s) -> Float64s:
        """Slopes with the mean of the others where there is no curve, as logarithms."""
        there = fitted > 0
        greatest = log_slope[there].max()
        mean = with_others_mean(np.where(there, exp(log_slope - greatest), 0.0), fitted)
        return np.where(there, log_slope, greatest + log(mean))
