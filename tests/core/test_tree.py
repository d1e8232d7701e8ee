"""The mass tree against a dumb twin: a list of leaves, summed afresh for every question."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from steelyard_server.core import tree as tree_module
from steelyard_server.core.kernels.layout import COUNT_BITS, MASS_BITS, NODES
from steelyard_server.core.kernels.scores import POWER
from steelyard_server.core.tree import UNSEEN, Law, MassTree

LAWS = [
    Law(),
    Law(unseen=1),
    Law(extra=1),
    Law(unseen=2**32 + 5, extra=7),
    Law(unseen=3, extra=2**34),
    Law(unseen=2**40, extra=2**41),
]


def some_leaves(size: int, seed: int) -> npt.NDArray[np.uint32]:
    """Leaves of every kind, retired, unseen, least and largest mass among them; uint32[size]."""
    random = np.random.default_rng(seed)
    kinds = np.array([0, UNSEEN, 1, UNSEEN - 1], np.uint32)
    special = kinds[random.integers(0, kinds.size, size)]
    common = random.integers(0, 2 ** random.integers(1, 33, size), dtype=np.uint32)
    return np.where(random.random(size) < random.random(), special, common).astype(np.uint32)


def twin_masses(leaves: list[int], law: Law) -> list[int]:
    return [0 if x == 0 else (law.unseen if x == UNSEEN else x) + law.extra for x in leaves]


def assert_answers_like_the_twin(tree: MassTree, leaves: list[int], law: Law, seed: int) -> None:
    masses = twin_masses(leaves, law)
    ends = list(itertools.accumulate(masses))
    total = ends[-1] if ends else 0
    assert tree.total(law) == total
    every = np.arange(len(leaves))
    assert tree.effective(every, law).tolist() == masses
    assert tree.prefix(every, law).tolist() == [end - mass for end, mass in zip(ends, masses, strict=True)]
    assert tree.sum_of_squares(law) == sum(mass**2 for mass in masses)
    if total == 0:
        return
    # Every edge of every id, and some points between, out of order.
    edges = {end + d for end in ends for d in (-1, 0) if 0 <= end + d < total}
    targets = np.array([0, total - 1, *edges], np.uint64)
    np.random.default_rng(seed).shuffle(targets)
    found = np.searchsorted(np.array(ends, np.uint64), targets, side="right")
    assert tree.find(targets, law).tolist() == found.tolist()
    teeth, offset = 1 + seed % 50, (seed + 1) * 2**40 % total
    ids, found_masses, greatest = tree.comb(teeth, offset, law)
    points = np.array([(j * total + offset) // teeth for j in range(teeth)], np.uint64)
    assert ids.tolist() == np.searchsorted(np.array(ends, np.uint64), points, side="right").tolist()
    assert found_masses.tolist() == [masses[i] for i in ids.tolist()]
    assert greatest == max(found_masses.tolist())
    for threshold in {1, max(masses), max(masses) + 1, total // 7 + 1, total + 1}:
        right = [i for i, mass in enumerate(masses) if mass >= threshold]
        assert tree.at_least(threshold, law, limit=len(right)).tolist() == right
        if right:
            with pytest.raises(ValueError, match=f"at most {len(right) - 1} ids .* got {len(right)}"):
                tree.at_least(threshold, law, limit=len(right) - 1)


class TreeAndTwin(RuleBasedStateMachine):
    """Any sequence of sets and appends leaves the tree and the twin with the same answers."""

    top = tree_module.TOP

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(tree_module, "TOP", self.top)

    def teardown(self) -> None:
        self.patch.undo()

    @initialize(size=st.integers(0, 1500), seed=st.integers(0, 2**32))
    def build(self, size: int, seed: int) -> None:
        leaves = some_leaves(size, seed)
        self.tree = MassTree(leaves)
        self.leaves: list[int] = leaves.tolist()
        leaves[:] = 1

    @rule(size=st.integers(0, 1500), seed=st.integers(0, 2**32))
    def append(self, size: int, seed: int) -> None:
        self.tree.append(some_leaves(size, seed))
        self.leaves += some_leaves(size, seed).tolist()

    @precondition(lambda self: self.leaves)
    @rule(share=st.floats(0, 1), seed=st.integers(0, 2**32))
    def set(self, share: float, seed: int) -> None:
        size = len(self.leaves)
        ids = np.random.default_rng(seed).permutation(size)[: round(size * share)]
        leaves = some_leaves(ids.size, seed + 1)
        self.tree.set(ids, leaves)
        for i, leaf in zip(ids.tolist(), leaves.tolist(), strict=True):
            self.leaves[i] = leaf

    @rule(law=st.sampled_from(LAWS), seed=st.integers(0, 2**32))
    def ask(self, law: Law, seed: int) -> None:
        assert_answers_like_the_twin(self.tree, self.leaves, law, seed)

    @invariant()
    def sums_are_those_of_the_leaves(self) -> None:
        self.tree.check()
        assert self.tree.size == len(self.leaves)
        assert self.tree.all_leaves().tolist() == self.leaves
        assert self.tree.mass == sum(x for x in self.leaves if x != UNSEEN)
        assert self.tree.live == sum(x != 0 for x in self.leaves)
        assert self.tree.unseen == sum(x == UNSEEN for x in self.leaves)


class DeepTreeAndTwin(TreeAndTwin):
    """The same with the narrowest top, so that a small tree has all its levels."""

    top = NODES


@pytest.mark.parametrize("machine", [TreeAndTwin, DeepTreeAndTwin])
def test_any_life_of_a_tree_is_that_of_its_twin(machine: type[TreeAndTwin]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=25, stateful_step_count=12, deadline=None, derandomize=True, database=None
        ),
    )


@pytest.mark.parametrize(("size", "top"), [(2_109_497, tree_module.TOP), (600_001, NODES)])
def test_a_tree_of_several_levels_answers_like_one_cumulative_sum(
    monkeypatch: pytest.MonkeyPatch, size: int, top: int
) -> None:
    monkeypatch.setattr(tree_module, "TOP", top)
    leaves = some_leaves(size, 3)
    tree = MassTree(leaves)
    ids = np.random.default_rng(4).permutation(leaves.size)[:5000]
    leaves[ids] = some_leaves(ids.size, 5)
    tree.set(ids, leaves[ids])
    tree.append(leaves[:777])
    tree.append(leaves[777:2000])
    leaves = np.concatenate([leaves, leaves[:2000]])
    tree.check()
    law = Law(unseen=2**33, extra=11)
    masses = tree.effective(np.arange(leaves.size), law)
    ends = np.cumsum(masses, dtype=np.uint64)
    targets = np.random.default_rng(6).integers(0, int(ends[-1]), 20_000, dtype=np.uint64)
    assert np.array_equal(tree.find(targets, law), np.searchsorted(ends, targets, side="right"))
    assert np.array_equal(tree.prefix(ids, law), (ends - masses)[ids])
    assert np.array_equal(tree.at_least(2**33, law, 10**7), np.flatnonzero(masses >= 2**33))


def test_the_order_of_updates_leaves_no_trace() -> None:
    start, end = some_leaves(5000, 7), some_leaves(5000, 8)
    built, grown = MassTree(end), MassTree(start[:100])
    grown.append(start[100:])
    for ids in np.array_split(np.random.default_rng(9).permutation(5000), 37):
        grown.set(ids, end[ids])
    targets = np.random.default_rng(10).integers(0, built.total(Law(9, 9)), 3000, dtype=np.uint64)
    assert np.array_equal(grown.find(targets, Law(9, 9)), built.find(targets, Law(9, 9)))
    assert (grown.mass, grown.live, grown.unseen) == (built.mass, built.live, built.unseen)


def test_leaves_that_are_filled_in_parts_are_as_those_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "CHUNK", 1024)
    leaves = some_leaves(5000, 15)

    def fill(start: int, part: npt.NDArray[np.uint32]) -> None:
        assert part.size <= 1024
        part[:] = leaves[start : start + part.size]

    tree = MassTree.filled(3001, fill)
    tree.check()
    tree.extend(5000, fill)
    tree.check()
    assert np.array_equal(tree.all_leaves(), leaves)
    leaves = some_leaves(5000, 16)
    tree.refill(fill)
    tree.check()
    assert np.array_equal(tree.all_leaves(), leaves)


def test_leaves_that_cannot_be_filled_leave_the_tree_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "CHUNK", 1024)
    leaves = some_leaves(3001, 17)
    tree = MassTree(leaves)

    def fill(start: int, part: npt.NDArray[np.uint32]) -> None:
        part[:] = 7
        if start > 4000:
            raise KeyError(start)

    for size in (5100, 50_000):
        with pytest.raises(KeyError):
            tree.extend(size, fill)
        assert np.array_equal(tree.all_leaves(), leaves)
        tree.check()


def test_small_appends_rebuild_the_tree_rarely() -> None:
    tree = MassTree(np.ones(1000, np.uint32))
    sizes = set()
    for _ in range(300):
        tree.append(np.ones(10, np.uint32))
        sizes.add(tree.nbytes)
    # Growing fourfold by eighths takes log(4) / log(9/8) = 12 rebuilds.
    assert len(sizes) <= 13
    assert tree.mass == 4000


def test_masses_up_to_the_limit_of_the_total_are_exact() -> None:
    extra = (2**63 - 1 - 2000) // 2000
    tree = MassTree(np.ones(2000, np.uint32))
    law = Law(extra=extra)
    assert 2**63 - 4000 < tree.total(law) < 2**63
    assert_answers_like_the_twin(tree, [1] * 2000, law, 11)


def test_a_total_of_two_to_the_63_is_refused_with_its_parts() -> None:
    tree = MassTree(np.array([5, UNSEEN, UNSEEN, 0], np.uint32))
    assert tree.total(Law(unseen=2**62 - 3)) == 2**63 - 1
    law = Law(unseen=2**62 - 4, extra=1)
    parts = r"got 9223372036854775808: 5 .* 2 unseen of 4611686018427387900 \+ 3 live of 1 extra"
    ids, targets = np.arange(4), np.zeros(1, np.uint64)
    for question in (
        lambda: tree.total(law),
        lambda: tree.effective(ids, law),
        lambda: tree.prefix(ids, law),
        lambda: tree.find(targets, law),
        lambda: tree.at_least(1, law, 4),
        lambda: tree.sum_of_squares(law),
    ):
        with pytest.raises(ValueError, match=parts):
            question()
    with pytest.raises(ValueError, match="extra in .* got -1"):
        Law(extra=-1)
    with pytest.raises(ValueError, match="unseen in .* got 9223372036854775808"):
        Law(unseen=2**63)


def test_bad_arguments_are_refused_and_change_nothing() -> None:
    leaves = some_leaves(100, 12)
    tree = MassTree(leaves)
    one, two = np.array([1], np.uint32), np.array([1, 1], np.uint32)
    three, scores = np.array([3]), np.ones(100, np.float32)
    doubles: npt.NDArray[Any] = np.ones(100)

    def fill(start: int, part: npt.NDArray[np.uint32]) -> None:
        part[:] = 1

    refused = [
        (r"got \(1,\) and \(2,\)", lambda: tree.set(np.array([3, 4]), one)),
        ("got 3 more than once", lambda: tree.set(np.array([3, 3]), two)),
        ("0..99, got 4..100", lambda: tree.set(np.array([100, 4]), two)),
        ("0..99, got -1..4", lambda: tree.set(np.array([4, -1]), two)),
        ("got int64 of shape", lambda: tree.set(np.array([4]), np.array([1]))),
        ("got float64 of shape", lambda: tree.append(np.array([0.5]))),
        (
            r"at least the 100 leaves .* at most 4294967296, got 4294967397",
            lambda: tree.extend(2**32 + 101, fill),
        ),
        (r"at least the 100 leaves .*, got 99", lambda: tree.extend(99, fill)),
        ("got int64 of shape", lambda: MassTree(np.array([1]))),
        ("0..99, got 100..100", lambda: tree.leaves(np.array([100]))),
        ("0..99, got -1..-1", lambda: tree.prefix(np.array([-1]), Law())),
        ("flat array of ids, got shape", lambda: tree.leaves(np.array([[1]]))),
        ("uint64 targets, got int64", lambda: tree.find(np.array([1]), Law())),
        ("below the total mass", lambda: tree.find(np.array([tree.total(Law())], np.uint64), Law())),
        ("threshold of 1 or more, got 0", lambda: tree.at_least(0, Law(), 1)),
        ("got 0 and 5", lambda: tree.comb(0, 5, Law())),
        ("offset below the total mass", lambda: tree.comb(3, tree.total(Law()), Law())),
        ("got 3 more than once", lambda: tree.reweigh(np.array([3, 3]), scores, POWER, 1.0, 0)),
        ("0..99, got 7..100", lambda: tree.reweigh(np.array([7, 100]), scores, POWER, 1.0, 0)),
        (
            "100 scores of float32, got float32 of shape",
            lambda: tree.reweigh(three, scores[:99], POWER, 1.0, 0),
        ),
        ("100 scores of float32, got float64", lambda: tree.reweigh(three, doubles, POWER, 1.0, 0)),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=message):
            call()
    assert np.array_equal(tree.all_leaves(), leaves)
    tree.check()


def test_the_view_of_all_leaves_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        MassTree(np.ones(3, np.uint32)).all_leaves()[0] = 2


@pytest.mark.parametrize("kind", ["mass", "live count", "unseen count"])
def test_check_names_the_sum_that_is_wrong(kind: str) -> None:
    tree = MassTree(some_leaves(1000, 13))
    bit = {"mass": 0, "live count": MASS_BITS, "unseen count": MASS_BITS + COUNT_BITS}[kind]
    tree._nodes[7] ^= np.uint64(1 << bit)
    with pytest.raises(AssertionError, match=f"level 0, the first the {kind} of node 7"):
        tree.check()


def test_check_notices_wrong_totals_and_leaves_past_the_end() -> None:
    tree = MassTree(some_leaves(1000, 14))
    for total in range(5):
        tree._totals[total] += 1
        with pytest.raises(AssertionError, match="mass, live, unseen and squares are"):
            tree.check()
        tree._totals[total] -= 1
    tree = MassTree(some_leaves(1000, 14))
    tree._leaves[1001] = 1
    with pytest.raises(AssertionError, match="past the last of 1000 ids"):
        tree.check()


def test_inner_nodes_cost_less_than_a_byte_and_a_half_an_id() -> None:
    assert MassTree(np.ones(1_000_000, np.uint32)).nbytes <= 5.5 * 1_000_000
