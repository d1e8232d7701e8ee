"""The compiled kernels and the plain ones: the same bits for the same arguments, also at the edges."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from steelyard_server import kernel_cache
from steelyard_server.core import kernels
from steelyard_server.core.kernels import plain, proof
from steelyard_server.core.kernels.contract import Kernels
from steelyard_server.core.kernels.layout import LEAVES, UNSEEN, offsets_of
from steelyard_server.core.kernels.scores import FLAT, POWER, SOFTMAX

WORD = st.integers(0, 2**64 - 1)
SEED = st.integers(0, 2**32)
LAWS = [(0, 0), (1, 0), (0, 1), (2**32 + 5, 7), (2**44, 2**45 + 1)]


@pytest.fixture(scope="module", autouse=True)
def both_kernels() -> None:
    """Here the sets are asked side by side."""


@pytest.fixture(scope="module")
def compiled() -> Kernels:
    kernel_cache.load(kernel_cache.folder())
    return kernels.load()


class Tree:
    """A tree as kernels see it."""

    def __init__(self, leaves: npt.NDArray[np.uint32], top: int) -> None:
        places = max(-(-leaves.size // LEAVES), 1) * LEAVES
        self.size = leaves.size
        self.leaves = np.zeros(places, np.uint32)
        self.leaves[: leaves.size] = leaves
        self.offsets = offsets_of(places, top)
        self.nodes = np.zeros(self.offsets[-1], np.uint64)
        self.totals = np.zeros(5, np.uint64)
        plain.build(self.leaves, self.nodes, self.offsets, 0, places)


def some_leaves(size: int, random: np.random.Generator) -> npt.NDArray[np.uint32]:
    """Of every kind, in a mixture of its own: none, unseen, least and greatest mass, and between."""
    kinds = np.array([0, UNSEEN, 1, UNSEEN - 1], np.uint32)
    special = kinds[random.integers(0, 4, size)]
    common = random.integers(0, 2 ** random.integers(1, 33, size), dtype=np.uint32)
    return np.where(random.random(size) < random.random(), special, common).astype(np.uint32)


def assert_same(one: Any, other: Any) -> None:
    one, other = np.asarray(one), np.asarray(other)
    assert one.tobytes() == other.tobytes(), (one, other)


def words(*values: int) -> Any:
    return [np.uint64(value) for value in values]


@given(WORD, WORD, WORD, st.integers(0, 2**50), st.integers(2, 2**63), st.integers(0, 300))
def test_random_words_are_those_of_numpy(
    compiled: Kernels, seed: int, purpose: int, step: int, position: int, bound: int, size: int
) -> None:
    a, b, c, at, limit, shift = words(seed, purpose, step, position, bound, 64 - (bound - 1).bit_length())
    mine, theirs = np.empty(size, np.uint64), np.empty(size, np.uint64)
    end = plain.below(a, b, c, at, limit, shift, theirs)
    assert compiled.below(a, b, c, at, limit, shift, mine) == end
    assert_same(mine, theirs)
    ranks, order = np.empty(size, np.int64), np.empty(size, np.int64)
    assert compiled.order(a, b, c, at, ranks) == plain.order(a, b, c, at, order)
    assert_same(ranks, order)


@settings(max_examples=60)
@given(st.integers(0, 20_000), st.sampled_from([8, 64, 1024]), SEED, st.data())
def test_a_tree_is_summed_and_changed_alike(
    compiled: Kernels, size: int, top: int, seed: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    mine, theirs = (Tree(some_leaves(size, np.random.default_rng(seed)), top) for _ in range(2))
    ids = random.permutation(size)[: data.draw(st.integers(0, size))].astype(np.int64)
    values = some_leaves(ids.size, random)
    compiled.update(mine.leaves, mine.nodes, mine.offsets, mine.totals, ids, values)
    plain.update(theirs.leaves, theirs.nodes, theirs.offsets, theirs.totals, ids, values)
    for name in ("leaves", "nodes", "totals"):
        assert_same(getattr(mine, name), getattr(theirs, name))
    start = data.draw(st.integers(0, mine.leaves.size))
    mine.leaves[start:] = 3
    afresh = mine.nodes.copy()
    compiled.build(mine.leaves, afresh, mine.offsets, start, mine.leaves.size)
    plain.build(mine.leaves, mine.nodes, mine.offsets, start, mine.leaves.size)
    assert_same(afresh, mine.nodes)
    assert compiled.squares(mine.leaves) == plain.squares(mine.leaves)


@settings(max_examples=60)
@given(st.integers(1, 20_000), st.sampled_from([8, 64, 1024]), SEED, st.sampled_from(LAWS), st.data())
def test_a_tree_answers_alike(
    compiled: Kernels, size: int, top: int, seed: int, law: tuple[int, int], data: st.DataObject
) -> None:
    random = np.random.default_rng(seed)
    tree, (unseen, extra) = Tree(some_leaves(size, random), top), words(*law)
    arrays = (tree.leaves, tree.nodes, tree.offsets, unseen, extra)
    every = np.arange(size, dtype=np.int64)
    answers: list[list[Any]] = []
    for which in (compiled, plain):
        masses, before = np.empty(size, np.uint64), np.empty(size, np.uint64)
        which.masses(tree.leaves, unseen, extra, every, masses)
        which.prefix(*arrays, every, before)
        answers.append([masses, before])
    total = int(answers[1][0].sum(dtype=np.uint64))
    edges = answers[1][1]
    targets = np.concatenate([edges, edges - np.uint64(1), random.integers(0, 2**63, 50, np.uint64)])
    targets = targets[targets < total]
    threshold = data.draw(st.integers(1, max(total, 1)))
    count, offset = data.draw(st.integers(1, 300)), data.draw(st.integers(0, 2**63 - 1))
    for which, found in zip((compiled, plain), answers, strict=True):
        ids, masses = np.empty(targets.size, np.int64), np.empty(targets.size, np.uint64)
        which.find(*arrays, targets, ids, masses)
        great = which.at_least(*arrays, np.uint64(threshold), min(total // threshold, size))
        teeth, weights, greatest = np.empty(0, np.int64), np.empty(0, np.uint64), 0
        if total:
            teeth, weights = np.empty(count, np.int64), np.empty(count, np.uint64)
            greatest = which.comb(*arrays, np.uint64(total), np.uint64(offset % total), teeth, weights)
        found += [ids, masses, great, teeth, weights, np.int64(greatest)]
    for mine, theirs in zip(*answers, strict=True):
        assert_same(mine, theirs)


def test_a_total_just_below_the_limit_is_searched_alike(compiled: Kernels) -> None:
    tree = Tree(np.full(20_000, UNSEEN - 1, np.uint32), 8)
    extra = (2**63 - 1 - 20_000 * (UNSEEN - 1)) // 20_000
    total = 20_000 * (UNSEEN - 1 + extra)
    targets = np.array([0, 1, total // 3, total - 1, total - 2], np.uint64)
    ids, masses = np.empty(5, np.int64), np.empty(5, np.uint64)
    arrays = (tree.leaves, tree.nodes, tree.offsets, np.uint64(0), np.uint64(extra))
    for which in (compiled, plain):
        which.find(*arrays, targets, ids, masses)
        assert ids.tolist() == [int(target) // (UNSEEN - 1 + extra) for target in targets.tolist()]
        assert masses.tolist() == [UNSEEN - 1 + extra] * 5


@given(st.lists(st.integers(-2, 12), max_size=8), st.integers(0, 12))
def test_ids_are_judged_alike(compiled: Kernels, ids: list[int], size: int) -> None:
    array = np.array(ids, np.int64)
    right = 2 if any(not 0 <= i < size for i in ids) else int(ids != sorted(set(ids)))
    assert compiled.ids_within(array, size) == plain.ids_within(array, size) == right


RULES = [(POWER, 1.0), (POWER, 0.6), (POWER, 64.0), (FLAT, 0.0), (SOFTMAX, 1.0), (SOFTMAX, 1.44e9)]


@example([0.0] * 5 + [-0.0] * 40, (SOFTMAX, 1.0), 0)
@example([-0.0] * 40 + [0.0] * 5, (SOFTMAX, 1.0), 0)
@given(st.lists(st.floats(width=32), max_size=600), st.sampled_from(RULES), st.integers(-(2**41), 2**41))
def test_any_scores_have_the_same_leaves(
    compiled: Kernels, values: list[float], rule: tuple[int, float], scale: int
) -> None:
    for each in (scale, scale % 40 - 4):
        assert_scored_alike(compiled, np.array(values, np.float32), rule, each)


@pytest.mark.parametrize("rule", RULES)
def test_scores_of_all_magnitudes_have_the_same_leaves(compiled: Kernels, rule: tuple[int, float]) -> None:
    random = np.random.default_rng(5)
    bits = random.integers(0, 2**32, 200_000, dtype=np.uint32)
    near_one = 1 + random.normal(size=50_000) * 10.0 ** random.uniform(-7, 0, 50_000)
    scores = np.concatenate([bits.view(np.float32), near_one.astype(np.float32)])
    # A signalling NaN warns on its way through NumPy.
    scores[np.isnan(scores)] = np.nan
    for scale in (-3, 0, 12, 28):
        assert_scored_alike(compiled, scores, rule, scale)


def assert_scored_alike(
    compiled: Kernels, scores: npt.NDArray[np.float32], rule: tuple[int, float], scale: int
) -> None:
    ids = np.arange(len(scores), dtype=np.int64)[::-1].copy()
    answers: list[list[Any]] = []
    for which in (compiled, plain):
        leaves = np.empty(len(scores), np.uint32)
        # Of the tree every third is dead and stays so.
        tree = Tree((np.arange(len(scores)) % 3 > 0).astype(np.uint32), 8)
        top = which.leaves_of(scores, *rule, scale, leaves)
        live = which.reweigh(scores, ids, *rule, scale, tree.leaves, tree.nodes, tree.offsets, tree.totals)
        np.testing.assert_array_equal(tree.leaves[: len(scores)], leaves * (np.arange(len(scores)) % 3 > 0))
        answers.append([leaves, np.float64(top), np.float64(live), tree.leaves, tree.nodes, tree.totals])
    for mine, theirs in zip(*answers, strict=True):
        assert_same(mine, theirs)


@given(st.integers(1, 2**40), st.integers(0, 2**63), SEED)
def test_indices_are_permuted_alike(compiled: Kernels, size: int, rotation: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = int(np.ceil(np.sqrt(size)))
    columns = -(-size // rows)
    keys = random.integers(0, 2**64, 10, dtype=np.uint64)
    index = random.integers(0, size, 40, dtype=np.uint64)
    mine, theirs = np.empty(40, np.uint64), np.empty(40, np.uint64)
    for which, image in ((compiled, mine), (plain, theirs)):
        a, b, c, d = words(size, rows, columns, rotation % size)
        which.permute(index, a, b, c, d, keys, image)
    assert_same(mine, theirs)


def test_the_proof_finds_no_difference_here(compiled: Kernels) -> None:
    assert proof.differences(compiled, plain) == []


@pytest.mark.parametrize(
    ("name", "part", "wrong"),
    [
        ("below", "random words", lambda right: lambda *given: right(*given) + 1),
        ("squares", "updates", lambda right: lambda leaves: (right(leaves)[0], right(leaves)[1] + 1)),
        (
            "prefix",
            "finds",
            lambda right: lambda *given: right(*given[:4], given[4] + np.uint64(1), *given[5:]),
        ),
        (
            "leaves_of",
            "leaves of scores",
            lambda right: lambda s, r, f, c, out: right(s, r, f * 1.0000001, c, out),
        ),
        (
            "permute",
            "permutations",
            lambda right: lambda *given: right(*given[:4], given[4] + np.uint64(1), *given[5:]),
        ),
    ],
)
def test_the_proof_names_what_differs(name: str, part: str, wrong: Callable[[Any], Any]) -> None:
    planted = SimpleNamespace(**{each: getattr(plain, each) for each in plain.__all__})
    setattr(planted, name, wrong(getattr(plain, name)))
    assert proof.differences(planted, plain) == [part]


def test_kernels_that_differ_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "differences", lambda one, other: ["finds"])
    with pytest.raises(RuntimeError, match="disagree here on finds"):
        kernels.load()


def test_another_type_than_a_kernel_is_for_is_refused_and_not_compiled(compiled: Kernels) -> None:
    with pytest.raises(TypeError, match="No matching definition"):
        compiled.squares(np.zeros(4, np.int64))  # type: ignore[arg-type]
