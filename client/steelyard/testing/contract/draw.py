"""The contract of a draw method; steelyard_server.policies.draw.contract states it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from steelyard.testing.contract import runs
from steelyard.testing.contract.life import SIZE, Life, same_batch
from steelyard.testing.contract.models import (
    bad_parameters_are_refused_by_name,
    the_configuration_survives_being_stored,
)
from steelyard.testing.contract.subject import Subject
from steelyard_server.policies.draw.engines.refreshed import RefreshedDraw
from steelyard_server.policies.draw.rows import Moment, Rows


def the_order_in_a_report_does_not_matter(subject: Subject) -> None:
    lives = runs.begun(subject), runs.begun(subject)
    order = np.random.Generator(np.random.Philox(7)).permutation(SIZE)
    for life, ids in zip(lives, (np.arange(SIZE), order), strict=True):
        life.observe(ids.astype(np.int64))
    for _ in range(runs.EPOCH + 1):
        same_batch(lives[0].step(), lives[1].step(), "reported in another order")


def equal_losses_give_equal_probabilities(subject: Subject) -> None:
    """Also of a method that goes by ranks: equal values share theirs."""
    life = Life(subject)
    life.set_columns(values={name: np.full(SIZE, subject.column(name, 1)) for name in life.static})
    ids = np.arange(SIZE)
    life.observe(ids, **{name: np.full(SIZE, subject.signal(name, ids[:1])) for name in life.signals})
    drawn = life.draw()
    for name, values in (("probability", drawn.probability), ("weight", drawn.weight)):
        if values is not None:
            np.testing.assert_allclose(values, values[0], rtol=1e-6, err_msg=f"{name}, all values equal")


def weights_of_rows_are_finite_and_not_negative(subject: Subject) -> None:
    """Of a method that weighs all rows at once. A drawer would pass over others, and hide them."""
    life = Life(subject)
    method = subject.method.parse(subject.config)
    if not isinstance(method, RefreshedDraw):
        return
    life.set_columns()
    for known in (0, SIZE // 2, SIZE):
        life.observe(np.arange(known))
        rows = Rows(SIZE, np.empty(0, np.int64), life.run.examples.columns)
        weights = np.asarray(method.weights(rows, Moment(step=known, epoch=0, seed=1)))
        what = f"weights of {SIZE} rows, {known} of them reported"
        assert weights.shape == (SIZE,), f"{what}: shape {weights.shape}"
        assert np.isfinite(weights).all(), f"{what}: {weights.tolist()}"
        assert (weights >= 0).all(), f"{what}: {weights.tolist()}"


CLAUSES: tuple[Callable[[Subject], None], ...] = (
    the_configuration_survives_being_stored,
    bad_parameters_are_refused_by_name,
    *runs.CLAUSES,
    the_order_in_a_report_does_not_matter,
    equal_losses_give_equal_probabilities,
    weights_of_rows_are_finite_and_not_negative,
)
