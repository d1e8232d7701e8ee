"""The keyed permutation: a bijection of any size whose orders look uniform and independent of each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from steelyard_server.core.permutation import MAX_SIZE, permute

PINNED_TEN = [1, 4, 8, 6, 9, 7, 0, 3, 2, 5]
PINNED_BILLION = [593373925, 521615287, 867543088]
"""Pinned: a run that is continued by another version or on another machine must draw the same."""

ERROR_RATE = 1e-6
"""Chance that a right permutation fails one of the statistical tests, had its key not been fixed."""


def whole(size: int, key: int, tweak: int) -> npt.NDArray[np.int64]:
    return permute(np.arange(size, dtype=np.uint64), size, key, tweak).astype(np.int64)


SIZES = [*range(1, 40), 10_007, *(2**k + d for k in (7, 10, 13, 16) for d in (-1, 0, 1))]


@pytest.mark.parametrize("size", SIZES)
def test_every_index_is_the_image_of_exactly_one(size: int) -> None:
    assert np.array_equal(np.sort(whole(size, 3, size)), np.arange(size))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_it_is_a_bijection_for_any_key_and_tweak(size: int, key: int, tweak: int) -> None:
    assert np.array_equal(np.sort(whole(size, key, tweak)), np.arange(size))


@pytest.mark.parametrize("size", [MAX_SIZE, MAX_SIZE - 1, 10**12 + 39])
def test_large_sizes_keep_images_apart_and_in_range(size: int) -> None:
    index = np.concatenate([np.arange(5000), size - 1 - np.arange(5000)]).astype(np.uint64)
    image = permute(index, size, 1, 2)
    assert np.unique(image).size == index.size
    assert int(image.max()) < size
    shares = np.bincount((image // np.uint64(-(-size // 20))).astype(np.int64), minlength=20)
    assert stats.chisquare(shares).pvalue > ERROR_RATE


def test_an_image_does_not_depend_on_what_else_is_asked() -> None:
    everything = whole(1009, 5, 6)
    some = np.array([1008, 0, 77, 77], np.uint64)
    assert permute(some, 1009, 5, 6).tolist() == everything[some.astype(np.int64)].tolist()
    assert some.tolist() == [1008, 0, 77, 77]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_tweaks_reach_every_order_of_a_few_equally_often(size: int) -> None:
    trials = {2: 500, 3: 1000, 4: 2000, 5: 3000, 6: 6000}[size]
    orders = np.array([whole(size, 11, tweak) for tweak in range(trials)])
    names = orders @ (size ** np.arange(size))
    _, counts = np.unique(names, return_counts=True)
    assert counts.size == np.prod(np.arange(1, size + 1))
    assert stats.chisquare(counts).pvalue > ERROR_RATE


@pytest.mark.parametrize("size", [16, 30, 1500])
def test_two_indices_land_on_every_pair_of_places_equally_often(size: int) -> None:
    pairs = np.array([[0, 1], [0, size // 2], [2, size - 1]], np.uint64)
    images = np.array([permute(pairs.ravel(), size, 13, t) for t in range(3000)]).reshape(-1, 3, 2)
    cells = np.minimum(images.astype(np.int64) * 8 // size, 7)
    for pair in range(3):
        counts = np.bincount(cells[:, pair, 0] * 8 + cells[:, pair, 1], minlength=64)
        assert stats.chisquare(counts, 3000 * pair_law(size)).pvalue > ERROR_RATE


def pair_law(size: int) -> npt.NDArray[np.float64]:
    """Probability of each pair of eighths for two different places of range(size), float64[64]."""
    widths = np.bincount(np.arange(size) * 8 // size, minlength=8).astype(np.float64)
    law = np.outer(widths, widths) - np.diag(widths)
    return law.ravel() / law.sum()


def test_neighbours_and_successive_tweaks_agree_as_often_as_chance() -> None:
    size, tweaks = 500, 600
    orders = np.array([whole(size, 17, tweak) for tweak in range(tweaks)])
    steps = np.bincount(((orders[:, 1:] - orders[:, :-1]) % size).ravel(), minlength=size)[1:]
    assert stats.chisquare(steps).pvalue > ERROR_RATE
    # Two random orders agree in a Poisson(1) number of places, to within 1/size.
    agreements = int((orders[1:] == orders[:-1]).sum())
    low, high = stats.poisson.ppf([ERROR_RATE / 2, 1 - ERROR_RATE / 2], tweaks - 1)
    assert low <= agreements <= high


def test_the_same_key_gives_the_same_order_for_ever() -> None:
    assert whole(10, 1, 2).tolist() == PINNED_TEN
    assert permute(np.arange(3, dtype=np.uint64), 10**9, 1, 2).tolist() == PINNED_BILLION


def test_bad_arguments_are_refused_with_what_came() -> None:
    index = np.array([4], np.uint64)
    with pytest.raises(ValueError, match="size .* got 0"):
        permute(index, 0, 0, 0)
    with pytest.raises(ValueError, match="size .* got 1099511627777"):
        permute(index, MAX_SIZE + 1, 0, 0)
    with pytest.raises(ValueError, match="indices below 4, got 4"):
        permute(index, 4, 0, 0)
    with pytest.raises(ValueError, match="tweak .* got -1"):
        permute(index, 5, 0, -1)
    with pytest.raises(ValueError, match="uint64 indices, got int64"):
        permute(index.astype(np.int64), 5, 0, 0)  # type: ignore[arg-type]
