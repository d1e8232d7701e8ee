"""What a weigh rule makes of a step: its weights, and what it remembers of it. Pure.

A rule that reads no losses is asked at the draw, one that does when the step is closed. Where it remembers, steps are
asked for in their order, and each has the past of the steps before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from steelyard import weigh
from steelyard.weigh.uniform import Uniform
from steelyard_server.core.events import Float32s
from steelyard_server.runs.steps import StepRecord

Past = Mapping[str, npt.NDArray[np.float64]]


class RuleFailed(Exception):  # noqa: N818 -- it names what happened, as errors of a run do
    """The rule raised, or gave what are no weights. The message says which rule, at which step, and why."""


def at_draw(rule: weigh.Rule) -> bool:
    """Whether the weights of a batch are known when it is drawn."""
    return rule.reads != "losses"


def needs_fold(rule: weigh.Rule) -> bool:
    """Whether weights follow from more than the step itself: then only the fold of the run knows them."""
    return rule.remembers or bool(rule.columns)


def is_weighed(rule: weigh.Rule, record: StepRecord) -> bool:
    """Whether the weights of a step can be asked for."""
    if rule.remembers:
        return record.weights is not None or bool(record.failure)
    return at_draw(rule) or record.closed


def weights_of(rule: weigh.Rule, record: StepRecord, seed: int) -> Float32s | None:
    """float32[B]: the weights of a step that is weighed; None where every one is 1.

    Losses count where they were reported; other positions weigh 0. RuleFailed: there are none, and never will be.
    """
    if record.failure:
        raise RuleFailed(record.failure)
    if record.weights is not None:
        return record.weights
    if isinstance(rule, Uniform):
        return None
    return made(rule, record, seed, None)


def made(rule: weigh.Rule, record: StepRecord, seed: int, past: Past | None) -> Float32s:
    """float32[B]: the weights that the rule makes of a step with this past. RuleFailed."""
    losses, context = _asked(rule, record, seed, past)
    try:
        weights = np.asarray(rule.weights(losses, context), dtype=np.float32)
    except Exception as error:
        raise _failed(rule, record, error) from error
    if weights.shape != losses.shape or not (np.isfinite(weights) & (weights >= 0)).all():
        came = f"shape {weights.shape}" if weights.shape != losses.shape else _first_bad(weights)
        why = ValueError(f"expected {len(losses)} finite weights of at least 0; got {came}")
        raise _failed(rule, record, why) from why
    return weights


def remembered(rule: weigh.Rule, record: StepRecord, seed: int, past: Past | None) -> Past:
    """The past of the step after. RuleFailed."""
    losses, context = _asked(rule, record, seed, past)
    try:
        kept = rule.remember(losses, context)
        return {str(name): np.array(values, np.float64) for name, values in sorted(kept.items())}
    except Exception as error:
        raise _failed(rule, record, error) from error


def _asked(
    rule: weigh.Rule, record: StepRecord, seed: int, past: Past | None
) -> tuple[Float32s, weigh.Context]:
    drawn, size = record.drawn, len(record.drawn.ids)
    unknown = np.full(size, np.nan, np.float32)
    columns = {name: record.columns.get(name, unknown) for name in rule.columns}
    losses, mask = np.ones(size, np.float32), None
    if not at_draw(rule):
        losses, mask = record.signals.get("loss", np.zeros(size, np.float32)), record.reported
        columns |= {name: record.signals.get(name, unknown) for name in rule.signals}
    probability = drawn.probability
    if probability is None:
        probability = np.full(size, drawn.uniform_probability)
    return losses, weigh.Context(
        step=drawn.step,
        probability=probability,
        examples=round(1 / drawn.uniform_probability),
        mask=mask,
        columns=columns,
        weight=drawn.weight,
        past=past,
        seed=seed,
    )


def _failed(rule: weigh.Rule, record: StepRecord, error: Exception) -> RuleFailed:
    return RuleFailed(
        f"weigh rule {rule.method!r} failed at step {record.drawn.step}: {type(error).__name__}: {error}"
    )


def _first_bad(weights: Float32s) -> str:
    at = int(np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))[0])
    return f"{weights[at]} at position {at}"
