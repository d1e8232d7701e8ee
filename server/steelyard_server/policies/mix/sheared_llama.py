"""Dynamic batch loading: domains that lag behind their target loss gain mass, every `every` steps.

    doremi:   p <- (1 - c) · softmax(log p + eta · (L - L_target)) + c / K
    bandit:   p <- (1 - c) · softmax(p + eta · (L - L_target)) + c / K
    constant: p <- p

Xia et al. (2024), `LLM-Shearing` of the authors: c = 1e-4, eta = 1, every 50 batches while pruning and 400 in continued
training. Their code does not clip the differences; `clip` counts those below 0 as 0.

L is each domain's mean of what was reported since the last update; a domain of which nothing came keeps its last one,
and moves with the mean difference of the others before it had any. The authors evaluate held-out text: for that, name a
signal of its own (`signal`), and report it for held-out rows that have a group but are retired. Their loader never
repeats an example; here that is the inner draw's matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from steelyard.source import Source
from steelyard_server.core.exact import log
from steelyard_server.policies.mix.contract import (
    Float64s,
    GroupReport,
    Int64s,
    Mix,
    PerGroup,
    SharePerGroup,
    State,
)
from steelyard_server.policies.mix.memory import (
    array,
    close_round,
    fresh_round,
    gather,
    has_ended,
    listed,
    with_others_mean,
)
from steelyard_server.policies.mix.shares import drawable, normalised, softmax


class ShearedLlama(Mix):
    """Every domain towards its own target loss."""

    source: ClassVar[Source] = Source(
        paper="Sheared LLaMA: Accelerating Language Model Pre-training via Structured Pruning (Xia et al., 2024)",
        where="dynamic batch loading; LLM-Shearing",
    )
    never_reported: ClassVar[str] = (
        "Drawn like every other example of their domain; a domain without a report moves as the others do on average."
    )
    example: ClassVar[Mapping[str, Any]] = {"targets": [1.0, 1.5, 2.0]}
    per_group: ClassVar[dict[str, float]] = {"targets": 0.0, "initial": 0.0}

    method: Literal["sheared_llama"] = "sheared_llama"
    targets: PerGroup
    """The loss that each domain should reach."""
    signal: str = "loss"
    """What is held against the targets."""
    update_type: Literal["doremi", "bandit", "constant"] = "doremi"
    """What a domain's lag behind its target moves: "doremi", the logarithm of its share, which is multiplied; "bandit",
    the share itself, so that each mix is made anew from the last one's shares and lags; "constant", nothing."""
    every: Annotated[int, Field(ge=1)] = 50
    """Steps between two updates."""
    eta: Annotated[float, Field(ge=0, le=1e3)] = 1.0
    """Step size."""
    c: Annotated[float, Field(ge=0, le=1)] = 1e-4
    """The share that is spread over all domains alike after each update."""
    clip: bool = False
    """Whether a domain below its target counts as being there, and loses nothing."""
    initial: SharePerGroup | None = None
    """The mix at the start; None: in proportion to the sizes."""

    @property
    def signals(self) -> tuple[str, ...]:
        return (self.signal,)

    def fresh(self, sizes: Int64s) -> State:
        groups = len(sizes)
        masses = sizes.astype(np.float64) if self.initial is None else self.numbers("initial", groups)
        return {**listed(p=normalised(masses)), **fresh_round(groups)}

    def update(self, state: State, report: GroupReport) -> State:
        return gather(self.prepared(state, report.sizes, report.step), report, self.signal, self.every)

    def prepared(self, state: State, sizes: Int64s, step: int) -> State:
        if not has_ended(state, step):
            return state
        state = close_round(state, step, self.every)
        lag = array(state, "last") - self.numbers("targets", len(state["last"]))
        lag = with_others_mean(lag, array(state, "known"))
        return {
            **state,
            **listed(p=self._moved(array(state, "p"), np.maximum(lag, 0.0) if self.clip else lag)),
        }

    def masses(self, state: State, sizes: Int64s, step: int) -> Float64s:
        return drawable(array(self.prepared(state, sizes, step), "p"), sizes)

    def _moved(self, p: Float64s, lag: Float64s) -> Float64s:
        if self.update_type == "constant":
            return p
        base = log(p) if self.update_type == "doremi" else p
        return (1.0 - self.c) * softmax(base + self.eta * lag) + self.c / len(p)
