"""Which weigh rule is in force at which step, and weights that are still on their way."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from steelyard import weigh
from steelyard.errors import InvalidArgument
from steelyard.ledger import Answer
from steelyard.v1 import trainer_pb2
from steelyard.weigh import Rule

Where = Literal["client", "server"]
Source = Literal["draw", "losses", "server", "in order"]
"""Where weights come from: with the batch; from the losses, made here or there; from the losses and what only the
server has; and from the steps before too."""

_SOURCES: Mapping[int, Source] = {
    trainer_pb2.WEIGHING_DRAW: "draw",
    trainer_pb2.WEIGHING_LOSSES: "losses",
    trainer_pb2.WEIGHING_SERVER: "server",
    trainer_pb2.WEIGHING_IN_ORDER: "in order",
}


@dataclass(frozen=True, slots=True)
class Weighing:
    """How a run weighs, as a trainer has to know it."""

    config: Mapping[str, Any]
    source: Source
    where: str
    """Of the policy: "auto", "client" or "server"; "server" where only that can."""
    rule: Rule | None
    """None: this client does not know the rule, and need not."""
    unknown: str = ""
    """Why it does not know it."""

    @property
    def method(self) -> str:
        return str(self.config.get("method"))


class Rules:
    """The rules of a run by the step from which each holds. Not locked: one writer, and readers of whole lists."""

    def __init__(self, config: Mapping[str, Any], weighing: int, start_step: int) -> None:
        """`weighing`: what the server says of it, a trainer_pb2.Weighing."""
        self._steps = [start_step]
        self._rules = [_parse(config, weighing)]

    def change(self, config: Mapping[str, Any], weighing: int, step: int) -> None:
        """From `step` on, `config` is in force. InvalidArgument: a rule that this client would have to know."""
        if config == self._rules[-1].config:
            return
        parsed = _parse(config, weighing)
        if step <= self._steps[-1]:
            self._rules[-1] = parsed
            return
        self._rules.append(parsed)
        self._steps.append(step)

    def at(self, step: int) -> Weighing:
        """What is in force at a step."""
        rules = self._rules
        return rules[0] if len(rules) == 1 else rules[self._index(step)]

    def rule(self, step: int) -> Rule:
        """The rule in force at a step. InvalidArgument: one that this client does not know."""
        found = self.at(step)
        if found.rule is None:
            raise InvalidArgument(f"step {step}: {found.unknown}")
        return found.rule

    def read_losses(self, step: int) -> bool:
        """Whether the weights of a step depend on its losses."""
        return self.at(step).source != "draw"

    def where(self, step: int, world_size: int) -> Where:
        """Where weights that read losses are made: what the policy says; for "auto", here when this rank is alone."""
        word = self.at(step).where
        if word == "auto":
            return "client" if world_size == 1 else "server"
        return "client" if word == "client" else "server"

    def is_free(self, step: int) -> bool:
        """Whether the policy and the rule leave open where weights are made."""
        return self.at(step).where == "auto"

    def _index(self, step: int) -> int:
        return max(bisect.bisect_right(self._steps, step) - 1, 0)


class PendingWeights:
    """The weights that one report asked for: float32, one for each loss of it."""

    def __init__(
        self, answer: Answer, wait: Callable[[Answer, float | None], npt.NDArray[np.float32]]
    ) -> None:
        self._answer = answer
        self._wait = wait

    @property
    def done(self) -> bool:
        """Whether result() returns or raises without waiting."""
        return self._answer.done

    def result(self, timeout: float | None = None) -> npt.NDArray[np.float32]:
        """The weights, float32[n].

        Waits for them, `timeout` seconds at most (the session's by default). DeadlineExceeded says which ranks' losses
        were waited for; ReportRefused: the report was refused; otherwise what ended the session.
        """
        return self._wait(self._answer, timeout)


def _parse(config: Mapping[str, Any], weighing: int) -> Weighing:
    try:
        rule, where = weigh.parse(config), weigh.parse_where(config)
    except (ValueError, TypeError) as error:
        unknown = f"the run weighs by {dict(config)!r}, which this version of the client cannot: {error}"
        source = _SOURCES.get(weighing)
        if source is None or config.get("where") == "client":
            raise InvalidArgument(unknown) from error
        return Weighing(config, source, "server", None, unknown)
    source = _SOURCES.get(weighing) or _source_of(rule)
    return Weighing(config, source, where if source in ("draw", "losses") else "server", rule)


def _source_of(rule: Rule) -> Source:
    """As a server would say that does not."""
    if rule.reads != "losses":
        return "draw"
    if rule.remembers:
        return "in order"
    return "losses" if weigh.server_only(rule) is None else "server"
