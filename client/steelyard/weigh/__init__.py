"""How much each example of a batch counts: the weigh rules, shared by the server and the trainers.

    weights(losses, {"method": "linupper", "r": 0.4}, step=0)

is the whole of it. The contract of a rule stands in steelyard.weigh.rule, one rule in each of the other
files. Nothing here imports more than numpy; torch and JAX arrays bring their own library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

import numpy as np

from steelyard.source import Source
from steelyard.weigh.config import WHERE, parse, parse_where, to_config
from steelyard.weigh.registry import METHODS, find
from steelyard.weigh.rule import Context, Past, Reads, Rule, server_only

__all__ = [
    "METHODS",
    "WHERE",
    "Context",
    "Past",
    "Reads",
    "Rule",
    "Source",
    "find",
    "parse",
    "parse_where",
    "remember",
    "server_only",
    "to_config",
    "weights",
]

ArrayT = TypeVar("ArrayT")


def weights(
    losses: ArrayT,
    config: Mapping[str, Any] | Rule,
    *,
    step: int = 0,
    probability: ArrayT | None = None,
    examples: int | None = None,
    mask: ArrayT | None = None,
    columns: Mapping[str, ArrayT] | None = None,
    weight: ArrayT | None = None,
    past: Past | None = None,
    seed: int = 0,
) -> ArrayT:
    """The weight of each example of one global batch, in an array of the losses' kind, shape and device.

    `losses` are those of the whole batch at `step`: a numpy array, a torch tensor or a JAX array. Pure; no
    gradient passes, and no device is waited for. float64 for float64 losses, else float32. The objective is
    the plain mean of weight times loss over the positions where `mask` is not False; see steelyard.weigh.rule
    for the whole contract, and its Context for the keywords.

    ValueError: a bad configuration, arrays that do not fit together, or a keyword missing that the rule reads.
    TypeError: not an array.
    """
    rule = parse(config) if isinstance(config, Mapping) else config
    context = Context(step, probability, examples, mask, columns or {}, weight, past, seed)
    return cast("ArrayT", rule.weights(losses, context))


def remember(
    config: Mapping[str, Any] | Rule,
    losses: np.ndarray[Any, Any],
    *,
    step: int = 0,
    probability: np.ndarray[Any, Any] | None = None,
    examples: int | None = None,
    mask: np.ndarray[Any, Any] | None = None,
    columns: Mapping[str, np.ndarray[Any, Any]] | None = None,
    weight: np.ndarray[Any, Any] | None = None,
    past: Past | None = None,
    seed: int = 0,
) -> Past:
    """What the rule remembers after this batch: the `past` to weigh the next one with. Errors as of weights.

    `losses` and the keywords are those that the batch was weighed with, as numpy arrays. Empty for a rule that
    remembers nothing.
    """
    rule = parse(config) if isinstance(config, Mapping) else config
    context = Context(step, probability, examples, mask, columns or {}, weight, past, seed)
    return rule.remember(losses, context)
