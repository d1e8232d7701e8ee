"""Two sets of kernels, the same questions: are the answers the same bits?

Asked of the compiled kernels before they are used, since a cache could be stale or a processor round differently.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from steelyard_server.core.kernels.contract import Kernels, Leaves
from steelyard_server.core.kernels.layout import LEAVES, UNSEEN, Words, offsets_of
from steelyard_server.core.kernels.scores import FLAT, POWER, SOFTMAX

_SIZE = LEAVES * 8**5
_STRIDE = 2_654_435_761
_LAWS = ((0, 0), (2**33 + 1, 0), (0, 7), (5, 2**40 + 3))


def differences(one: Kernels, other: Kernels) -> list[str]:
    """The names of the kernels whose answers differ; a tenth of a second."""
    return [name for name, ask in _QUESTIONS.items() if not _same(ask(one), ask(other))]


def _same(answers: list[Any], others: list[Any]) -> bool:
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(answers, others, strict=True)
    )


def _some_words(count: int) -> Words:
    """Words with all bits in use, by a fixed rule."""
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _some_leaves() -> Leaves:
    leaves = (np.arange(_SIZE, dtype=np.uint64) * np.uint64(_STRIDE) >> np.uint64(9)).astype(np.uint32)
    leaves[::5], leaves[::7], leaves[::11], leaves[::13] = 0, UNSEEN, UNSEEN - 1, 1
    return leaves


class _Tree:
    """A small tree of five levels, the two topmost of them wide."""

    def __init__(self, kernels: Kernels) -> None:
        self.leaves = _some_leaves()
        self.offsets = offsets_of(_SIZE, 8)
        self.nodes = np.zeros(self.offsets[-1], np.uint64)
        kernels.build(self.leaves, self.nodes, self.offsets, 0, _SIZE)
        self.totals = np.zeros(5, np.uint64)


def _words(kernels: Kernels) -> list[Any]:
    values, order = np.empty(501, np.uint64), np.empty(501, np.int64)
    seed, purpose, step = np.uint64(2**64 - 3), np.uint64(1), np.uint64(2**63 + 1)
    bound = np.uint64(2**62 + 12_345)
    behind = kernels.below(seed, purpose, step, np.uint64(2), bound, np.uint64(1), values)
    end = kernels.order(seed, purpose, step, np.uint64(behind), order)
    return [np.int64(behind), values, np.int64(end), order]


def _tree(kernels: Kernels) -> list[Any]:
    tree = _Tree(kernels)
    ids = (np.arange(999, dtype=np.int64) * 61) % _SIZE
    values = tree.leaves[::-1][ids].copy()
    kernels.update(tree.leaves, tree.nodes, tree.offsets, tree.totals, ids, values)
    answers: list[Any] = [tree.leaves, tree.nodes, tree.totals]
    answers += [np.array(kernels.squares(tree.leaves), np.uint64)]
    return answers + [np.int64(kernels.ids_within(these, _SIZE)) for these in (ids, np.sort(ids), ids - 1)]


def _find(kernels: Kernels) -> list[Any]:
    tree, answers = _Tree(kernels), []
    for unseen, extra in _LAWS:
        law = (np.uint64(unseen), np.uint64(extra))
        masses = np.empty(_SIZE, np.uint64)
        every = np.arange(_SIZE, dtype=np.int64)
        kernels.masses(tree.leaves, *law, every, masses)
        total = np.uint64(masses.sum(dtype=np.uint64))
        targets = _some_words(700) % total
        ids, found, before = np.empty(700, np.int64), np.empty(700, np.uint64), np.empty(700, np.uint64)
        kernels.find(tree.leaves, tree.nodes, tree.offsets, *law, targets, ids, found)
        kernels.prefix(tree.leaves, tree.nodes, tree.offsets, *law, ids, before)
        threshold = np.uint64(total // np.uint64(_SIZE // 2))
        great = kernels.at_least(tree.leaves, tree.nodes, tree.offsets, *law, threshold, _SIZE)
        teeth, weights = np.empty(300, np.int64), np.empty(300, np.uint64)
        greatest = kernels.comb(
            tree.leaves, tree.nodes, tree.offsets, *law, total, total // np.uint64(3), teeth, weights
        )
        answers += [masses, ids, found, before, great, teeth, weights, np.int64(greatest)]
    return answers


def _scores(kernels: Kernels) -> list[Any]:
    bits = (_some_words(3000) >> np.uint64(33)).astype(np.uint32)
    # Of every magnitude, without NaN and infinity; and numbers around 1.
    scores = np.minimum(bits, np.uint32(0x7F7FFFFF)).view(np.float32)
    scores[:8] = [0, -0.0, np.nan, np.inf, -np.inf, 1, 1e-45, -3]
    scores[8:1000] = (bits[8:1000] % np.uint32(1 << 20)).astype(np.float32) / np.float32(1 << 16)
    ids = np.arange(3000, dtype=np.int64)[::-1].copy()
    answers: list[Any] = []
    for rule, factor, scale in (
        (POWER, 1.0, 28.0),
        (POWER, 0.6, -3.0),
        (FLAT, 0.0, 4.0),
        (SOFTMAX, 0.3, 9.0),
    ):
        leaves = np.empty(3000, np.uint32)
        top = np.float64(kernels.leaves_of(scores, rule, factor, scale, leaves))
        tree = _Tree(kernels)
        most = np.float64(
            kernels.reweigh(
                scores, ids, rule, factor, scale, tree.leaves, tree.nodes, tree.offsets, tree.totals
            )
        )
        answers += [leaves, top, tree.leaves, tree.nodes, tree.totals, most]
    return answers


def _permute(kernels: Kernels) -> list[Any]:
    index, image = np.arange(900, dtype=np.uint64), np.empty(900, np.uint64)
    size, rows, columns, rotation = np.uint64(901), np.uint64(31), np.uint64(30), np.uint64(17)
    kernels.permute(index, size, rows, columns, rotation, _some_words(10), image)
    return [image]


_QUESTIONS: dict[str, Callable[[Kernels], list[Any]]] = {
    "random words": _words,
    "updates": _tree,
    "finds": _find,
    "leaves of scores": _scores,
    "permutations": _permute,
}
