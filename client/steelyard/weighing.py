"""Which weigh rule is in force at which step, and weights that are still on their way."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from steelyard import weigh
from steelyard.errors import InvalidArgument
from steelyard.ledger import Answer
from steelyard.weigh import Rule

Where = Literal["client", "server"]


class Rules:
    """The rules of a run by the step from which each holds. Not locked: one writer, and readers of whole lists."""

    def __init__(self, config: Mapping[str, Any], start_step: int) -> None:
        self._steps = [start_step]
        self._rules = [_parse(config)]

    def change(self, config: Mapping[str, Any], step: int) -> None:
        """From `step` on, `config` is in force. InvalidArgument: a rule that this client does not know."""
        parsed = _parse(config)
        if parsed == self._rules[-1]:
            return
        if step <= self._steps[-1]:
            self._rules[-1] = parsed
            return
        self._rules.append(parsed)
        self._steps.append(step)

    def at(self, step: int) -> Rule:
        """The rule in force at a step."""
        return self._rules[self._index(step)][0]

    def read_losses(self, step: int) -> bool:
        """Whether the weights of a step depend on its losses."""
        rules = self._rules
        return (rules[0] if len(rules) == 1 else rules[self._index(step)])[0].reads == "losses"

    def where(self, step: int, world_size: int) -> Where:
        """Where weights that read losses are made: what the policy says; for "auto", here when this rank is alone."""
        word = self._rules[self._index(step)][1]
        if word == "auto":
            return "client" if world_size == 1 else "server"
        return "client" if word == "client" else "server"

    def is_free(self, step: int) -> bool:
        """Whether the policy and the rule leave open where weights are made."""
        return self._rules[self._index(step)][1] == "auto"

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


def _parse(config: Mapping[str, Any]) -> tuple[Rule, str]:
    try:
        rule, where = weigh.parse(config), weigh.parse_where(config)
    except ValueError as error:
        raise InvalidArgument(
            f"the run weighs by {dict(config)!r}, which this version of the client cannot: {error}"
        ) from error
    return rule, where if weigh.server_only(rule) is None else "server"
