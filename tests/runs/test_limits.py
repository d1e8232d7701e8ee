"""Which of several changes is admitted, also while others are under way."""

from __future__ import annotations

import pytest

from steelyard_server.runs.errors import Exhausted
from steelyard_server.runs.limits import Admission, Limits, Use


def test_what_is_admitted_and_not_made_yet_counts_and_what_failed_does_not() -> None:
    admission = Admission(Limits(max_runs=2), lambda: Use({"d": 5}, {"a": "d"}))
    with admission.run("b", "d"), pytest.raises(Exhausted, match="has 2 runs, 1 more would make 3"):
        admission.run("c", "d").__enter__()
    with pytest.raises(ZeroDivisionError), admission.run("b", "d"):
        raise ZeroDivisionError
    with admission.run("c", "d"):
        pass


def test_what_was_just_made_counts_once_while_it_is_also_planned() -> None:
    runs = {"a": "d"}
    admission = Admission(Limits(max_runs=3, max_examples=15), lambda: Use({"d": 5}, dict(runs)))
    with admission.run("b", "d"):
        runs["b"] = "d"
        with admission.run("c", "d"):
            pass


def test_a_run_that_leaves_counts_until_it_is_gone() -> None:
    runs = {"a": "d", "b": "d"}
    admission = Admission(Limits(max_runs=2), lambda: Use({"d": 5}, dict(runs)))
    with admission.leaving("a", "d"):
        del runs["a"]
        with pytest.raises(Exhausted):
            admission.run("c", "d").__enter__()
    with admission.run("c", "d"):
        pass


def test_growth_under_way_counts_for_every_run_on_the_dataset() -> None:
    admission = Admission(Limits(max_examples=40), lambda: Use({"d": 10, "e": 10}, {"a": "d", "b": "d"}))
    with admission.dataset("d", 15):
        with pytest.raises(Exhausted, match="has 30 examples of runs, 15 more would make 45"):
            admission.run("c", "d").__enter__()
        with admission.run("c", "e"):
            pass


def test_what_adds_nothing_is_admitted_over_the_limit() -> None:
    admission = Admission(Limits(1, 1, 1), lambda: Use({"d": 10, "e": 10}, {"a": "d", "b": "d"}))
    with admission.dataset("e", 100):
        pass
    with pytest.raises(Exhausted):
        admission.dataset("d", 11).__enter__()
