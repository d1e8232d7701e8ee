"""The contract of a weigh rule; steelyard.weigh.rule states it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from steelyard import weigh
from steelyard.testing.contract.numbers import losses as any_loss
from steelyard.testing.contract.numbers import try_all, unknown_too
from steelyard.testing.contract.subject import Subject
from steelyard.weigh import Context, Rule

Array = npt.NDArray[Any]

SIZE = 12
EXAMPLES = 48
STEPS = 6


def the_configuration_survives_being_stored(subject: Subject) -> None:
    rule = _rule(subject)
    again = weigh.parse(weigh.to_config(rule))
    assert again == rule, f"{weigh.to_config(rule)} gives {again!r}, expected {rule!r}"
    assert isinstance(rule.never_reported, str)
    assert rule.never_reported, "never_reported is empty"


def bad_parameters_are_refused_by_name(subject: Subject) -> None:
    canonical = weigh.to_config(_rule(subject))
    names = [field.name for field in dataclasses.fields(subject.method)]
    for name in names:
        for bad in (float("nan"), object()):
            _refused({**canonical, name: bad}, name)
    _refused({**canonical, "no_such_parameter": 1}, "no_such_parameter")


def the_same_batches_give_the_same_weights(subject: Subject) -> None:
    batches = [_batch(subject, step) for step in range(STEPS)]
    before = [_copied(batch) for batch in batches]
    first, second = (_live(_rule(subject), batches) for _ in range(2))
    for step, (one, other) in enumerate(zip(first, second, strict=True)):
        np.testing.assert_array_equal(one, other, f"step {step}, the second time")
    for batch, copy in zip(batches, before, strict=True):
        _same_batch(batch, copy, "an argument was changed")


def what_it_remembers_survives_a_restart(subject: Subject) -> None:
    """Numbers of float64 and nothing else: they are stored as such, and no rule keeps more beside them."""
    rule = _rule(subject)
    past: Mapping[str, Array] | None = None
    for step in range(STEPS):
        batch = _batch(subject, step)
        stored = None if past is None else {name: _stored(name, values) for name, values in past.items()}
        kept = rule.weights(batch[0], _with_past(batch[1], past))
        again = _rule(subject).weights(batch[0], _with_past(batch[1], stored))
        np.testing.assert_array_equal(again, kept, f"step {step}, from what was stored")
        past = _rule(subject).remember(batch[0], _with_past(batch[1], stored))
        if not rule.remembers:
            assert not past, f"remembers says no, and remember gives {sorted(past)}"


def the_order_in_a_batch_does_not_matter(subject: Subject) -> None:
    rule = _rule(subject)
    if rule.random:
        return
    order = np.random.Generator(np.random.Philox(7)).permutation(SIZE)
    batches = [_batch(subject, step) for step in range(STEPS)]
    permuted = [_taken(batch, order) for batch in batches]
    for step, (one, other) in enumerate(zip(_live(rule, batches), _live(rule, permuted), strict=True)):
        np.testing.assert_allclose(other, one[order], rtol=1e-4, atol=1e-6, err_msg=f"step {step}, permuted")


def equal_losses_give_equal_weights(subject: Subject) -> None:
    """Of a rule that selects: the chosen ones have equal weights, and these sum to the size of the batch."""
    rule = _rule(subject)
    if rule.reads != "losses" or rule.random:
        return
    losses, context = _batch(subject, 0)
    columns = {name: np.full_like(values, values[0]) for name, values in context.columns.items()}
    even = dataclasses.replace(
        context, columns=columns, probability=np.full(SIZE, 1 / EXAMPLES), weight=np.ones(SIZE)
    )
    for value in (0.0, 1.5, 1e30):
        weights = rule.weights(np.full_like(losses, value), even)
        chosen = weights[weights > 0] if rule.selects else weights
        if len(chosen):
            np.testing.assert_allclose(chosen, chosen[0], rtol=1e-5, err_msg=f"all losses {value:g}")


def padding_weighs_nothing_and_changes_nothing(subject: Subject) -> None:
    rule = _rule(subject)
    losses, context = _batch(subject, 0)
    counts = np.arange(SIZE) % 4 != 1
    padded = rule.weights(losses, dataclasses.replace(context, mask=counts))
    assert (padded[~counts] == 0).all(), f"padding weighs {padded[~counts]}"
    if not rule.random:
        bare = rule.weights(*_taken((losses, context), np.flatnonzero(counts)))
        np.testing.assert_allclose(padded[counts], bare, rtol=1e-4, atol=1e-6, err_msg="beside padding")


def what_a_trainer_knows_is_enough(subject: Subject) -> None:
    """Of a rule that may run in the trainer: it has the losses, the step and the mask, and gives the same weights."""
    rule = _rule(subject)
    if rule.reads != "losses" or weigh.server_only(rule) is not None:
        return
    for step in range(STEPS):
        losses, context = _batch(subject, step)
        kept = rule.weights(losses, context)
        alone = rule.weights(losses, Context(step=step))
        np.testing.assert_array_equal(alone, kept, f"step {step}, in the trainer")


def it_reads_what_it_says(subject: Subject) -> None:
    """Of a rule that says it reads no losses: its weights travel with the batch, before there are any."""
    rule = _rule(subject)
    if rule.reads == "losses":
        return
    for step in range(STEPS):
        losses, context = _batch(subject, step)
        others = rule.weights(losses[::-1] * 3 + 1, context)
        message = f"step {step}: reads says {rule.reads!r}, and other losses weigh otherwise"
        np.testing.assert_array_equal(others, rule.weights(losses, context), message)


def weights_are_finite_and_not_negative(subject: Subject) -> None:
    """For any finite losses, any column, and for the batch after it; and for a batch where some are not finite."""
    rule = _rule(subject)

    def live(values: list[float], others: list[float], spoilt: list[bool]) -> None:
        past: Mapping[str, Array] | None = None
        for step, dtype in enumerate((np.float32, np.float64)):
            losses, context = _batch(subject, step)
            losses = np.array(values).astype(dtype)
            columns = {name: _mixed(column, others) for name, column in context.columns.items()}
            context = dataclasses.replace(context, columns=columns, past=past)
            bad = losses.copy()
            bad[np.array(spoilt)] = [np.nan, np.inf, -np.inf][step]
            for given in (losses, bad):
                _check(rule, given, rule.weights(given, context))
            past = rule.remember(losses, context)
            assert all(np.isfinite(kept).all() for kept in past.values()), f"remembers {past}"

    lists = (st.lists(one, min_size=SIZE, max_size=SIZE) for one in (any_loss, unknown_too, st.booleans()))
    try_all(*lists)(live)


def an_outlier_leaves_weights_finite(subject: Subject) -> None:
    rule = _rule(subject)
    for value in (1e30, -1e30, 3e38):
        losses, context = _batch(subject, 0)
        losses = losses.copy()
        losses[4] = value
        _check(rule, losses, rule.weights(losses, context))


CLAUSES: tuple[Callable[[Subject], None], ...] = (
    the_configuration_survives_being_stored,
    bad_parameters_are_refused_by_name,
    the_same_batches_give_the_same_weights,
    what_it_remembers_survives_a_restart,
    the_order_in_a_batch_does_not_matter,
    equal_losses_give_equal_weights,
    padding_weighs_nothing_and_changes_nothing,
    what_a_trainer_knows_is_enough,
    it_reads_what_it_says,
    weights_are_finite_and_not_negative,
    an_outlier_leaves_weights_finite,
)


def _rule(subject: Subject) -> Rule:
    return weigh.parse(subject.config)


def _batch(subject: Subject, step: int) -> tuple[Array, Context]:
    """Distinct losses, and a context that holds all that a rule may read."""
    ids = (np.arange(SIZE) * 5 + step * 7) % EXAMPLES
    rule = _rule(subject)
    columns = {name: subject.column(name, EXAMPLES)[ids] for name in rule.columns}
    columns.update({name: subject.signal(name, ids, step) for name in rule.signals})
    context = Context(
        step=step,
        probability=(1 + ids % 4) / (2.5 * EXAMPLES),
        examples=EXAMPLES,
        columns=columns,
        weight=(1 + ids % 3).astype(np.float32),
        seed=5,
    )
    return subject.signal("loss", ids, step), context


def _live(rule: Rule, batches: list[tuple[Array, Context]]) -> list[Array]:
    """The weights of batches that follow each other."""
    past: Mapping[str, Array] | None = None
    found = []
    for losses, context in batches:
        found.append(rule.weights(losses, _with_past(context, past)))
        past = rule.remember(losses, _with_past(context, past))
    return found


def _with_past(context: Context, past: Mapping[str, Array] | None) -> Context:
    return dataclasses.replace(context, past=past)


def _stored(name: str, values: Any) -> Array:
    assert isinstance(values, np.ndarray), f"remembers {name} as {type(values).__name__}, expected an array"
    assert values.dtype == np.float64, f"remembers {name} as {values.dtype}, expected float64"
    return np.frombuffer(values.tobytes(), np.float64).reshape(values.shape)


def _taken(batch: tuple[Array, Context], at: Array) -> tuple[Array, Context]:
    losses, context = batch
    parts = {name: values[at] for name, values in context.columns.items()}
    probability, weight = (np.asarray(values)[at] for values in (context.probability, context.weight))
    return losses[at], dataclasses.replace(context, columns=parts, probability=probability, weight=weight)


def _copied(batch: tuple[Array, Context]) -> tuple[Array, Context]:
    return _taken(batch, np.arange(SIZE))


def _same_batch(one: tuple[Array, Context], other: tuple[Array, Context], why: str) -> None:
    np.testing.assert_array_equal(one[0], other[0], why)
    np.testing.assert_array_equal(one[1].probability, other[1].probability, why)
    np.testing.assert_array_equal(one[1].weight, other[1].weight, why)
    for name, values in one[1].columns.items():
        np.testing.assert_array_equal(values, other[1].columns[name], why)


def _mixed(column: Array, others: list[float]) -> Array:
    """The column with some other numbers in it; groups and the like stay whole."""
    if (column == column.astype(np.int64)).all():
        return np.where(np.isnan(np.array(others)), np.nan, column).astype(np.float32)
    return np.array(others, np.float32)


def _check(rule: Rule, losses: Array, weights: Any) -> None:
    assert isinstance(weights, np.ndarray), f"expected an array, got {type(weights).__name__}"
    assert weights.shape == losses.shape, f"expected weights of shape {losses.shape}, got {weights.shape}"
    assert weights.dtype == losses.dtype, f"expected weights of {losses.dtype}, got {weights.dtype}"
    assert np.isfinite(weights).all(), f"losses {losses.tolist()} weigh {weights.tolist()}"
    assert (weights >= 0).all(), f"losses {losses.tolist()} weigh {weights.tolist()}"
    if rule.reads == "losses":
        spoilt = weights[~np.isfinite(losses)]
        assert (spoilt == 0).all(), f"losses that are not finite weigh {spoilt.tolist()}"


def _refused(config: Mapping[str, Any], name: str) -> None:
    message = ""
    try:
        weigh.parse(config)
    except ValueError as error:
        message = str(error)
    assert message, f"{name} = {config[name]!r} was taken"
    assert name in message, f"the message about {name} does not name it: {message}"
