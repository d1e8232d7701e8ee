"""Derived columns against a plain Python twin that folds one number at a time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard_server.policies.columns import Derived, ascending, last_occurrence, parse_derived

SIZE = 6
NAN = float("nan")


def twin(statistic: str, decay: float, batches: list[list[tuple[int, float]]]) -> list[float]:
    value, count = [NAN] * SIZE, [0] * SIZE
    for example, new in (pair for batch in batches for pair in batch):
        count[example] += 1
        known = value[example]
        if statistic == "count":
            folded: float = count[example]
        elif statistic == "last" or math.isnan(known):
            folded = new
        elif statistic == "mean":
            folded = known + (new - known) / count[example]
        else:
            folded = decay * known + (1 - decay) * new
        value[example] = float(np.float32(folded))
    return value


def forgetting(batches: list[list[tuple[int, float]]]) -> dict[str, list[float]]:
    """What each example's whole sequence of answers says, told at once."""
    heard: list[list[bool]] = [[] for _ in range(SIZE)]
    for example, value in (pair for batch in batches for pair in batch):
        heard[example].append(value >= 0.5)
    lost = [sum(a and not b for a, b in itertools.pairwise(answers)) for answers in heard]
    state = [2 if answers and answers[-1] else 1 if any(answers) else 0 for answers in heard]
    return {
        name: [float(value) if answers else NAN for value, answers in zip(values, heard, strict=True)]
        for name, values in [("forgotten", lost), ("learned", state), ("count", map(len, heard))]
    }


@pytest.mark.parametrize("statistic", ["forgotten", "learned"])
@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, SIZE - 1), st.sampled_from([0.0, 1.0, 0.5, -3.0])), max_size=8)
    )
)
def test_forgetting_is_what_the_whole_sequence_of_answers_says(
    statistic: str, batches: list[list[tuple[int, float]]]
) -> None:
    derived = Derived(statistic, "correct")
    columns = {name: np.full(SIZE, np.nan, np.float32) for name in derived.columns}
    for batch in batches:
        ids = np.array([example for example, _ in batch], np.int64)
        derived.fold(columns, ids, np.array([value for _, value in batch], np.float32))
    for name, values in forgetting(batches).items():
        if f"{name}_correct" in columns:
            np.testing.assert_array_equal(columns[f"{name}_correct"], np.array(values, np.float32))


FINITE = st.floats(-(2.0**99), 2.0**99, width=32)
BATCHES = st.lists(st.lists(st.tuples(st.integers(0, SIZE - 1), FINITE), max_size=8), max_size=5)


@pytest.mark.parametrize("statistic", ["last", "mean", "ema", "count"])
@given(batches=BATCHES, decay=st.sampled_from([0.0, 0.5, 0.9]))
def test_a_batch_folds_like_its_positions_one_after_the_other(
    statistic: str, batches: list[list[tuple[int, float]]], decay: float
) -> None:
    derived = Derived(statistic, "loss", decay)
    columns = {name: np.full(SIZE, np.nan, np.float32) for name in derived.columns}
    for batch in batches:
        ids = np.array([example for example, _ in batch], np.int64)
        derived.fold(columns, ids, np.array([value for _, value in batch], np.float32))
    expected = np.array(twin(statistic, decay, batches), np.float32)
    np.testing.assert_array_equal(columns[derived.name], expected)


def test_a_mean_is_the_mean_of_all_that_came() -> None:
    derived = Derived("mean", "loss")
    columns = {name: np.full(1, np.nan, np.float32) for name in derived.columns}
    values = np.random.default_rng(3).gamma(2.0, size=1000).astype(np.float32)
    for part in np.split(values, 10):
        derived.fold(columns, np.zeros(len(part), np.int64), part)
    # Each of 1000 foldings rounds to float32.
    assert columns["mean_loss"][0] == pytest.approx(float(values.mean()), rel=1e-5)
    assert columns["count_loss"][0] == 1000


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("last_loss", Derived("last", "loss")),
        ("ema_grad_norm", Derived("ema", "grad_norm")),
        ("count_correct", Derived("count", "correct")),
        ("forgotten_correct", Derived("forgotten", "correct")),
        ("learned_correct", Derived("learned", "correct")),
        ("quality", None),
        ("last_", None),
        ("lastloss", None),
        ("newest_loss", None),
    ],
)
def test_a_name_of_statistic_and_signal_is_a_derived_column_and_every_other_a_static_one(
    name: str, expected: Derived | None
) -> None:
    assert parse_derived(name) == expected


def test_a_mean_needs_the_count_forgetting_the_answers_before_and_the_others_only_themselves() -> None:
    assert Derived("mean", "el2n").columns == ("mean_el2n", "count_el2n")
    assert Derived("forgotten", "c").columns == ("forgotten_c", "learned_c", "count_c")
    assert [Derived(s, "loss").columns for s in ("last", "ema", "count")] == [
        ("last_loss",),
        ("ema_loss",),
        ("count_loss",),
    ]


@given(st.lists(st.integers(0, 5), max_size=12))
def test_the_last_occurrences_are_found_in_ascending_order_of_id(ids: list[int]) -> None:
    expected = [len(ids) - 1 - ids[::-1].index(example) for example in sorted(set(ids))]
    assert last_occurrence(np.array(ids, np.int64)).tolist() == expected


@given(ids=st.lists(st.integers(0, 20), max_size=12))
def test_ascending_is_each_id_once_in_order(ids: list[int]) -> None:
    assert ascending(np.array(ids, np.int64)).tolist() == sorted(set(ids))


@pytest.mark.parametrize("statistic", ["last", "mean", "ema", "count", "forgotten", "learned"])
def test_ids_that_are_known_to_be_distinct_fold_as_any_others(statistic: str) -> None:
    derived, rng = Derived(statistic, "loss", 0.9), np.random.default_rng(5)
    told = {name: np.full(SIZE, np.nan, np.float32) for name in derived.columns}
    asked = {name: np.full(SIZE, np.nan, np.float32) for name in derived.columns}
    for _ in range(20):
        ids, values = rng.permutation(SIZE)[:4], rng.normal(size=4).astype(np.float32)
        derived.fold(told, ids, values, distinct=True)
        derived.fold(asked, ids, values)
    for name in derived.columns:
        np.testing.assert_array_equal(told[name], asked[name])


@pytest.mark.parametrize("offset", [0, 2**40, 2**53, 2**62, -3])
@pytest.mark.parametrize("size", [0, 1, 7, 1023, 1024])
def test_the_last_occurrence_of_ids_of_any_size(offset: int, size: int) -> None:
    ids = offset + np.random.default_rng(size).integers(0, max(size // 2, 1), size)
    found = {int(example): position for position, example in enumerate(ids.tolist())}
    assert last_occurrence(ids).tolist() == [found[example] for example in sorted(found)]
