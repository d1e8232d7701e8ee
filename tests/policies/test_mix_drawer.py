"""Drawing by groups: counts and probabilities against the law, groups that change, and what a restart must draw."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from steelyard.source import Source
from steelyard_server.core.random import Bits, Purpose
from steelyard_server.policies.columns import SERVED
from steelyard_server.policies.draw import METHODS as DRAWS
from steelyard_server.policies.draw.contract import Examples
from steelyard_server.policies.mix import METHODS, GroupReport, Mix, State
from steelyard_server.policies.mix.counts import integer_masses, shares
from steelyard_server.policies.mix.drawer import KEPT, MixDrawer, group_seed
from steelyard_server.policies.mix.groups import MAX_GROUPS, group_ids, objection

ERROR_RATE = 1e-6
"""Chance that a right drawer fails a statistical test, had the seed not been fixed."""

NAN = float("nan")
SHUFFLE = {"method": "shuffle"}
DISTINCT = {"method": "scored", "score": "last_loss", "sampling": "distinct"}
STRATIFIED = {"method": "scored", "score": "last_loss", "sampling": "stratified"}
INDEPENDENT = {"method": "scored", "score": "last_loss", "sampling": "independent", "floor": 0.25}


class Told(Bits):
    """A stream that says `offset` whenever asked."""

    __slots__ = ("offset",)

    def __init__(self, offset: int) -> None:
        super().__init__(0, Purpose.MIX, 0)
        self.offset = offset

    def below(self, bound: int, size: int) -> npt.NDArray[np.uint64]:
        assert self.offset < bound
        return np.full(size, self.offset, np.uint64)


class Worst(Mix):
    """Masses are the sums of all losses of a group, of which each group begins with 1."""

    source: ClassVar[Source] = Source(paper="none", where="a test")
    never_reported: ClassVar[str] = "Nothing."
    method: Literal["worst"] = "worst"

    @property
    def signals(self) -> tuple[str, ...]:
        return ("loss", "other")

    @property
    def columns(self) -> tuple[str, ...]:
        return ("quality",)

    def fresh(self, sizes: Any) -> State:
        return {"sum": [1.0] * len(sizes), "quality": [0.0] * len(sizes)}

    def update(self, state: State, report: GroupReport) -> State:
        assert np.isnan(report.values["other"]).all()
        losses, quality = report.sums("loss")[0], report.sums("quality")[0]
        return {
            "sum": (np.array(state["sum"]) + losses).tolist(),
            "quality": (np.array(state["quality"]) + quality).tolist(),
        }

    def masses(self, state: State, sizes: Any, step: int) -> Any:
        return np.array(state["sum"])


class Best(Mix):
    """Keeps the better half of each group, by column quality."""

    source: ClassVar[Source] = Source(paper="none", where="a test")
    never_reported: ClassVar[str] = "Nothing."
    method: Literal["best"] = "best"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("quality",)

    def masses(self, state: State, sizes: Any, step: int) -> Any:
        return np.ones(len(sizes))

    def keep(self, groups: Any, columns: Mapping[str, Any], step: int) -> Any:
        kept = np.zeros(len(groups), np.bool_)
        for group in range(groups.max() + 1):
            members = np.flatnonzero(groups == group)
            order = np.argsort(-columns["quality"][members], kind="stable")
            kept[members[order[: -(-len(members) // 2)]]] = True
        return kept


class Life:
    """A drawer over examples that change, told of it as a run tells it."""

    def __init__(
        self, mix: Mix, draw: Mapping[str, Any], groups: Any, batch_size: int = 8, **columns: Any
    ) -> None:
        self.mix, self.draw, self.batch_size = mix, DRAWS[draw["method"]].parse(draw), batch_size
        size = len(groups)
        names = [*(n for c in self.draw.derived for n in c.columns), *self.draw.static, *mix.columns]
        arrays = {name: np.full(size, np.nan, np.float32) for name in (*names, KEPT, *self.draw.own)}
        arrays |= {name: np.array(values, np.float32) for name, values in columns.items()}
        self.examples = Examples(
            size, np.empty(0, np.int64), {"group": np.array(groups, np.float32), **arrays}
        )
        self.drawer = self.again()

    def again(self, state: Any = None) -> MixDrawer:
        stored = None if state is None else json.loads(json.dumps(state))
        return MixDrawer(
            self.mix, self.draw, self.examples, seed=11, batch_size=self.batch_size, state=stored
        )

    def step(self, step: int) -> Any:
        self.drawer.prepare(step)
        drawn = self.drawer.draw(step)
        self.drawer.set_draw_state(json.loads(json.dumps(drawn.draw_state)))
        self._fold(drawn.ids, {SERVED: np.ones(len(drawn.ids), np.float32)})
        return drawn

    def set(self, name: str, ids: Any, values: Any) -> None:
        ids = np.array(ids, np.int64)
        self.examples.columns[name][ids] = np.array(values, np.float32)
        self.drawer.changed(ids)

    def report(self, step: int, ids: Any, losses: Any) -> None:
        ids, losses = np.array(ids, np.int64), np.array(losses, np.float32)
        heard = {"loss": losses}
        for column in self.draw.derived:
            if column.signal != SERVED:
                heard.setdefault(column.signal, (losses > 4).astype(np.float32))
        self._fold(ids, heard)
        self.drawer.folded(step, ids, heard)

    def _fold(self, ids: Any, signals: Mapping[str, Any]) -> None:
        for column in self.draw.derived:
            if column.signal in signals and len(ids):
                column.fold(self.examples.columns, ids, signals[column.signal])
                self.drawer.changed(np.unique(ids))

    def grow(self, count: int) -> None:
        for name, column in self.examples.columns.items():
            self.examples.columns[name] = np.concatenate([column, np.full(count, np.nan, np.float32)])
        self.examples.size += count
        self.drawer.grew()

    def retire(self, ids: Any) -> None:
        new = np.setdiff1d(np.array(ids, np.int64), self.examples.retired)
        self.examples.retired = np.union1d(self.examples.retired, new)
        self.drawer.retired(new)


def static(*shares: float, **config: Any) -> Mix:
    return METHODS["static"].parse({"method": "static", "shares": shares or None, **config})


def same(one: Any, other: Any) -> None:
    assert one.ids.tolist() == other.ids.tolist()
    assert one.probability.tolist() == other.probability.tolist()
    assert one.draw_state == other.draw_state


# ---- the counts ----


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 9)), min_size=1, max_size=6),
    st.integers(1, 12),
)
@example([(12, 1), (6, 2), (3, 9), (0, 4)], 8)
@settings(max_examples=150, deadline=None)
def test_over_all_offsets_of_the_comb_the_counts_are_exactly_as_stated(
    groups: list[tuple[int, int]], batch_size: int
) -> None:
    masses, sizes = (np.array(column, np.int64) for column in zip(*groups, strict=True))
    masses = np.where(sizes > 0, masses, 0)
    if int(np.minimum(sizes, batch_size).sum()) < batch_size:
        with pytest.raises(ValueError, match=f"that can fill {batch_size} places"):
            shares(masses, sizes, sizes, batch_size)
        return
    given_ = shares(masses, sizes, sizes, batch_size)
    total = np.zeros(len(masses), np.int64)
    offsets = max(given_.total, 1)
    for offset in range(offsets):
        counts = given_.counts(Told(offset))
        assert counts.sum() == batch_size
        assert (counts <= sizes).all()
        more = counts - given_.least
        assert set(more.tolist()) <= {0, 1}
        assert not more[given_.chance == 0].any()
        total += counts
    for group in range(len(masses)):
        exact = int(given_.fixed[group]) + Fraction(given_.teeth * int(given_.masses[group]), offsets)
        assert Fraction(int(total[group]), offsets) == exact
        assert given_.expected[group] == pytest.approx(float(exact), rel=1e-15)
        assert given_.least[group] + given_.chance[group] == pytest.approx(float(exact), rel=1e-15)


def test_what_a_capped_group_leaves_is_shared_in_proportion() -> None:
    # 12 places by 8:3:1 would be 8, 3, 1; the first has 2 examples, so the other ten are shared 3:1.
    given_ = shares(np.array([8, 3, 1]), np.array([2, 50, 50]), np.array([2, 50, 50]), 12)
    assert given_.expected.tolist() == [2.0, 7.5, 2.5]
    # Then the second cannot fill 7.5 either, and the third gets what is left.
    given_ = shares(np.array([8, 3, 1]), np.array([2, 5, 50]), np.array([2, 5, 50]), 12)
    assert given_.expected.tolist() == [2.0, 5.0, 5.0]


def test_groups_without_a_mass_fill_what_the_others_cannot_by_their_sizes() -> None:
    sizes = np.array([2, 10, 30, 0])
    given_ = shares(np.array([5, 0, 0, 7]), sizes, sizes, 10)
    assert given_.expected.tolist() == [2.0, 2.0, 6.0, 0.0]


def test_masses_become_whole_quanta_that_fit_their_products() -> None:
    for count in (1, 2, 3, 1000, MAX_GROUPS):
        quanta = integer_masses(np.full(count, 1e300))
        assert int(quanta.sum()) <= 1 << 42
        assert int(quanta.sum()) * (1 << 20) < 1 << 63
        assert len(set(quanta.tolist())) == 1
    assert integer_masses(np.array([1.0, 1e-300, 0.0])).tolist() == [1 << 40, 1, 0]
    assert integer_masses(np.zeros(3)).tolist() == [0, 0, 0]
    for bad in (NAN, -1.0, float("inf")):
        with pytest.raises(ValueError, match="expected finite masses of 0 and more"):
            integer_masses(np.array([1.0, bad]))


# ---- group ids ----


def test_what_is_no_group_is_refused_with_its_position() -> None:
    assert objection("g", np.array([0, 3, MAX_GROUPS - 1], np.float32)) is None
    for bad in (0.5, -1.0, float(MAX_GROUPS)):
        with_bad = np.array([0, 1, bad, 2], np.float32)
        message = objection("g", with_bad)
        assert message is not None
        assert "in 'g'" in message
        assert "position 2" in message
        assert group_ids(with_bad).tolist() == [0, 1, -1, 2]
    assert group_ids(np.array([NAN, 2], np.float32)).tolist() == [-1, 2]


# ---- the law ----

SKEWED = [0, 0, 0, 1, 1, 1, 1, 1, 1, NAN, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]


def skewed(draw: Mapping[str, Any], batch_size: int = 8) -> Life:
    """Groups of 3, 6 and 10 with shares that do not divide a batch, and losses that differ within them; one of none."""
    losses = np.array([(7 * one) % 11 + 0.25 for one in range(20)])
    return Life(static(0.35, 0.2, 0.45), draw, SKEWED, batch_size, last_loss=losses)


@pytest.mark.parametrize("draw", [SHUFFLE, DISTINCT, STRATIFIED, INDEPENDENT], ids=str)
def test_the_copies_of_each_id_and_group_are_those_of_their_probability(draw: Mapping[str, Any]) -> None:
    life, batches, size = skewed(draw), 1000, 8
    law: dict[int, float] = {}
    copies = np.zeros(20)
    groups = np.array(SKEWED)
    for step in range(batches):
        drawn = life.step(step)
        copies += np.bincount(drawn.ids, minlength=20)
        for one, probability in zip(drawn.ids.tolist(), drawn.probability.tolist(), strict=True):
            assert law.setdefault(one, probability) == probability
    assert sorted(law) == [one for one in range(20) if one != 9]
    assert sum(law.values()) == pytest.approx(1.0, rel=1e-12)
    shares_of = {0: 0.35, 1: 0.2, 2: 0.45}
    for group, share in shares_of.items():
        of_group = sum(p for one, p in law.items() if groups[one] == group)
        assert of_group == pytest.approx(share, rel=1e-9)
        # Batches are independent of each other, and a count is one of two neighbours.
        lucky = copies[groups == group].sum() - batches * int(size * share)
        assert stats.binomtest(int(lucky), batches, size * share % 1).pvalue > ERROR_RATE
    if draw is SHUFFLE:
        return  # Epochs make the copies of an id more even than any law.
    for one, probability in law.items():
        # No id has a larger variance than independent places would give it.
        mean, spread = batches * size * probability, np.sqrt(batches * size * probability)
        assert abs(copies[one] - mean) < stats.norm.isf(ERROR_RATE / 40) * spread


@pytest.mark.parametrize("batch_size", [8, 17, 19])
def test_a_distinct_draw_has_no_id_twice_and_caps_small_groups(batch_size: int) -> None:
    life = skewed(DISTINCT, batch_size)
    law: dict[int, float] = {}
    for step in range(300):
        drawn = life.step(step)
        assert len(set(drawn.ids.tolist())) == batch_size
        law.update(zip(drawn.ids.tolist(), drawn.probability.tolist(), strict=True))
    assert max(law.values()) <= 1 / batch_size * (1 + 1e-12)
    assert sum(law.values()) == pytest.approx(1.0, rel=1e-12)
    if batch_size > 8:
        # A share of .35 is more than three of so many, so all three come.
        assert [law[one] * batch_size for one in range(3)] == [1.0, 1.0, 1.0]


def test_the_probability_of_a_distinct_draw_is_that_of_both_counts_of_its_group() -> None:
    # One group of masses 3 and 1, of which a batch takes one or two: with two, both are certain.
    life = Life(static(0.75, 0.25), DISTINCT, [0, 0, 1, 1], 2, last_loss=[3, 1, 1, 1])
    seen: dict[int, float] = {}
    for step in range(200):
        drawn = life.step(step)
        seen.update(zip(drawn.ids.tolist(), drawn.probability.tolist(), strict=True))
    # Group 0 has 1.5 places: half the time one (3/4, 1/4), half the time two (1, 1); over a batch of 2.
    assert seen[0] == pytest.approx((0.5 * 0.75 + 0.5) / 2)
    assert seen[1] == pytest.approx((0.5 * 0.25 + 0.5) / 2)
    assert seen[2] == seen[3] == pytest.approx(0.5 * 0.5 / 2)


def test_a_batch_is_shuffled_so_that_its_places_are_alike() -> None:
    life = skewed(STRATIFIED)
    of_first = np.zeros(8)
    for step in range(1000):
        of_first += np.array(SKEWED)[life.step(step).ids] == 0
    assert stats.chisquare(of_first).pvalue > ERROR_RATE


def test_groups_do_not_share_their_lots() -> None:
    seeds = [group_seed(11, group, generation) for group in range(50) for generation in range(3)]
    assert len(set(seeds)) == len(seeds)
    life = Life(static(1, 1), SHUFFLE, [0] * 50 + [1] * 50, 20)
    first, second = (life.drawer._groups[group].drawer.draw(0, 50).ids.tolist() for group in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_mix_whose_masses_are_all_on_empty_groups_draws_by_size() -> None:
    life = Life(static(0, 0, 1), STRATIFIED, [0, 0, 0, 1], 4)
    counts = np.bincount(np.array([0, 0, 0, 1])[life.step(0).ids])
    assert counts.tolist() == [3, 1]


def test_nothing_in_a_group_is_said() -> None:
    life = Life(static(), SHUFFLE, [NAN, NAN])
    with pytest.raises(ValueError, match="no example is in a group: column 'group' has no values"):
        life.step(0)


# ---- reports ----


def test_a_mix_hears_reports_by_group_and_moves_the_mass() -> None:
    life = Life(Worst(), STRATIFIED, [0, 0, 1, 1, NAN], 4, quality=[1, 2, 4, 8, 16])
    life.report(0, [0, 3, 3, 4, 2], [1, 2, NAN, 100, 3])
    assert life.drawer.get_state()["mix"] == {"sum": [2.0, 6.0], "quality": [1.0, 20.0]}
    assert life.drawer.masses().tolist() == [0.25, 0.75]
    assert np.bincount(np.array([0, 0, 1, 1])[life.step(1).ids]).tolist() == [1, 3]


def test_a_mix_that_gives_no_masses_is_said() -> None:
    class Broken(Worst):
        def masses(self, state: State, sizes: Any, step: int) -> Any:
            return np.array([1.0, NAN])

    life = Life(Broken(), STRATIFIED, [0, 1], 1, quality=[0, 0])
    with pytest.raises(ValueError, match="expected mix method 'worst' to give 2 finite masses"):
        life.step(0)


# ---- groups that change ----


def test_appended_examples_are_in_no_group_until_they_have_one() -> None:
    life = Life(static(1, 1), SHUFFLE, [0, 0, 1, 1], 4)
    life.grow(3)
    assert life.drawer.ungrouped == 3
    assert max(life.step(0).ids) < 4
    life.set("group", [4, 6], [0, 2])
    assert life.drawer.ungrouped == 1
    assert life.drawer.get_state()["generations"] == {"2": 1}  # group 0 goes on, with one more
    assert {4, 6} <= {one for step in range(1, 9) for one in life.step(step).ids.tolist()} | {6}
    life.drawer.check()


def test_a_group_that_got_examples_behind_its_last_goes_on_with_its_epoch() -> None:
    life = Life(static(), SHUFFLE, [0] * 10, 5)
    first = life.step(0).ids.tolist()
    life.grow(5)
    life.set("group", range(10, 15), [0] * 5)
    rest = [one for step in (1, 2) for one in life.step(step).ids.tolist()]
    assert sorted(first + rest) == list(range(15))


def test_a_group_that_lost_or_exchanged_examples_begins_anew_and_the_others_go_on() -> None:
    life = Life(static(1, 1, 1), SHUFFLE, [0, 0, 0, 1, 1, 1, 2, 2, 2], 6)
    calm = Life(static(1, 1, 1), SHUFFLE, [0, 0, 0, 1, 1, 1, 2, 2, 2], 6)
    assert life.step(0).ids.tolist() == calm.step(0).ids.tolist()
    life.set("group", [0], [1])
    assert life.drawer.get_state()["generations"] == {"0": 1, "1": 1}
    for step in range(1, 5):
        drawn, undisturbed = life.step(step).ids, calm.step(step).ids
        assert sorted(drawn[drawn > 5]) == sorted(undisturbed[undisturbed > 5])
        assert set(drawn[drawn <= 5].tolist()) <= {0, 1, 2, 3, 4, 5}
    life.drawer.check()


def test_retired_ids_leave_their_group() -> None:
    life = Life(static(1, 1), STRATIFIED, [0, 0, 0, 1], 4, last_loss=[1, 1, 1, 1])
    life.retire([3])
    drawn = life.step(0)
    assert 3 not in drawn.ids
    assert drawn.probability.tolist() == pytest.approx([1 / 3] * 4)
    assert life.drawer.ungrouped == 0
    life.drawer.check()


def test_a_selection_within_groups_is_made_before_the_first_draw_and_kept() -> None:
    quality = [1, 2, 3, 4, 5, 6, 7, 8]
    life = Life(Best(), SHUFFLE, [0, 0, 0, 0, 1, 1, 1, 1], 4, quality=quality)
    life.grow(1)
    assert sorted(life.step(0).ids.tolist()) == [2, 3, 6, 7]
    assert life.examples.columns[KEPT][:8].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert life.drawer.ungrouped == 5
    same(life.again(life.drawer.get_state()).draw(1), life.drawer.draw(1))
    # Another group is another selection, also for one that was not kept: now of 1 2 3, and of 0 with the others.
    life.set("group", [0], [1])
    assert sorted({one for step in range(1, 5) for one in life.step(step).ids.tolist()}) == [2, 3, 5, 6, 7]
    life.set("group", [0], [0])
    # Of 0 1 2, of 3, and of the other four.
    life.set("group", [3], [2])
    assert sorted({one for step in range(1, 5) for one in life.step(step).ids.tolist()}) == [1, 2, 3, 6, 7]
    life.set("quality", [8], [9])
    life.set("group", [8], [2])
    assert sorted({one for step in range(5, 9) for one in life.step(step).ids.tolist()}) == [1, 2, 6, 7, 8]
    life.drawer.check()


# ---- a restart ----

_op = st.one_of(
    st.tuples(st.just("draw")),
    st.tuples(
        st.just("report"), st.lists(st.tuples(st.integers(0, 99), st.floats(0, 9, width=32)), max_size=6)
    ),
    st.tuples(st.just("group"), st.lists(st.tuples(st.integers(0, 99), st.integers(-1, 4)), max_size=4)),
    st.tuples(st.just("grow"), st.integers(1, 4)),
    st.tuples(st.just("retire"), st.integers(0, 99)),
)


EVERY_DRAW = [{"method": name, **method.example} for name, method in sorted(DRAWS.items())]
OFTEN = [
    {**draw, "refresh_steps": 2}
    for draw in EVERY_DRAW
    if "refresh_steps" in DRAWS[draw["method"]].model_fields
]


@pytest.mark.parametrize("draw", [*EVERY_DRAW, *OFTEN], ids=str)
def test_every_draw_works_within_groups_that_change(draw: Mapping[str, Any]) -> None:
    values = [(5 * one) % 7 for one in range(16)]
    life = Life(
        static(2, 1, 1),
        draw,
        [one % 3 for one in range(16)],
        4,
        **dict.fromkeys(DRAWS[draw["method"]].parse(draw).static, values),
    )
    for step in range(12):
        drawn = life.step(step)
        groups = life.examples.columns["group"]
        assert set(groups[drawn.ids].tolist()) <= {0.0, 1.0, 2.0}
        assert (drawn.probability > 0).all()
        life.report(step, drawn.ids, [(7 * one + step) % 5 for one in drawn.ids.tolist()])
        if step == 5:
            life.set("group", [0, 1, 15], [1, 2, 2])
        if step == 8:
            life.set("group", [0, 4], [0, NAN])
        life.drawer.check()
        again = life.again(life.drawer.get_state())
        again.check()
        assert json.dumps(again.get_state()) == json.dumps(life.drawer.get_state())


@given(
    st.sampled_from([*EVERY_DRAW, *OFTEN, DISTINCT, STRATIFIED]),
    st.sampled_from([Worst(), Best(), static(), static(3, 1, 1)]),
    st.lists(_op, max_size=14),
)
@settings(max_examples=100, deadline=None)
def test_a_drawer_built_from_the_columns_and_the_state_draws_the_same(
    draw: Mapping[str, Any], mix: Mix, ops: list[Any]
) -> None:
    values = [(5 * one) % 7 for one in range(12)]
    columns = dict.fromkeys([*DRAWS[draw["method"]].parse(draw).static, *mix.columns], values)
    life = Life(mix, draw, [0, 0, 1, 1, 1, 2, 2, 2, 2, NAN, 0, 1], 3, **columns)
    step = 0
    for op in ops:
        match op:
            case ("draw",):
                life.step(step)
                step += 1
            case ("report", rows):
                ids = [one % life.examples.size for one, _ in rows]
                life.report(step, ids, [loss for _, loss in rows])
            case ("group", rows):
                groups = {one % life.examples.size: NAN if group < 0 else group for one, group in rows}
                life.set("group", list(groups), list(groups.values()))
            case ("grow", count):
                life.grow(count)
            case ("retire", one):
                if len(life.examples.retired) < 6:
                    life.retire([one % life.examples.size])
        again = life.again(life.drawer.get_state())
        assert json.dumps(again.get_state()) == json.dumps(life.drawer.get_state())
        life.drawer.check()
        again.check()
        own = {name: life.examples.columns[name].copy() for name in (KEPT, *life.draw.own)}
        try:
            again.prepare(step)
            for name, values_before in own.items():
                life.examples.columns[name][:] = values_before
            life.drawer.prepare(step)
            expected = life.drawer.draw(step)
        except ValueError:
            with pytest.raises(ValueError):
                again.draw(step)
            continue
        same(again.draw(step), expected)
        again.prepare(step)
        same(again.draw(step), expected)
