"""The three modes: exact laws by enumeration, drawn frequencies, certain ids, and numbers near 2**63."""

from __future__ import annotations

import hashlib
import itertools
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steelyard_server.core.random import Bits, Purpose, bits
from steelyard_server.core.sampling import Sample, Sampling, comb, distinct_copies, law_for, sample
from steelyard_server.core.tree import UNSEEN, Law, MassTree

PINNED = {
    Sampling.INDEPENDENT: "f5de21b9327699c0",
    Sampling.STRATIFIED: "651b70196a7c13f6",
    Sampling.DISTINCT: "a00b0119496896f7",
}
"""Pinned: a run that is continued by another version or on another machine must draw the same."""

ERROR_RATE = 1e-6
"""Chance that a right sampler fails one of the statistical tests, had the seed not been fixed."""


class Told(Bits):
    """A stream that says `offset` whenever asked, and remembers below what."""

    __slots__ = ("bound", "offset")

    def __init__(self, offset: int) -> None:
        super().__init__(0, Purpose.DRAW, 0)
        self.offset = offset
        self.bound = 0

    def below(self, bound: int, size: int) -> npt.NDArray[np.uint64]:
        self.bound = bound
        return np.full(size, self.offset, np.uint64)


def tree_of(masses: list[int]) -> MassTree:
    return MassTree(np.array(masses, np.uint32))


def draw(tree: MassTree, law: Law, batch_size: int, mode: Sampling, seed: int, step: int) -> Sample:
    return sample(
        tree, law, batch_size, mode, bits(seed, Purpose.DRAW, step), bits(seed, Purpose.ORDER, step)
    )


def drawn_with(tree: MassTree, law: Law, batch_size: int, mode: Sampling, offset: int) -> tuple[Sample, int]:
    told = Told(offset)
    return sample(tree, law, batch_size, mode, told, bits(0, Purpose.ORDER, 0)), told.bound


def expected_copies(masses: list[int], batch_size: int, mode: Sampling) -> list[Fraction]:
    """The law that a mode states, straight from its definition."""
    certain: set[int] = set()
    if mode is Sampling.DISTINCT:
        while True:
            rest = sum(m for i, m in enumerate(masses) if i not in certain)
            teeth = batch_size - len(certain)
            more = {i for i, m in enumerate(masses) if i not in certain and teeth and teeth * m >= rest}
            if not more:
                break
            certain |= more
    rest = sum(m for i, m in enumerate(masses) if i not in certain)
    teeth = batch_size - len(certain)
    return [
        Fraction(1) if i in certain else Fraction(teeth * m, rest) if teeth else Fraction(0)
        for i, m in enumerate(masses)
    ]


CASES = [
    ([1], 1),
    ([1, 1, 1], 2),
    ([1, 1, 1], 3),
    ([5, 1, 0, 3, 2], 2),
    ([100, 1, 1, 1, 1, 1], 3),
    ([100, 50, 25, 12, 6, 3, 1], 4),
    ([100, 50, 25, 12, 6, 3, 1], 7),
    ([0, 7, 7, 7, 0, 7, 7, 7], 3),
    ([3, 3, 3, 3, 4], 4),
    ([40, 1, 2, 40, 3, 4, 40, 5], 5),
]


@pytest.mark.parametrize(("masses", "batch_size"), CASES)
@pytest.mark.parametrize("mode", Sampling)
def test_over_all_offsets_the_copies_are_exactly_as_stated(
    masses: list[int], batch_size: int, mode: Sampling
) -> None:
    tree = tree_of(masses)
    stated = expected_copies(masses, batch_size, mode)
    bound = drawn_with(tree, Law(), batch_size, mode, 0)[1] or 1
    copies = np.zeros(len(masses), np.int64)
    for offset in range(bound):
        # One offset for all targets: each target still takes every value that it can, once.
        batch, _ = drawn_with(tree, Law(), batch_size, mode, offset)
        np.add.at(copies, batch.ids, 1)
        assert batch.ids.size == batch_size
        right = [float(stated[i] / batch_size) for i in batch.ids.tolist()]
        assert batch.probability.tolist() == pytest.approx(right, rel=1e-15)
        if mode is Sampling.DISTINCT:
            assert np.unique(batch.ids).size == batch_size
    assert copies.tolist() == [copy * bound for copy in stated]


@pytest.mark.parametrize("mode", Sampling)
def test_drawn_frequencies_are_those_stated(mode: Sampling) -> None:
    masses = [1, 2, 3, 5, 8, 13, 21, 34, 0, 120, UNSEEN, UNSEEN]
    tree, law, batch_size, steps = tree_of(masses), Law(unseen=10, extra=2), 5, 5000
    effective = tree.effective(np.arange(len(masses)), law).tolist()
    law_of_place = np.array([float(c / batch_size) for c in expected_copies(effective, batch_size, mode)])
    ids = np.array([draw(tree, law, batch_size, mode, 1, step).ids for step in range(steps)])
    # After the shuffle each place of the batch follows the stated law, and steps are independent.
    possible = law_of_place > 0
    for place in range(batch_size):
        counts = np.bincount(ids[:, place], minlength=len(masses))
        assert counts[~possible].sum() == 0
        assert stats.chisquare(counts[possible], steps * law_of_place[possible]).pvalue > ERROR_RATE


def test_independent_places_are_independent() -> None:
    tree, steps = tree_of([1, 2, 3]), 5000
    ids = np.array([draw(tree, Law(), 2, Sampling.INDEPENDENT, 2, step).ids for step in range(steps)])
    counts = np.bincount(ids[:, 0] * 3 + ids[:, 1], minlength=9)
    law = np.outer([1, 2, 3], [1, 2, 3]).ravel() / 36
    assert stats.chisquare(counts, steps * law).pvalue > ERROR_RATE


def test_stratified_copies_are_never_two_off_the_expected_number() -> None:
    masses = np.random.default_rng(3).integers(1, 1000, 300).astype(np.uint32)
    tree = MassTree(masses)
    expected = 256 * masses / masses.sum()
    for step in range(50):
        batch = draw(tree, Law(), 256, Sampling.STRATIFIED, 3, step)
        assert np.all(np.abs(np.bincount(batch.ids, minlength=300) - expected) < 2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**32), st.floats(0, 12), st.data())
def test_distinct_batches_are_distinct_and_take_what_is_certain(
    size: int, seed: int, spread: float, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    leaves = np.clip(2.0 ** (spread * random.standard_normal(size) + 10), 0, UNSEEN - 1).astype(np.uint32)
    leaves[random.random(size) < 0.2] = UNSEEN
    tree = MassTree(leaves)
    law = Law(
        unseen=data.draw(st.sampled_from([0, 1, 5000])), extra=data.draw(st.sampled_from([0, 1, 2**35]))
    )
    masses = tree.effective(np.arange(size), law).tolist()
    drawable = sum(mass > 0 for mass in masses)
    if drawable == 0:
        return
    batch_size = data.draw(st.integers(1, drawable))
    batch = draw(tree, law, batch_size, Sampling.DISTINCT, seed, 0)
    stated = expected_copies(masses, batch_size, Sampling.DISTINCT)
    drawn = batch.ids.tolist()
    assert len(set(drawn)) == batch_size
    assert all(masses[i] > 0 for i in drawn)
    assert {i for i, copies in enumerate(stated) if copies == 1} <= set(drawn)
    assert batch.probability.tolist() == pytest.approx(
        [float(stated[i] / batch_size) for i in drawn], rel=1e-14
    )


@pytest.mark.parametrize("total", [1, 2, 65_535, 65_536, 2**62 + 12_345, 2**63 - 1, 2**63 - 65_537])
@pytest.mark.parametrize("teeth", [1, 2, 3, 65_536, 99_991])
def test_the_comb_agrees_with_unbounded_integers(total: int, teeth: int) -> None:
    spread = np.random.default_rng(4).integers(0, total, teeth, dtype=np.uint64)
    for offset in (spread, np.zeros(1, np.uint64), np.array([total - 1], np.uint64)):
        offsets = offset.tolist() if offset.size == teeth else offset.tolist() * teeth
        right = [(j * total + u) // teeth for j, u in zip(range(teeth), offsets, strict=True)]
        assert comb(total, teeth, offset).tolist() == right


@pytest.mark.parametrize("mode", Sampling)
def test_a_total_just_below_the_limit_is_drawn_exactly(mode: Sampling) -> None:
    size, batch_size = 70_000, 65_536
    leaves = np.arange(1, size + 1, dtype=np.uint32)
    leaves[::1000] = UNSEEN
    tree = MassTree(leaves)
    extra = (2**63 - 1 - tree.mass) // size - 2**40
    # Masses differ so little that no id is certain, so distinct is one plain comb too.
    law = Law(unseen=2**40, extra=extra)
    total = tree.total(law)
    assert 2**63 - 2**57 < total < 2**63
    masses = tree.effective(np.arange(size), law).tolist()
    batch = draw(tree, law, batch_size, mode, 5, 0)
    if mode is Sampling.INDEPENDENT:
        targets = bits(5, Purpose.DRAW, 0).below(total, batch_size).tolist()
    else:
        offsets = bits(5, Purpose.DRAW, 0).below(total, batch_size if mode is Sampling.STRATIFIED else 1)
        targets = [(j * total + int(offsets[j % offsets.size])) // batch_size for j in range(batch_size)]
    ends = np.array(list(itertools.accumulate(masses)), np.uint64)
    right = np.searchsorted(ends, np.array(targets, np.uint64), side="right")
    assert sorted(batch.ids.tolist()) == sorted(right.tolist())
    assert batch.probability[0] == pytest.approx(masses[batch.ids[0]] / total, rel=1e-15)


@pytest.mark.parametrize("mode", Sampling)
def test_a_draw_is_the_same_for_ever(mode: Sampling) -> None:
    leaves = (np.arange(50_000, dtype=np.uint64) * 2_654_435_761 % 2**20).astype(np.uint32)
    leaves[::11] = UNSEEN
    leaves[7] = UNSEEN - 1
    batch = draw(MassTree(leaves), Law(unseen=123_456, extra=1000), 512, mode, 42, 7)
    parts = batch.ids.astype("<i8").tobytes() + batch.probability.astype("<f8").tobytes()
    assert hashlib.blake2b(parts, digest_size=8).hexdigest() == PINNED[mode]


def test_the_certain_ids_of_a_skewed_tree_leave_the_rest_their_order_on_the_line() -> None:
    # Certain ids at the front, side by side and at the end: each target must skip the right ones.
    masses = [900, 1, 1, 900, 900, 1, 1, 1, 900]
    tree = tree_of(masses)
    for offset in range(5):
        batch, bound = drawn_with(tree, Law(), 5, Sampling.DISTINCT, offset)
        assert bound == 5
        assert sorted(batch.ids.tolist()) == sorted([0, 3, 4, 8, [1, 2, 5, 6, 7][offset]])


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(0, 2**32), st.floats(0, 0.999))
def test_law_for_mixes_in_the_nearest_integer_to_the_floor(
    leaves: list[int], unseen: int, floor: float
) -> None:
    tree = tree_of(leaves)
    law = law_for(tree, unseen, floor)
    assert law.unseen == unseen
    mass = tree.total(Law(unseen=unseen))
    if floor == 0 or mass == 0:
        assert law.extra == (1 if floor else 0)
        return
    share = Fraction(floor)
    right = share / (1 - share) * mass / tree.live
    assert law.extra >= 1
    assert abs(law.extra - right) <= Fraction(1, 2) or (law.extra == 1 and right < 1)


def test_law_for_gives_the_uniform_share_asked_for() -> None:
    tree = MassTree(np.random.default_rng(6).integers(1, 2**20, 1000, dtype=np.uint32))
    law = law_for(tree, unseen=77, floor=0.05)
    assert law.extra * tree.live / tree.total(law) == pytest.approx(0.05, rel=1e-4)


def test_what_cannot_be_drawn_is_refused_with_the_numbers() -> None:
    tree = tree_of([0, 3, UNSEEN, UNSEEN])
    with pytest.raises(ValueError, match="got none: 0 of 2 live"):
        draw(tree_of([0, 0]), Law(unseen=1, extra=1), 1, Sampling.INDEPENDENT, 0, 0)
    with pytest.raises(ValueError, match="got none: 2 of 2 live"):
        draw(tree_of([UNSEEN, UNSEEN]), Law(), 1, Sampling.STRATIFIED, 0, 0)
    with pytest.raises(ValueError, match="at least 2 ids that can be drawn .* got 1"):
        draw(tree, Law(), 2, Sampling.DISTINCT, 0, 0)
    with pytest.raises(ValueError, match="at least 4 ids that can be drawn .* got 3"):
        draw(tree, Law(extra=1), 4, Sampling.DISTINCT, 0, 0)
    assert sorted(draw(tree, Law(extra=1), 3, Sampling.DISTINCT, 0, 0).ids.tolist()) == [1, 2, 3]
    for batch_size in (0, 2**31 + 1):
        with pytest.raises(ValueError, match=f"batch size .* got {batch_size}"):
            draw(tree, Law(), batch_size, Sampling.INDEPENDENT, 0, 0)
    with pytest.raises(ValueError, match=r"floor in \[0, 1\), got 1"):
        law_for(tree, 0, 1.0)
    with pytest.raises(ValueError, match="got nan"):
        law_for(tree, 0, float("nan"))


@given(st.lists(st.integers(0, 15), min_size=1, max_size=7).filter(any), st.integers(0, 7), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_the_copies_told_of_a_distinct_draw_are_those_counted_over_all_offsets(
    masses: list[int], count: int, unseen: int
) -> None:
    tree, law = tree_of([UNSEEN if mass == 15 else mass for mass in masses]), Law(unseen=unseen)
    drawable = int(np.count_nonzero(tree.effective(np.arange(len(masses)), law)))
    ids = np.arange(len(masses))
    if count > drawable:
        with pytest.raises(ValueError, match=f"expected at least {count} ids"):
            distinct_copies(tree, law, ids, count)
        return
    told = distinct_copies(tree, law, ids, count)
    assert told.sum() == pytest.approx(count, abs=1e-12)
    counted = np.zeros(len(masses))
    if count:
        _, bound = drawn_with(tree, law, count, Sampling.DISTINCT, 0)
        for offset in range(bound):
            drawn = drawn_with(tree, law, count, Sampling.DISTINCT, offset)[0]
            counted[drawn.ids] += 1
            assert drawn.probability * count == pytest.approx(told[drawn.ids], rel=1e-14)
        counted /= bound
    assert told == pytest.approx(counted, rel=1e-12)
