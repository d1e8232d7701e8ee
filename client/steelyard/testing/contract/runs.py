"""What holds for every run, whatever its policy draws and mixes by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from steelyard.testing.contract.life import BATCH_SIZE, SIZE, Life, same_batch
from steelyard.testing.contract.numbers import losses as any_loss
from steelyard.testing.contract.numbers import try_all
from steelyard.testing.contract.subject import Subject
from steelyard_server.core.events import IdsRetired

EPOCH = SIZE // BATCH_SIZE
PATIENCE = 50 * EPOCH
"""Batches within which something new must come at least once."""
_EXAMPLES = 20
"""A whole run each."""


def the_same_reports_give_the_same_batches(subject: Subject) -> None:
    one, other = begun(subject), begun(subject)
    for _ in range(2 * EPOCH):
        same_batch(one.run.draw(), one.run.draw(), "asked twice")
        same_batch(one.step(), other.step(), "in a second run")


def examples_that_were_never_reported_are_drawn_from(subject: Subject) -> None:
    life = begun(subject, staleness="any")
    for _ in range(2 * EPOCH):
        life.draw()


def a_checkpoint_forgets_nothing(subject: Subject) -> None:
    life = begun(subject)
    for number in range(EPOCH + 3):
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
    life = begun(subject)
    life.steps(EPOCH)
    life.grow(5)
    _retire(life, range(0, 8, 3))
    life.steps(EPOCH)
    _go_on(life, life.replayed(), "from the journal")


def draws_are_sound_whatever_is_reported(subject: Subject) -> None:
    """Any finite signals, of all examples at first and of a batch later, outliers of 1e30 among them."""

    def live(everywhere: list[float], in_batch: list[float]) -> None:
        life = begun(subject)
        life.observe(np.arange(SIZE), **dict.fromkeys(life.signals, everywhere))
        _report(life, in_batch)
        life.draw()

    lists = (st.lists(any_loss, min_size=size, max_size=size) for size in (SIZE, BATCH_SIZE))
    try_all(*lists, examples=_EXAMPLES)(live)


def an_outlier_leaves_draws_sound(subject: Subject) -> None:
    for value in (1e30, -1e30, 3e38):
        life = begun(subject)
        life.steps(2)
        _report(life, [value, *[1.0] * (BATCH_SIZE - 1)])
        life.steps(EPOCH)


def losses_that_are_not_finite_do_not_count(subject: Subject) -> None:
    life = begun(subject)
    _report(life, [np.nan, np.inf, -np.inf, 1.0])
    life.steps(EPOCH)


def new_examples_are_drawn(subject: Subject) -> None:
    life = begun(subject)
    life.steps(EPOCH // 2)
    life.grow(8)
    for _ in range(PATIENCE):
        if (life.step().ids >= SIZE).any():
            return
    raise AssertionError(f"none of 8 appended examples in {PATIENCE} batches of {BATCH_SIZE}")


def retired_examples_are_never_drawn_again(subject: Subject) -> None:
    # Every batch is held against the retired ids where it is drawn.
    life = begun(subject)
    life.steps(EPOCH // 2)
    _retire(life, range(0, SIZE, 2))
    life.steps(EPOCH)
    _retire(life, range(BATCH_SIZE * 2 + 1, SIZE, 2))
    life.steps(EPOCH)


CLAUSES: tuple[Callable[[Subject], None], ...] = (
    the_same_reports_give_the_same_batches,
    examples_that_were_never_reported_are_drawn_from,
    a_checkpoint_forgets_nothing,
    a_journal_replayed_gives_the_same_run,
    draws_are_sound_whatever_is_reported,
    an_outlier_leaves_draws_sound,
    losses_that_are_not_finite_do_not_count,
    new_examples_are_drawn,
    retired_examples_are_never_drawn_again,
)


def begun(subject: Subject, **spec: Any) -> Life:
    """A run whose static columns are there."""
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
