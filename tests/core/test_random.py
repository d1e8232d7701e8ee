"""Random numbers: exact laws, the scalar definition, and streams that never share a word."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from steelyard_server.core.random import Purpose, bits

PINNED_BELOW = [121, 708, 666, 750, 349, 237, 116, 442]
PINNED_ORDER = [3, 4, 0, 7, 2, 1, 6, 5]
"""Pinned: a run that is continued by another version or on another machine must draw the same."""

ERROR_RATE = 1e-6
"""Chance that a right generator fails one of the statistical tests, had its seed not been fixed."""


@pytest.mark.parametrize("bound", [1, 2, 3, 1000, 2**32 + 1, 2**62 + 1, 2**63 - 1, 2**63])
def test_below_is_what_a_scalar_loop_over_the_words_gives(bound: int) -> None:
    words = iter(np.random.Philox(key=[7, 1], counter=[0, 0, 0, 42]).random_raw(4000).tolist())
    shift = 64 - (bound - 1).bit_length()

    def scalar(size: int) -> list[int]:
        if bound == 1:
            return [0] * size
        return list(itertools.islice((w >> shift for w in words if w >> shift < bound), size))

    stream = bits(7, Purpose.DRAW, 42)
    for size in (1, 0, 300, 17):
        assert stream.below(bound, size).tolist() == scalar(size)


@pytest.mark.parametrize("bound", [2, 3, 5, 7, 100])
def test_below_is_uniform(bound: int) -> None:
    counts = np.bincount(bits(1, Purpose.DRAW, 0).below(bound, 20_000).astype(np.int64), minlength=bound)
    assert counts.size == bound
    assert stats.chisquare(counts).pvalue > ERROR_RATE


def test_order_gives_every_order_of_four_equally_often() -> None:
    stream = bits(2, Purpose.ORDER, 0)
    seen = [tuple(stream.order(4).tolist()) for _ in range(12_000)]
    counts = [seen.count(order) for order in itertools.permutations(range(4))]
    assert sum(counts) == len(seen)
    assert stats.chisquare(counts).pvalue > ERROR_RATE


@pytest.mark.parametrize("size", [0, 1, 2, 1000])
def test_order_is_a_permutation(size: int) -> None:
    order = bits(3, Purpose.ORDER, 9).order(size)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(size))


def test_neighbouring_seeds_steps_and_purposes_share_no_word() -> None:
    places = [(s, p, t) for s in (0, 1, 2**64 - 1) for p in Purpose for t in (0, 1, 2, 2**64 - 1)]
    words = np.concatenate([bits(*place).below(2**63, 500) for place in places])
    # Of 18 000 words of 63 bits, two equal by chance: 2e-11.
    assert np.unique(words).size == words.size


def test_the_same_place_gives_the_same_numbers_for_ever() -> None:
    stream = bits(0x5EED, Purpose.PERMUTATION, 3)
    assert stream.below(1000, 8).tolist() == PINNED_BELOW
    assert stream.order(8).tolist() == PINNED_ORDER


def test_bad_arguments_are_refused_with_what_came() -> None:
    with pytest.raises(ValueError, match=r"seed in 0\.\.2\*\*64-1, got -1"):
        bits(-1, Purpose.DRAW, 0)
    with pytest.raises(ValueError, match="step .* got 18446744073709551616"):
        bits(0, Purpose.DRAW, 2**64)
    with pytest.raises(ValueError, match="bound .* got 0"):
        bits(0, Purpose.DRAW, 0).below(0, 1)
    with pytest.raises(ValueError, match="bound .* got 9223372036854775809"):
        bits(0, Purpose.DRAW, 0).below(2**63 + 1, 1)
    with pytest.raises(ValueError, match="size .* got -1"):
        bits(0, Purpose.DRAW, 0).below(5, -1)
    with pytest.raises(ValueError, match="size .* got -1"):
        bits(0, Purpose.DRAW, 0).order(-1)
