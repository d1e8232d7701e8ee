"""What a kernel does, however it is written: the inner loops of the core as functions on primitive arrays.

There are two sets of them, `plain` (NumPy) and `compiled` (numba), which give the same bits for the same arguments.
They check nothing: whoever calls has made sure of types, lengths and ranges, or memory is damaged. Arrays are
contiguous and one-dimensional. What a kernel writes into comes last.

`leaves`, `nodes` and `offsets` are a tree as `layout` has it; `unseen` and `extra` are the two numbers of a law, and
the total mass under it is below 2**63.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from steelyard_server.core.kernels.layout import Offsets, Words

Ids = npt.NDArray[np.int64]
Leaves = npt.NDArray[np.uint32]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Word = np.uint64


class Kernels(Protocol):
    """A set of kernels."""

    # ---- random words: those of numpy.random.Philox(key=[seed, purpose], counter=[0, 0, 0, step]) ----

    def below(
        self, seed: Word, purpose: Word, step: Word, position: Word, bound: Word, shift: Word, values: Words
    ) -> int:
        """Fills `values` with the top bits (word >> shift) of the words from `position` on that are below `bound`;
        the position behind the last word read. Half of the words at least must pass."""

    def order(self, seed: Word, purpose: Word, step: Word, position: Word, order: Ids) -> int:
        """Fills `order` with the ranking of as many words from `position` on, and of the next ones where two were
        equal; the position behind the last word read."""

    # ---- the tree ----

    def build(self, leaves: Leaves, nodes: Words, offsets: Offsets, start: int, stop: int) -> None:
        """Sums the leaves start..stop-1 afresh into every node above any of them."""

    def squares(self, leaves: Leaves) -> tuple[int, int]:
        """The sum of the squares of leaves that are masses, as (a, b) that stand for a * 2**32 + b."""

    def ids_within(self, ids: Ids, size: int) -> int:
        """0: all ids are in 0..size-1 and each is above the one before; 1: in range; 2: one is not."""

    def update(
        self, leaves: Leaves, nodes: Words, offsets: Offsets, totals: Words, ids: Ids, values: Leaves
    ) -> None:
        """Gives each id (once each) its new leaf. `totals` are mass, live, unseen and the two of `squares`."""

    def find(
        self,
        leaves: Leaves,
        nodes: Words,
        offsets: Offsets,
        unseen: Word,
        extra: Word,
        targets: Words,
        ids: Ids,
        masses: Words,
    ) -> None:
        """The id at each target on the mass line, each below the total, in any order; and that id's mass."""

    def comb(
        self,
        leaves: Leaves,
        nodes: Words,
        offsets: Offsets,
        unseen: Word,
        extra: Word,
        total: Word,
        offset: Word,
        ids: Ids,
        masses: Words,
    ) -> int:
        """As `find` for the n = ids.size targets floor((j * total + offset) / n), j = 0..n-1; the greatest mass found.
        `total` is that of the tree, `offset` below it, and n in 1..2**31."""

    def prefix(
        self,
        leaves: Leaves,
        nodes: Words,
        offsets: Offsets,
        unseen: Word,
        extra: Word,
        ids: Ids,
        before: Words,
    ) -> None:
        """The mass of all ids below each id."""

    def masses(self, leaves: Leaves, unseen: Word, extra: Word, ids: Ids, masses: Words) -> None:
        """The mass of each id."""

    def at_least(
        self,
        leaves: Leaves,
        nodes: Words,
        offsets: Offsets,
        unseen: Word,
        extra: Word,
        threshold: Word,
        most: int,
    ) -> Ids:
        """The ids of mass `threshold` (1 or more) or more, ascending. No level has more than `most` such nodes."""

    # ---- scores ----

    def leaves_of(self, scores: Float32s, rule: int, factor: float, scale: float, leaves: Leaves) -> float:
        """The leaf of each score, round(weight * 2**scale) within 1..2**32-2, UNSEEN for NaN; log2 of the weight of the
        greatest score, -inf where there is none. `rule` and `factor` as in `scores`."""

    def reweigh(
        self,
        scores: Float32s,
        ids: Ids,
        rule: int,
        factor: float,
        scale: float,
        leaves: Leaves,
        nodes: Words,
        offsets: Offsets,
        totals: Words,
    ) -> float:
        """`leaves_of` for the scores of those of the ids (once each) whose leaf is not 0, and `update` with them; tells
        what leaves_of does."""

    # ---- the keyed permutation ----

    def permute(
        self,
        index: Words,
        size: Word,
        rows: Word,
        columns: Word,
        rotation: Word,
        round_keys: Words,
        image: Words,
    ) -> None:
        """Where each index goes; `permutation` says what the numbers mean."""
