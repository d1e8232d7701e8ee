"""Run specifications: limits, messages, and what makes two of them the same."""

from __future__ import annotations

from typing import Any

import pytest

from steelyard_server.runs.errors import Invalid
from steelyard_server.runs.spec import RunSpec, parse_spec

BASE: dict[str, Any] = {
    "name": "r",
    "dataset": "d",
    "batch_size": 8,
    "draw": {"method": "shuffle"},
    "weigh": {"method": "uniform"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size: Input should be greater than or equal to 1; got 0"),
        ({"batch_size": (1 << 20) + 1}, "batch_size: Input should be less than or equal to 1048576"),
        ({"name": "a b"}, "name: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 1 << 64}, "seed: "),
        ({"staleness": -1}, "staleness"),
        ({"staleness": "some"}, "staleness"),
        ({"report_timeout": 0}, "report_timeout: "),
        ({"on_nonfinite": "drop"}, "on_nonfinite: "),
        ({"history": 3}, "history: Extra inputs are not permitted; got 3"),
        ({"draw": {"method": "shufle"}}, "did you mean 'shuffle'?"),
    ],
)
def test_a_specification_that_cannot_be_used_is_refused_with_what_came(
    change: dict[str, Any], message: str
) -> None:
    with pytest.raises(Invalid) as error:
        parse_spec({**BASE, **change})
    assert message in str(error.value)


def test_two_that_mean_the_same_are_equal_and_the_first_difference_is_named() -> None:
    one = parse_spec(BASE)
    assert one == parse_spec(
        {**BASE, "seed": 0, "staleness": 16, "weigh": {"method": "uniform", "where": "auto"}}
    )
    assert one.first_difference(one) is None
    other = parse_spec({**BASE, "staleness": "any"})
    assert one.first_difference(other) == "staleness is 16 there and 'any' here"


def test_the_stored_form_comes_back_the_same() -> None:
    spec = parse_spec({**BASE, "draw": {"method": "scored", "unseen": 2}, "staleness": "any"})
    assert RunSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_reports_are_taken_for_twice_the_prefetch_and_no_shorter_than_256_steps() -> None:
    windows = {k: parse_spec({**BASE, "staleness": k}).report_window for k in (0, 128, 200, 4096, "any")}
    assert windows == {0: 256, 128: 256, 200: 400, 4096: 8192, "any": 256}
