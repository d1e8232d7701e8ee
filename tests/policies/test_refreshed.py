"""The engine of weights that are computed over all rows now and then: what is drawn, when, and by what state."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest
from scipy import stats

from steelyard.source import Source
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw.contract import Drawer, Drawn, Examples
from steelyard_server.policies.draw.engines.refreshed import WEIGHT, RefreshedDraw
from steelyard_server.policies.draw.rows import Float64s, Moment, Rows

ERROR_RATE = 1e-6
"""Chance that a right drawer fails a statistical test, had the seed not been fixed."""

NAN, INF = float("nan"), float("inf")
SEEN: list[Moment] = []


class AsTold(RefreshedDraw):
    """The weights are a static column."""

    source: ClassVar[Source] = Source("none", "for tests")
    never_reported: ClassVar[str] = "No mass."
    method: str = "as_told"

    @property
    def derived(self) -> tuple[Derived, ...]:
        return ()

    @property
    def static(self) -> tuple[str, ...]:
        return ("told",)

    def weights(self, rows: Rows, moment: Moment) -> Float64s:
        SEEN.append(moment)
        return rows["told"].astype(np.float64)


def examples_of(told: Any, retired: Any = ()) -> Examples:
    size = len(told)
    columns = {"told": np.array(told, np.float32), WEIGHT: np.full(size, np.nan, np.float32)}
    return Examples(size, np.array(sorted(retired), np.int64), columns)


def drawer_of(examples: Examples, batch_size: int = 4, state: Any = None, **config: Any) -> Drawer:
    SEEN.clear()
    stored = None if state is None else json.loads(json.dumps(state))
    return AsTold(**config).drawer(examples, seed=5, batch_size=batch_size, state=stored)


def drawn(drawer: Drawer, step: int = 0) -> Drawn:
    drawer.prepare(step)
    return drawer.draw(step)


def law_of(drawer: Drawer, size: int, step: int = 0) -> list[float]:
    """The expected copies a place, of each id, which the batches themselves tell; 0 for one that never came."""
    law = [0.0] * size
    drawer.prepare(step)
    for at in range(step, step + 500):
        batch = drawer.draw(at)
        assert batch.probability is not None
        for example, probability in zip(batch.ids.tolist(), batch.probability.tolist(), strict=True):
            law[example] = probability
    return law


def grow(drawer: Drawer, examples: Examples, more: int) -> None:
    examples.size += more
    for name, column in list(examples.columns.items()):
        examples.columns[name] = np.append(column, np.full(more, np.nan, np.float32))
    drawer.grew()


def retire(drawer: Drawer, examples: Examples, ids: list[int]) -> None:
    examples.retired = np.union1d(examples.retired, ids).astype(np.int64)
    drawer.retired(np.array(ids))


@pytest.mark.parametrize("mode", ["independent", "stratified", "distinct"])
def test_ids_are_drawn_in_proportion_to_the_weights_and_those_of_weight_0_never(mode: str) -> None:
    told = np.random.default_rng(2).gamma(1.0, size=30)
    told[[3, 7]] = 0.0
    drawer = drawer_of(examples_of(told), 6, sampling=mode)
    assert drawer.drawable == 30, "before the first draw nothing is known of weights"
    drawer.prepare(0)
    counts = np.zeros(30)
    steps = 3000
    for step in range(steps):
        counts += np.bincount(drawer.draw(step).ids, minlength=30)
    expected = np.array(law_of(drawer, 30)) * 6 * steps
    if mode != "distinct":
        assert expected / expected.sum() == pytest.approx(told / told.sum(), rel=1e-6)
    assert counts[[3, 7]].tolist() == [0, 0]
    positive = told > 0
    statistic = float(((counts - expected)[positive] ** 2 / expected[positive]).sum())
    assert statistic < stats.chi2.isf(ERROR_RATE, 27)
    assert drawer.drawable == 28
    drawer.check()


def test_weights_are_computed_before_the_first_draw_and_then_every_so_many_steps() -> None:
    drawer = drawer_of(examples_of(np.ones(10)), refresh_steps=3)
    for step in (4, 4, 5, 6, 7, 7, 8, 12, 13):
        drawn(drawer, step)
    assert [(moment.step, moment.epoch) for moment in SEEN] == [(4, 0), (7, 1), (12, 2)]


def test_an_epoch_is_the_drawable_examples_by_the_batch() -> None:
    drawer = drawer_of(examples_of(np.ones(12), retired=[0, 1]), batch_size=4)
    for step in range(10):
        drawn(drawer, step)
    assert [moment.step for moment in SEEN] == [0, 3, 6, 9]


def test_what_changes_meanwhile_is_known_to_the_next_computation() -> None:
    examples = examples_of([1.0, 0, 0, 0])
    drawer = drawer_of(examples, 2, refresh_steps=2, sampling="independent")
    assert drawn(drawer, 0).ids.tolist() == [0, 0]
    examples.columns["told"][:] = [0, 1, 0, 0]
    drawer.changed(np.arange(2))
    assert drawn(drawer, 1).ids.tolist() == [0, 0]
    assert drawn(drawer, 2).ids.tolist() == [1, 1]


@pytest.mark.parametrize("told", [[0.0] * 5, [NAN] * 5, [-1.0] * 5, [-INF] * 5])
@pytest.mark.parametrize("mode", ["independent", "distinct"])
def test_where_no_weight_is_positive_all_are_drawn_alike(told: list[float], mode: str) -> None:
    drawer = drawer_of(examples_of(told, retired=[2]), 2, sampling=mode)
    assert law_of(drawer, 5) == pytest.approx([0.25, 0.25, 0, 0.25, 0.25])


def test_nan_and_negative_weights_count_as_0_and_infinity_as_more_than_all() -> None:
    drawer = drawer_of(examples_of([NAN, 1.0, -3.0, 3.0]), sampling="independent")
    assert law_of(drawer, 4) == pytest.approx([0, 0.25, 0, 0.75], rel=1e-7)
    drawer = drawer_of(examples_of([INF, 1.0, 1e30, INF]), sampling="independent")
    assert law_of(drawer, 4) == pytest.approx([0.5, 0, 0, 0.5], abs=1e-7)


def test_a_retired_row_has_no_say_in_how_fine_weights_are_kept() -> None:
    drawer = drawer_of(examples_of([1e30, 1.0, 2.0], retired=[0]), sampling="independent")
    assert law_of(drawer, 3) == pytest.approx([0, 1 / 3, 2 / 3], rel=1e-6)


def test_a_distinct_batch_takes_all_that_have_a_weight_and_fills_up_with_the_others_alike() -> None:
    examples = examples_of([0.0, 5.0, 0.0, 1e-3, 0.0, 0.0])
    drawer = drawer_of(examples, 4)
    batches = [set(drawn(drawer, step).ids.tolist()) for step in range(400)]
    assert all(len(batch) == 4 and {1, 3} <= batch for batch in batches)
    fill = np.bincount([example for batch in batches for example in batch - {1, 3}], minlength=6)
    assert drawer.draw(0).probability is not None
    # Two of four places at a time: 200 each, and sd 10.
    assert all(150 < count < 250 for count in fill[[0, 2, 4, 5]])
    drawer.check()


def test_retirements_between_two_computations_leave_a_distinct_batch_that_can_be_drawn() -> None:
    examples = examples_of([1.0, 1.0, 1.0, 0.0, 0.0])
    drawer = drawer_of(examples, 3, refresh_steps=100)
    assert set(drawn(drawer, 0).ids.tolist()) == {0, 1, 2}
    retire(drawer, examples, [1])
    for step in range(1, 20):
        batch = set(drawn(drawer, step).ids.tolist())
        assert {0, 2} < batch
        assert 1 not in batch
    drawer.check()
    retire(drawer, examples, [0])
    assert set(drawn(drawer, 30).ids.tolist()) == {2, 3, 4}


def test_a_draw_with_replacement_goes_on_with_the_others_when_the_last_of_weight_retires() -> None:
    examples = examples_of([1.0, 0.0, 0.0])
    drawer = drawer_of(examples, 3, refresh_steps=100, sampling="independent")
    assert drawn(drawer, 0).ids.tolist() == [0, 0, 0]
    retire(drawer, examples, [0])
    assert law_of(drawer, 3, step=1) == pytest.approx([0, 0.5, 0.5])


def test_a_floor_gives_rows_of_weight_0_their_share() -> None:
    drawer = drawer_of(examples_of([0.0, 1.0, 3.0, 0.0]), floor=0.2, sampling="independent")
    assert law_of(drawer, 4) == pytest.approx([0.05, 0.25, 0.65, 0.05], rel=1e-6)


def test_rows_that_came_since_weigh_as_much_as_the_greatest() -> None:
    examples = examples_of([1.0, 4.0, 1.0, 2.0])
    drawer = drawer_of(examples, refresh_steps=10, sampling="independent")
    drawn(drawer)
    grow(drawer, examples, 2)
    assert law_of(drawer, 6, step=1) == pytest.approx(
        [1 / 16, 4 / 16, 1 / 16, 2 / 16, 4 / 16, 4 / 16], rel=1e-6
    )
    drawer.check()


def test_weights_of_another_shape_are_refused_before_anything_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = examples_of([1.0, 2.0])
    drawer = drawer_of(examples)
    state = drawer.get_state()
    monkeypatch.setattr(AsTold, "weights", lambda self, rows, moment: np.ones(3))
    with pytest.raises(ValueError, match=r"expected weights of shape \(2,\), one for each row, got \(3,\)"):
        drawer.prepare(0)
    assert drawer.get_state() == state
    assert np.isnan(examples.columns[WEIGHT]).all()


def test_a_method_cannot_change_the_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(self: AsTold, rows: Rows, moment: Moment) -> Float64s:
        rows["told"][0] = 9.0
        return np.ones(rows.size)

    monkeypatch.setattr(AsTold, "weights", greedy)
    with pytest.raises(ValueError, match="read-only"):
        drawer_of(examples_of([1.0, 2.0])).prepare(0)


def _retire(drawer: Drawer, examples: Examples) -> None:
    retire(drawer, examples, [2, 5])


def _retire_the_greatest(drawer: Drawer, examples: Examples) -> None:
    retire(drawer, examples, [0])


def _grow(drawer: Drawer, examples: Examples) -> None:
    grow(drawer, examples, 3)


CHANGES: Mapping[str, Callable[[Drawer, Examples], None]] = {
    "retire": _retire,
    "the greatest": _retire_the_greatest,
    "grow": _grow,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "told", [[1e30, 1.0, 2.0, 3.0, 0.5, 1.0, 0.0, 0.0], [0.0] * 8, [1.0, 0, 2, 0, 0, 3, 0, 1]]
)
@pytest.mark.parametrize("config", [{}, {"floor": 0.1, "sampling": "stratified"}])
def test_a_drawer_rebuilt_from_its_state_draws_the_same(
    change: str, told: list[float], config: dict[str, Any]
) -> None:
    examples = examples_of(told)
    drawer = drawer_of(examples, refresh_steps=5, **config)
    drawn(drawer, 0)
    CHANGES[change](drawer, examples)
    again = drawer_of(examples, state=drawer.get_state(), refresh_steps=5, **config)
    for step in (1, 2, 6, 7):
        mine, theirs = drawn(drawer, step), drawn(again, step)
        assert mine.ids.tolist() == theirs.ids.tolist()
        assert mine.probability is not None
        assert theirs.probability is not None
        assert mine.probability.tolist() == theirs.probability.tolist()
        assert mine.uniform_probability == theirs.uniform_probability
        drawer.check()
    assert drawer.get_state() == again.get_state()


@pytest.mark.parametrize(
    "config", [{"refresh_steps": 0}, {"floor": 1.0}, {"sampling": "some"}, {"refreshsteps": 1}]
)
def test_parameters_out_of_range_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(config))):
        AsTold(**config)
