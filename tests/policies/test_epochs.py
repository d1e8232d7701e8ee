"""Epochs that a method chooses: subsets with copies and weights, orders, and windows over an order."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.source import Source
from steelyard_server.policies.draw.contract import Draw, Drawer, Drawn, Examples
from steelyard_server.policies.draw.engines.ordered import OrderedDraw
from steelyard_server.policies.draw.engines.subset import Kept, SubsetDraw
from steelyard_server.policies.draw.rows import Moment, Rows

HERE = Source("nowhere", "this test")


class Thirds(SubsetDraw):
    """Keeps the ids i with i % 3 == epoch % 3: the second of them twice, with the weight 1 + epoch."""

    source: ClassVar[Source] = HERE
    never_reported: ClassVar[str] = "Nobody reports."
    method: str = "thirds"
    doubled: bool = False

    @property
    def gives_weights(self) -> bool:
        return True

    def keep(self, rows: Rows, moment: Moment) -> Kept:
        mask = np.arange(rows.size) % 3 == moment.epoch % 3
        copies = np.ones(rows.size, np.int64)
        if self.doubled:
            copies[np.flatnonzero(mask)[1:2]] = 2
        return Kept(mask, copies, np.full(rows.size, 1 + moment.epoch, np.float32))


class FirstHalf(SubsetDraw):
    """Chooses once: the lower half; and nothing where there is but one."""

    source: ClassVar[Source] = HERE
    never_reported: ClassVar[str] = "Nobody reports."
    method: str = "first_half"

    def keep(self, rows: Rows, moment: Moment) -> Kept | None:
        return Kept(np.arange(rows.size) < rows.size // 2) if moment.epoch == 0 else None


class ByColumn(OrderedDraw):
    source: ClassVar[Source] = HERE
    never_reported: ClassVar[str] = "Nobody reports."
    method: str = "by_column"
    pace: float = 0.0

    @property
    def static(self) -> tuple[str, ...]:
        return ("x",)

    def keys(self, rows: Rows, moment: Moment) -> npt.NDArray[np.float64]:
        return rows["x"].astype(np.float64)

    def share(self, step: int) -> float | None:
        return min(1.0, 0.25 + self.pace * step) if self.pace else None


DRAWS: list[Draw] = [Thirds(), Thirds(doubled=True), FirstHalf(), ByColumn(), ByColumn(pace=0.05)]


def examples_of(draw: Draw, size: int) -> Examples:
    names = [*draw.own, *draw.static]
    examples = Examples(size, np.empty(0, np.int64), {name: blank(size) for name in names})
    if "x" in names:
        examples.columns["x"][:] = np.arange(size) * 7 % 5
    return examples


def blank(size: int) -> npt.NDArray[np.float32]:
    return np.full(size, np.nan, np.float32)


def again(draw: Draw, drawer: Drawer, examples: Examples, batch_size: int) -> Drawer:
    """The drawer as a reload builds it."""
    state = json.loads(json.dumps(drawer.get_state()))
    return draw.drawer(examples, seed=7, batch_size=batch_size, state=state)


def take(drawer: Drawer, step: int) -> Drawn:
    drawer.prepare(step)
    drawn = drawer.draw(step)
    drawer.set_draw_state(json.loads(json.dumps(drawn.draw_state)))
    drawer.check()
    return drawn


def grow(drawer: Drawer, examples: Examples, size: int) -> None:
    for name, column in examples.columns.items():
        examples.columns[name] = np.concatenate([column, blank(size - examples.size)])
    examples.size = size
    drawer.grew()


def retire(drawer: Drawer, examples: Examples, ids: list[int]) -> None:
    examples.retired = np.union1d(examples.retired, np.array(ids, np.int64))
    drawer.retired(np.array(ids, np.int64))


def stream(drawer: Drawer, steps: int) -> Iterator[tuple[int, float]]:
    for step in range(steps):
        drawn = take(drawer, step)
        weight = np.ones(len(drawn.ids)) if drawn.weight is None else drawn.weight
        yield from zip(drawn.ids.tolist(), weight.tolist(), strict=True)


@pytest.mark.parametrize("batch_size", [1, 4, 10, 11, 30, 31])
def test_an_epoch_is_what_was_kept_each_once_and_the_next_one_goes_on_in_the_same_batch(
    batch_size: int,
) -> None:
    draw = Thirds()
    drawer = draw.drawer(examples_of(draw, 90), seed=7, batch_size=batch_size)
    served = list(stream(drawer, 180 // batch_size + 1))
    for epoch in range(4):
        part = served[30 * epoch : 30 * epoch + 30]
        if batch_size < 30 or epoch < 2:
            choice = epoch if batch_size <= 30 else 0
            assert sorted(part) == [(i, 1.0 + choice) for i in range(choice % 3, 90, 3)], epoch
    assert served[:30] != sorted(served[:30])


def test_a_batch_that_goes_through_several_epochs_makes_one_choice() -> None:
    draw = Thirds()
    drawer = draw.drawer(examples_of(draw, 6), seed=7, batch_size=5)
    ids = [take(drawer, step).ids.tolist() for step in range(3)]
    assert Counter(ids[0]) in ({0: 3, 3: 2}, {0: 2, 3: 3})
    assert set(ids[1][1:]) == {1, 4}
    assert ids[1][0] in (0, 3)
    assert set(ids[2]) <= {1, 4, 2, 5}


def test_copies_come_that_often_with_the_probability_that_says_so() -> None:
    draw = Thirds(doubled=True)
    drawer = draw.drawer(examples_of(draw, 30), seed=7, batch_size=11)
    drawn = take(drawer, 0)
    assert Counter(drawn.ids.tolist()) == {i: 2 if i == 3 else 1 for i in range(0, 30, 3)}
    assert drawn.probability is not None
    assert drawn.probability.tolist() == [(2 if i == 3 else 1) / 11 for i in drawn.ids]
    assert drawn.uniform_probability == 1 / 10
    assert drawer.effective_sample_ratio() == pytest.approx(11**2 / (10 * 13))


def test_the_probability_is_one_over_the_kept_and_that_of_the_epoch_that_an_id_came_from() -> None:
    draw = Thirds()
    drawer = draw.drawer(examples_of(draw, 8), seed=7, batch_size=2)
    first, second = take(drawer, 0), take(drawer, 1)
    assert (first.probability, first.uniform_probability) == (None, 1 / 3)
    # 8 ids: 0 3 6, then 1 4 7, then 2 5.
    assert (second.probability, second.uniform_probability) == (None, 1 / 3)
    take(drawer, 2)
    mixed = [take(drawer, step) for step in (3, 4, 5)]
    assert [one.probability for one in mixed[:1]] == [None]
    assert mixed[0].uniform_probability == 1 / 2
    assert all(one.ids.tolist() for one in mixed)


PINNED = ["25392df58181e8d7", "d1ef036df537b871", "4d5fbb0b981a5200", "4850748b434a5648", "11376b266763a20a"]
"""A run that is continued by another version or on another machine must draw the same: one for each of DRAWS."""


@pytest.mark.parametrize(("draw", "pinned"), list(zip(DRAWS, PINNED, strict=True)), ids=str)
def test_the_batches_are_the_same_in_every_version(draw: Draw, pinned: str) -> None:
    examples = examples_of(draw, 1000)
    drawer = draw.drawer(examples, seed=2**63 + 5, batch_size=64)
    digest = hashlib.blake2b(digest_size=8)
    for step in range(40):
        if step in (5, 33):
            grow(drawer, examples, examples.size + 77)
        if step == 12:
            retire(drawer, examples, list(range(0, 500, 3)))
        digest.update(np.array(take(drawer, step).ids, "<i8").tobytes())
    assert digest.hexdigest() == pinned


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 7, 16, 50])
def test_preparing_twice_asking_twice_and_reloading_at_every_step_change_nothing(
    draw: Draw, batch_size: int
) -> None:
    calm, troubled = examples_of(draw, 37), examples_of(draw, 37)
    straight = draw.drawer(calm, seed=7, batch_size=batch_size)
    drawer = draw.drawer(troubled, seed=7, batch_size=batch_size)
    for step in range(30):
        expected = take(straight, step)
        drawer.prepare(step)
        drawer.draw(step)
        drawer = again(draw, drawer, troubled, batch_size)
        drawer.prepare(step)
        drawn = drawer.draw(step)
        assert drawn.ids.tolist() == expected.ids.tolist(), step
        assert drawn.draw_state == expected.draw_state
        assert (drawn.probability is None) == (expected.probability is None)
        assert (drawn.weight is None) == (expected.weight is None)
        drawer = again(draw, drawer, troubled, batch_size)
        drawer.prepare(step)
        drawer.set_draw_state(drawn.draw_state)
        drawer.check()
    for name in draw.own:
        np.testing.assert_array_equal(calm.columns[name], troubled.columns[name])


def test_ids_appended_in_an_epoch_come_with_the_next() -> None:
    draw = FirstHalf()
    examples = examples_of(draw, 20)
    drawer = draw.drawer(examples, seed=7, batch_size=5)
    first = take(drawer, 0).ids.tolist()
    grow(drawer, examples, 23)
    first += take(drawer, 1).ids.tolist()
    assert sorted(first) == list(range(10))
    rest = [example for step in range(2, 15) for example in take(drawer, step).ids.tolist()]
    # Chosen once: what was left out stays out, what came since is in.
    expected = [*range(10), 20, 21, 22]
    for epoch in range(5):
        assert sorted(rest[13 * epoch : 13 * epoch + 13]) == expected


def test_retired_ids_never_come_and_where_nothing_kept_is_left_a_new_choice_is_made() -> None:
    draw = Thirds()
    examples = examples_of(draw, 9)
    drawer = draw.drawer(examples, seed=7, batch_size=2)
    take(drawer, 0)
    retire(drawer, examples, [0, 3, 6, 4])
    ids = [example for step in range(1, 9) for example in take(drawer, step).ids.tolist()]
    assert set(ids) <= {1, 7, 2, 5, 8}
    assert sorted(ids[:2]) == [1, 7]


def test_what_is_owed_and_retired_meanwhile_is_no_longer_counted_on() -> None:
    # As in a mix: a batch that was prepared is not drawn from this part, and what it owed is retired before the next.
    draw = Thirds()
    examples = examples_of(draw, 30)
    drawer = draw.drawer(examples, seed=7, batch_size=8)
    take(drawer, 0)
    drawer.prepare(1)
    owed = [row[0] for row in drawer.get_state()["rest"]]
    assert len(owed) == 2
    second = np.arange(1, 30, 3)
    retire(drawer, examples, [*owed, *second.tolist()])
    drawer.prepare(2)
    assert set(drawer.draw(2, 30).ids.tolist()) == set(range(2, 30, 3))


def test_where_nothing_is_kept_all_are() -> None:
    draw = FirstHalf()
    examples = examples_of(draw, 1)
    drawer = draw.drawer(examples, seed=7, batch_size=3)
    assert take(drawer, 0).ids.tolist() == [0, 0, 0]
    retire(drawer, examples, [0])
    drawer.prepare(1)
    with pytest.raises(ValueError, match="no example may be drawn: all are retired"):
        drawer.draw(1)


def test_an_order_is_ascending_over_batches_mixed_within_them_and_ties_are_shuffled() -> None:
    draw = ByColumn()
    examples = examples_of(draw, 40)
    examples.columns["x"][:4] = np.nan
    drawer = draw.drawer(examples, seed=7, batch_size=8)
    epochs = [[take(drawer, 5 * epoch + step).ids for step in range(5)] for epoch in range(2)]
    for epoch in epochs:
        keys = [np.nan_to_num(examples.columns["x"][ids], nan=9.0) for ids in epoch]
        assert all(a.max() <= b.min() for a, b in itertools.pairwise(keys))
        assert sorted(np.concatenate(epoch).tolist()) == list(range(40))
        assert any(key.tolist() != sorted(key.tolist()) for key in keys)
    assert {0, 1, 2, 3} <= set(epochs[0][-1].tolist())
    assert set(epochs[0][0].tolist()) != set(epochs[1][0].tolist())


def test_a_changed_key_moves_its_id_in_the_next_epoch_only() -> None:
    draw = ByColumn()
    examples = examples_of(draw, 10)
    examples.columns["x"][:] = np.arange(10)
    drawer = draw.drawer(examples, seed=7, batch_size=2)
    take(drawer, 0)
    examples.columns["x"][9] = -1
    drawer.changed(np.array([9]))
    ids = [sorted(take(drawer, step).ids.tolist()) for step in range(1, 6)]
    assert ids == [[2, 3], [4, 5], [6, 7], [8, 9], [0, 9]]


def test_a_window_opens_at_its_pace_and_is_uniform() -> None:
    draw = ByColumn(pace=0.05)
    examples = examples_of(draw, 200)
    examples.columns["x"][:] = np.arange(200)[::-1]
    drawer = draw.drawer(examples, seed=7, batch_size=20)
    for step in range(20):
        drawn = take(drawer, step)
        window = min(50 + 10 * step, 200)
        assert drawn.ids.min() >= 200 - window
        assert len(set(drawn.ids.tolist())) == 20
        assert (drawn.probability, drawn.uniform_probability) == (None, 1 / window)
        assert drawer.drawable == min(60 + 10 * step, 200)
    count = Counter(example for step in range(20, 520) for example in take(drawer, step).ids.tolist())
    # 500 batches of 20 out of 200, distinct within each: each comes 50 times, variance 500 * .1 * .9 = 45; the sum of
    # squares over it is chi-square-like with 199 degrees: mean 199, sd 20. Six sd: an error rate of 1e-7.
    assert sum((count[i] - 50) ** 2 / 45 for i in range(200)) == pytest.approx(199, abs=120)


def test_the_window_holds_a_batch_and_leaves_out_what_is_retired() -> None:
    draw = ByColumn(pace=0.001)
    examples = examples_of(draw, 12)
    examples.columns["x"][:] = np.arange(12)
    drawer = draw.drawer(examples, seed=7, batch_size=5)
    assert sorted(take(drawer, 0).ids.tolist()) == [0, 1, 2, 3, 4]
    retire(drawer, examples, [1, 3])
    assert sorted(take(drawer, 1).ids.tolist()) == [0, 2, 4, 5, 6]
    retire(drawer, examples, [0, 2, 4, 5, 6, 7, 8])
    assert Counter(take(drawer, 2).ids.tolist()).keys() == {9, 10, 11}


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@settings(max_examples=40)
@given(size=st.integers(1, 20), batch_size=st.integers(1, 25), data=st.data())
def test_growth_and_retirement_at_any_place_leave_a_batch_of_living_ids_that_a_reload_repeats(
    draw: Draw, size: int, batch_size: int, data: st.DataObject
) -> None:
    examples = examples_of(draw, size)
    drawer = draw.drawer(examples, seed=7, batch_size=batch_size)
    step = 0
    for action in data.draw(st.lists(st.sampled_from(["draw", "draw", "grow", "retire"]), max_size=10)):
        live = np.setdiff1d(np.arange(examples.size), examples.retired)
        if action == "draw":
            drawn = take(again(draw, drawer, examples, batch_size), step)
            assert take(drawer, step).ids.tolist() == drawn.ids.tolist()
            assert len(drawn.ids) == batch_size
            assert np.isin(drawn.ids, live).all()
            step += 1
        elif action == "grow":
            grow(drawer, examples, examples.size + data.draw(st.integers(1, 9)))
        elif len(live) > 1:
            retire(
                drawer,
                examples,
                data.draw(st.sets(st.sampled_from(live.tolist()), max_size=len(live) - 1).map(sorted)),
            )
        drawer.check()


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (Kept(np.ones(3, np.bool_)), r"expected a mask bool\[4\], got bool\[3\]"),
        (Kept(np.ones(4, np.float32)), r"expected a mask bool\[4\], got float32\[4\]"),  # type: ignore[arg-type]
        (
            Kept(np.ones(4, np.bool_), np.array([1, -1, 2, 3])),
            r"expected 0\.\.16777216 copies of each, got -1\.\.3",
        ),
    ],
)
def test_a_choice_of_the_wrong_form_is_refused(kept: Kept, message: str) -> None:
    class Wrong(FirstHalf):
        def keep(self, rows: Rows, moment: Moment) -> Kept | None:
            return kept

    draw = Wrong()
    drawer = draw.drawer(examples_of(draw, 4), seed=7, batch_size=2)
    with pytest.raises(ValueError, match=message):
        drawer.prepare(0)


def test_keys_of_the_wrong_form_are_refused() -> None:
    class Wrong(ByColumn):
        def keys(self, rows: Rows, moment: Moment) -> npt.NDArray[np.float64]:
            return np.zeros(3)

    draw = Wrong()
    with pytest.raises(ValueError, match=r"expected keys float64\[4\], got float64\[3\]"):
        draw.drawer(examples_of(draw, 4), seed=7, batch_size=2).prepare(0)
