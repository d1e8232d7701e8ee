"""Policies as they are written down: defaults, refusals that help, and the way back."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
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
    again = parse_policy(canonical["draw"], canonical["weigh"], canonical["mix"])
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
        "keep": 0.5,
        "refresh_steps": None,
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
            "; got 'shufle' (did you mean 'shuffle'?)",
        ),
        ({}, "; got None"),
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
    assert str(error.value).startswith(("weigh: ", "weigh.method: ", "weigh.where: "))


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        ("weigh", {"draw": {"method": "shuffle"}, "weigher": {"method": "mask_top", "signal": "x" * 65}}),
        ("draw", {"draw": {**SCORED, "score": "last_" + "x" * 65}, "weigher": {"method": "uniform"}}),
        ("mix", {"draw": {"method": "shuffle"}, "weigher": {}, "mix": {"method": "doremi", "excess": ""}}),
    ],
)
def test_a_signal_that_no_report_can_bring_is_refused(family: str, policy: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=f"^{family}: expected signals with names of 1..64 characters"):
        parse_policy(**policy)


@pytest.mark.parametrize("score", ["last_loss", "mean_loss", "ema_loss", "count_loss"])
def test_losses_are_not_drawn_by_and_weighed_by_at_once(score: str) -> None:
    with pytest.raises(PolicyError, match=f"the draw reads {score} and the weigher reads the losses again"):
        parse_policy({**SCORED, "score": score}, {"method": "linupper"})


@pytest.mark.parametrize("score", ["quality", "last_el2n"])
def test_another_quantity_may_be_drawn_by_where_the_losses_weigh(score: str) -> None:
    parse_policy({**SCORED, "score": score}, {"method": "linupper"})
    parse_policy({**SCORED, "score": "last_loss"}, {"method": "importance"})


# ---- mixes ----

STATIC = {"method": "static", "shares": [3, 1]}
BY_LOSS = {"method": "group_dro"}


def test_a_mix_is_part_of_the_canonical_form_and_none_is_the_default() -> None:
    assert parse_policy(SCORED, UNIFORM).canonical()["mix"] == {"method": "none"}
    assert parse_policy(SCORED, UNIFORM, {"method": "none"}) == parse_policy(SCORED, UNIFORM)
    policy = parse_policy({"method": "shuffle"}, UNIFORM, {**STATIC, "group": "domain"})
    canonical = policy.canonical()
    assert canonical["mix"] == {"method": "static", "group": "domain", "shares": [3.0, 1.0]}
    assert parse_policy(canonical["draw"], canonical["weigh"], canonical["mix"]) == policy
    assert not policy.draws_as(parse_policy({"method": "shuffle"}, UNIFORM))
    assert policy.draws_as(parse_policy({"method": "shuffle"}, {"method": "linupper"}, canonical["mix"]))


def test_what_a_mix_reads_is_what_the_policy_reads() -> None:
    draw = {"method": "scored", "score": "group"}
    mix = {"method": "rank_aggregate_quota", "rankings": ["quality", "group"], "k": 3}
    policy = parse_policy(draw, UNIFORM, mix)
    assert policy.static == ("group", "quality")
    assert policy.own == ("own:mix_kept",)
    assert not policy.reads_reports
    by_loss = parse_policy(SCORED, UNIFORM, BY_LOSS)
    assert by_loss.static == ("group",)
    assert by_loss.listens == ("loss",)
    assert parse_policy({"method": "shuffle"}, UNIFORM, BY_LOSS).reads_reports
    assert by_loss.objection("group", np.array([0, 0.5], np.float32)) is not None
    assert by_loss.objection("last_loss", np.array([0, 0.5], np.float32)) is None


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"method": "statik"}, "(did you mean 'static'?)"),
        ({"method": "nothing"}, "expected method to be ado, "),
        ({}, "none, "),
        ({"method": "none", "group": "g"}, "mix: method 'none' has no fields; got 'group'"),
        ({**STATIC, "share": 1}, "mix: method 'static' has no field 'share' (did you mean 'shares'?)"),
        ({**STATIC, "shares": [1, -1]}, "mix.shares.1: Input should be greater than or equal to 0; got -1"),
        ({**STATIC, "group": ""}, "mix.group: "),
    ],
)
def test_a_mix_that_cannot_be_used_is_refused_with_what_came_and_the_nearest_name(
    mix: dict[str, Any], message: str
) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy({"method": "shuffle"}, UNIFORM, mix)
    assert message in str(error.value)


def test_what_a_mix_moves_mass_by_does_not_weigh_again() -> None:
    for weigher in ({"method": "linupper"}, {"method": "quadratic"}):
        with pytest.raises(
            PolicyError, match="mix 'group_dro' gives groups their mass by 'loss' and weigher"
        ):
            parse_policy({"method": "shuffle"}, weigher, BY_LOSS)
        parse_policy({"method": "shuffle"}, weigher, {"method": "group_dro", "signal": "el2n"})
        parse_policy({"method": "shuffle"}, weigher, STATIC)
    # Within a group, losses are compared with each other alone.
    parse_policy(SCORED, {"method": "importance"}, BY_LOSS)
    parse_policy(SCORED, UNIFORM, BY_LOSS)


def test_a_mix_that_does_not_fit_the_groups_says_what_there_is() -> None:
    none = np.empty(0, np.int64)
    groups = np.array([0, 0, 2, np.nan], np.float32)
    policy = parse_policy({"method": "shuffle"}, UNIFORM, STATIC)
    misfit = policy.misfit(lambda name: groups, none, 2)
    assert misfit is not None
    assert "mix.shares: expected one number for each of the 3 groups that column 'group' has, got 2" in misfit
    assert policy.misfit(lambda name: np.minimum(groups, 1), none, 2) is None
    assert "none has one" in str(policy.misfit(lambda name: groups * np.nan, none, 2))
    assert "none has one" in str(policy.misfit(lambda name: groups, np.array([0, 1, 2]), 2))
    distinct = parse_policy(SCORED, UNIFORM, STATIC)
    misfit = distinct.misfit(lambda name: np.minimum(groups, 1), none, 4)
    assert "got 3 in the groups of column 'group'" in str(misfit)
    assert parse_policy(SCORED, UNIFORM).misfit(lambda name: groups, none, 9) is None


@pytest.mark.parametrize(
    ("mix", "field"),
    [
        ({"method": "static", "shares": [0, 0]}, "mix.shares"),
        ({"method": "ado", "prior": [0, 0]}, "mix.prior"),
        ({"method": "doremi", "initial": [0, 0]}, "mix.initial"),
        ({"method": "sheared_llama", "targets": [0, 0], "initial": [0, 0]}, "mix.initial"),
        ({"method": "skill_it", "initial": [0, 0]}, "mix.initial"),
        ({"method": "skill_it", "targets": [0, 0]}, "mix.targets"),
        ({"method": "domain_schedule", "stages": [{"start_step": 0, "mix": [0, 0]}]}, "mix.stages.0.mix"),
    ],
    ids=str,
)
def test_shares_that_are_all_zero_are_refused_with_their_field(mix: dict[str, Any], field: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy({"method": "shuffle"}, {"method": "uniform"}, mix)
    assert str(error.value) == f"{field}: expected a number above 0 among them; got [0, 0]"


@pytest.mark.parametrize(
    ("draw", "weigher", "said"),
    [
        ({"method": "shuffle"}, {"method": "kl_dro", "beta": -1}, "weigh: parameter of kl_dro: "),
        ({"method": "shuffle"}, {"method": "kl"}, "weigh.method: "),
        (
            {"method": "gumbel_top_k", "score": "q", "budget": 5},
            {"method": "uniform"},
            "draw: a budget needs",
        ),
    ],
    ids=str,
)
def test_a_message_names_its_place_once(draw: dict[str, Any], weigher: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(draw, weigher)
    assert str(error.value).startswith(said), error.value


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([[0, [1, 2]]], "mix.stages.0: expected an object with the fields of a stage; got [0, [1, 2]]"),
        ([{"start_step": 0, "mix": [1, -1]}], r"mix.stages.0.mix.1: .*greater than or equal to 0; got -1"),
        (
            [{"mix": [1]}],
            "mix.stages.0: expected a stage to have either start_step or start_fraction; got .*",
        ),
        ([], r"mix.stages: .*at least 1 item.*; got \[\]"),
    ],
    ids=str,
)
def test_what_is_wrong_in_a_stage_is_said_once(stages: Any, said: str) -> None:
    with pytest.raises(PolicyError) as error:
        parse_policy(
            {"method": "shuffle"}, {"method": "uniform"}, {"method": "domain_schedule", "stages": stages}
        )
    assert re.fullmatch(said.replace("[0, [1, 2]]", r"\[0, \[1, 2\]\]"), str(error.value)), error.value


@pytest.mark.parametrize(
    ("parts", "field", "may_be_derived"),
    [
        ({"draw": {"method": "scored", "score": "q"}}, "draw.score", True),
        ({"draw": {"method": "gumbel_top_k", "score": "q"}}, "draw.score", False),
        ({"draw": {"method": "color_filter", "prior": "q", "conditional": "r"}}, "draw.prior", False),
        ({"mix": {"method": "static", "group": "q"}}, "mix.group", False),
        ({"weigher": {"method": "rho_loss", "reference": "q"}}, "weigh.reference", False),
    ],
    ids=str,
)
def test_the_field_that_asks_for_a_column_is_known(
    parts: dict[str, Any], field: str, may_be_derived: bool
) -> None:
    policy = parse_policy(**{"draw": {"method": "shuffle"}, "weigher": {"method": "uniform"}, **parts})
    assert policy.field_of("q") == (field, may_be_derived)
