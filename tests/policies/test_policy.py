"""Policies as they are written down: defaults, refusals that help, and the way back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from steelyard_server.policies.policy import PolicyError, parse_policy

UNIFORM = {"method": "uniform"}
SCORED = {"method": "scored"}


@pytest.mark.parametrize(
    ("draw", "weigher"),
    [
        ({"method": "shuffle"}, UNIFORM),
        ({"method": "shuffle"}, {"method": "linupper", "r": 0.4, "where": "client"}),
        (SCORED, {"method": "importance", "beta": 0.5}),
        (
            {**SCORED, "unseen": 3, "sampling": "stratified", "transform": "softmax", "temperature": 2},
            UNIFORM,
        ),
        ({**SCORED, "score": "quality", "floor": 0.25, "unseen": "mean"}, {"method": "quadratic"}),
    ],
)
def test_the_canonical_form_is_json_says_everything_and_parses_to_itself(
    draw: dict[str, Any], weigher: dict[str, Any]
) -> None:
    canonical = parse_policy(draw, weigher).canonical()
    assert json.loads(json.dumps(canonical)) == canonical
    again = parse_policy(canonical["draw"], canonical["weigh"])
    assert again == parse_policy(draw, weigher)
    assert again.canonical() == canonical
    assert {**canonical["draw"], **draw} == canonical["draw"]


def test_what_is_not_said_takes_its_default() -> None:
    policy = parse_policy(SCORED, UNIFORM)
    assert policy.canonical()["draw"] == {
        "method": "scored",
        "score": "last_loss",
        "transform": "power",
        "alpha": 1.0,
        "temperature": 1.0,
        "floor": 0.0,
        "sampling": "distinct",
        "unseen": "max",
        "ema_decay": 0.9,
    }
    assert policy.where == "auto"
    assert policy.draw.reads_reports
    assert not parse_policy({**SCORED, "score": "quality"}, UNIFORM).draw.reads_reports
    assert parse_policy({**SCORED, "score": "quality"}, UNIFORM).draw.static == ("quality",)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            {"method": "shufle"},
            "expected method to be scored, shuffle; got 'shufle' (did you mean 'shuffle'?)",
        ),
        ({}, "expected method to be scored, shuffle; got None"),
        ({**SCORED, "alfa": 1}, "no field 'alfa' (did you mean 'alpha'?); its fields are alpha, "),
        ({**SCORED, "temprature": 1}, "(did you mean 'temperature'?)"),
        ({"method": "shuffle", "alpha": 1}, "method 'shuffle' has no field 'alpha'"),
        ({**SCORED, "alpha": -1}, "draw.alpha: Input should be greater than or equal to 0; got -1"),
        ({**SCORED, "alpha": float("nan")}, "draw.alpha: "),
        ({**SCORED, "floor": 1.0}, "draw.floor: Input should be less than or equal to 0.9999; got 1.0"),
        (
            {**SCORED, "temperature": 0},
            "draw.temperature: Input should be greater than or equal to 0.000000001; got 0",
        ),
        ({**SCORED, "sampling": "distict"}, "draw.sampling: "),
        ({**SCORED, "unseen": "most"}, "got 'most'"),
        ({**SCORED, "unseen": -1.0}, "got -1.0"),
        ({**SCORED, "score": ""}, "draw.score: "),
        ({**SCORED, "alpha": -1, "floor": 2}, "; draw.alpha: "),
        ({**SCORED, "score": "own:weight"}, "'own:weight' is a method's own column"),
    ],
)
def test_a_draw_that_cannot_be_used_is_refused_with_what_came_and_the_nearest_name(
    draw: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(draw, UNIFORM)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("weigher", "message"),
    [
        ({"method": "linuper"}, "did you mean 'linupper'?"),
        ({"method": "linupper", "rr": 0.4}, "did you mean 'r'?"),
        ({"method": "uniform", "where": "clent"}, "did you mean 'client'?"),
    ],
)
def test_a_weigher_that_cannot_be_used_is_refused_with_the_nearest_name(
    weigher: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy({"method": "shuffle"}, weigher)
    assert message in str(error.value)
    assert str(error.value).startswith("weigh: ")


@pytest.mark.parametrize("score", ["last_loss", "mean_loss", "ema_loss", "count_loss"])
def test_losses_are_not_drawn_by_and_weighed_by_at_once(score: str) -> None:
    with pytest.raises(PolicyError, match=f"the draw reads {score} and the weigher reads the losses again"):
        parse_policy({**SCORED, "score": score}, {"method": "linupper"})


@pytest.mark.parametrize("score", ["quality", "last_el2n"])
def test_another_quantity_may_be_drawn_by_where_the_losses_weigh(score: str) -> None:
    parse_policy({**SCORED, "score": score}, {"method": "linupper"})
    parse_policy({**SCORED, "score": "last_loss"}, {"method": "importance"})
