"""The contract of a draw method; steelyard_server.policies.draw.contract states it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from steelyard.testing.contract.life import BATCH_SIZE, SIZE, Life, same_batch
from steelyard.testing.contract.models import (
    bad_parameters_are_refused_by_name,
    the_configuration_survives_being_stored,
)
from steelyard.testing.contract.numbers import losses as any_loss
from steelyard.testing.contract.numbers import try_all
from steelyard.testing.contract.subject import Subject
from steelyard_server.core.events import IdsRetired

EPOCH = SIZE // BATCH_SIZE
PATIENCE = 50 * EPOCH
"""Batches within which something new must come at least once."""


def the_same_reports_give_the_same_batches(subject: Subject) -> None:
    one, other = _begun(subject), _begun(subject)
    for _ in range(2 * EPOCH):
        same_batch(one.run.draw(), one.run.draw(), "asked twice")
        same_batch(one.step(), other.step(), "in a second run")


def examples_that_were_never_reported_are_drawn_from(subject: Subject) -> None:
    life = _begun(subject, staleness="any")
    for _ in range(2 * EPOCH):
        life.draw()


def a_checkpoint_forgets_nothing(subject: Subject) -> None:
    life = _begun(subject)
    for number in range(2 * EPOCH):
        _go_on(life, life.restored(), "from a checkpoint")
        if number == EPOCH // 2:
            life.grow(5)
            _go_on(life, life.restored(), "from a checkpoint after growth")
        if number == EPOCH:
            _retire(life, range(0, 8, 3))
            _go_on(life, life.restored(), "from a checkpoint after a retirement")
        # Drawn and not reported yet.
        drawn = life.draw()
        again = life.restored()
        for one in (life, again):
            one.report(drawn)
        _go_on(life, again, "from a checkpoint between draw and report")


def a_journal_replayed_gives_the_same_run(subject: Subject) -> None:
    life = _begun(subject)
    life.steps(EPOCH)
    life.grow(5)
    _retire(life, range(0, 8, 3))
    life.steps(EPOCH)
    _go_on(life, life.replayed(), "from the journal")


def the_order_in_a_report_does_not_matter(subject: Subject) -> None:
    lives = _begun(subject), _begun(subject)
    order = np.random.Generator(np.random.Philox(7)).permutation(SIZE)
    for life, ids in zip(lives, (np.arange(SIZE), order), strict=True):
        life.observe(ids.astype(np.int64))
    for _ in range(EPOCH + 1):
        same_batch(lives[0].step(), lives[1].step(), "reported in another order")


def equal_losses_give_equal_probabilities(subject: Subject) -> None:
    """Of a method whose law is one of the values alone: those that go by an order break ties somehow."""
    if getattr(subject.method, "breaks_ties", False):
        return
    life = Life(subject)
    life.set_columns(values={name: np.full(SIZE, subject.column(name, 1)) for name in life.static})
    ids = np.arange(SIZE)
    life.observe(ids, **{name: np.full(SIZE, subject.signal(name, ids[:1])) for name in life.signals})
    drawn = life.draw()
    for name, values in (("probability", drawn.probability), ("weight", drawn.weight)):
        if values is not None:
            np.testing.assert_allclose(values, values[0], rtol=1e-6, err_msg=f"{name}, all values equal")


def draws_are_sound_whatever_is_reported(subject: Subject) -> None:
    """Any finite signals, of all examples at first and of a batch later, outliers of 1e30 among them."""

    def live(everywhere: list[float], in_batch: list[float]) -> None:
        life = _begun(subject)
        life.observe(np.arange(SIZE), **dict.fromkeys(life.signals, everywhere))
        _report(life, in_batch)
        life.draw()

    lists = (st.lists(any_loss, min_size=size, max_size=size) for size in (SIZE, BATCH_SIZE))
    try_all(*lists)(live)


def an_outlier_leaves_draws_sound(subject: Subject) -> None:
    for value in (1e30, -1e30, 3e38):
        life = _begun(subject)
        life.steps(2)
        _report(life, [value, *[1.0] * (BATCH_SIZE - 1)])
        life.steps(EPOCH)


def losses_that_are_not_finite_do_not_count(subject: Subject) -> None:
    life = _begun(subject)
    _report(life, [np.nan, np.inf, -np.inf, 1.0])
    life.steps(EPOCH)


def new_examples_are_drawn(subject: Subject) -> None:
    life = _begun(subject)
    life.steps(EPOCH // 2)
    life.grow(8)
    for _ in range(PATIENCE):
        if (life.step().ids >= SIZE).any():
            return
    raise AssertionError(f"none of 8 appended examples in {PATIENCE} batches of {BATCH_SIZE}")


def retired_examples_are_never_drawn_again(subject: Subject) -> None:
    # Every batch is held against the retired ids where it is drawn.
    life = _begun(subject)
    life.steps(EPOCH // 2)
    _retire(life, range(0, SIZE, 2))
    life.steps(EPOCH)
    _retire(life, range(BATCH_SIZE * 2 + 1, SIZE, 2))
    life.steps(EPOCH)


CLAUSES: tuple[Callable[[Subject], None], ...] = (
    the_configuration_survives_being_stored,
    bad_parameters_are_refused_by_name,
    the_same_reports_give_the_same_batches,
    examples_that_were_never_reported_are_drawn_from,
    a_checkpoint_forgets_nothing,
    a_journal_replayed_gives_the_same_run,
    the_order_in_a_report_does_not_matter,
    equal_losses_give_equal_probabilities,
    draws_are_sound_whatever_is_reported,
    an_outlier_leaves_draws_sound,
    losses_that_are_not_finite_do_not_count,
    new_examples_are_drawn,
    retired_examples_are_never_drawn_again,
)


def _begun(subject: Subject, **spec: Any) -> Life:
    life = Life(subject, **spec)
    life.set_columns()
    return life


def _report(life: Life, values: list[float]) -> None:
    """A batch, and these values of every signal for it."""
    life.report(life.draw(), **dict.fromkeys(life.signals, values))


def _go_on(life: Life, again: Life, why: str) -> None:
    """Both draw and learn the same."""
    for _ in range(2):
        same_batch(life.step(), again.step(), why)


def _retire(life: Life, ids: range) -> None:
    life.apply(IdsRetired(np.array(ids, np.int64)))
