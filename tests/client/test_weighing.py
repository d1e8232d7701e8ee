"""Which rule is in force at which step."""

import pytest

from steelyard import weigh
from steelyard.errors import InvalidArgument
from steelyard.v1 import trainer_pb2
from steelyard.weighing import Rules

LINUPPER = {"method": "linupper", "r": 0.4}


def test_a_rule_holds_from_its_step_on():
    rules = Rules({"method": "uniform"}, 0, 3)
    rules.change(LINUPPER, 0, 10)
    rules.change({"method": "quadratic", "where": "server"}, 0, 12)
    assert [rules.at(step).method for step in (3, 9, 10, 11, 12, 99)] == [
        "uniform",
        "uniform",
        "linupper",
        "linupper",
        "quadratic",
        "quadratic",
    ]
    assert rules.rule(10) == weigh.parse(LINUPPER)


def test_a_change_at_the_same_step_replaces():
    rules = Rules({"method": "uniform"}, 0, 3)
    rules.change(LINUPPER, 0, 3)
    assert rules.at(3).method == "linupper"


def test_where_the_weights_are_made_is_the_policys_word_or_follows_from_the_world_size():
    assert Rules(LINUPPER, 0, 0).where(0, 1) == "client"
    assert Rules(LINUPPER, 0, 0).where(0, 2) == "server"
    assert Rules({**LINUPPER, "where": "client"}, 0, 0).where(0, 2) == "client"
    assert Rules({**LINUPPER, "where": "server"}, 0, 0).where(0, 1) == "server"
    assert Rules(LINUPPER, 0, 0).is_free(0)
    assert not Rules({**LINUPPER, "where": "server"}, 0, 0).is_free(0)


def test_what_only_the_server_can_weigh_by_is_weighed_there_even_for_one_process():
    rules = Rules({"method": "rho_loss"}, 0, 0)
    assert rules.where(0, 1) == "server"
    assert not rules.is_free(0), "a micro-batch too"
    with pytest.raises(
        InvalidArgument, match='"server" or "auto" for rho_loss, because it reads \'reference\''
    ):
        Rules({"method": "rho_loss", "where": "client"}, 0, 0)


def test_a_rule_of_a_newer_server_is_named():
    with pytest.raises(InvalidArgument, match=r"weighs by \{'method': 'newest'\}, which this version"):
        Rules({"method": "newest"}, 0, 0)


def test_a_rule_that_only_the_server_knows_is_left_to_it():
    newest = {"method": "newest", "k": 3}
    rules = Rules(newest, trainer_pb2.WEIGHING_DRAW, 0)
    rules.change({**newest, "k": 4}, trainer_pb2.WEIGHING_LOSSES, 5)
    rules.change({**newest, "k": 5}, trainer_pb2.WEIGHING_IN_ORDER, 9)
    assert [rules.read_losses(step) for step in (0, 5, 9)] == [False, True, True]
    assert [rules.where(step, 1) for step in (5, 9)] == ["server", "server"]
    assert rules.at(9).source == "in order"
    assert rules.at(9).method == "newest"
    with pytest.raises(
        InvalidArgument, match=r"step 9: the run weighs by \{'method': 'newest', 'k': 5\}, which"
    ):
        rules.rule(9)


def test_a_rule_that_the_trainer_has_to_weigh_by_must_be_known_to_it():
    with pytest.raises(InvalidArgument, match="which this version of the client cannot"):
        Rules({"method": "newest", "where": "client"}, trainer_pb2.WEIGHING_LOSSES, 0)
