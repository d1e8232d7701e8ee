"""How much each example of a batch counts: the weigh rules, shared by the server and the trainers.

    weights(losses, {"method": "linupper", "r": 0.4}, step=0)

is the whole of it. The contract of a rule stands in steelyard.weigh.rule, one rule in each of the other
files. Nothing here imports more than numpy; torch and JAX arrays bring their own library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from steelyard.weigh.config import METHODS, WHERE, parse, parse_where, to_config
from steelyard.weigh.rule import Reads, Rule

__all__ = ["METHODS", "WHERE", "Reads", "Rule", "parse", "parse_where", "to_config", "weights"]

ArrayT = TypeVar("ArrayT")


def weights(
    losses: ArrayT,
    config: Mapping[str, Any] | Rule,
    *,
    step: int = 0,
    probability: ArrayT | None = None,
    examples: int | None = None,
    mask: ArrayT | None = None,
) -> ArrayT:
    """The weight of each example of one global batch, in an array of the losses' kind, shape and device.

    `losses` are those of the whole batch at `step`: a numpy array, a torch tensor or a JAX array. Pure; no
    gradient passes, and no device is waited for. float64 for float64 losses, else float32. The objective is
    the plain mean of weight times loss over the positions where `mask` is not False; see steelyard.weigh.rule
    for the whole contract.

    ValueError: a bad configuration, or arrays that do not fit together. TypeError: not an array.
    """
    rule = parse(config) if isinstance(config, Mapping) else config
    result = rule.weights(losses, step=step, probability=probability, examples=examples, mask=mask)
    return cast("ArrayT", result)
