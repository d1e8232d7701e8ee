"""Errors of calls say which server was asked for what."""

import json

import pytest

from steelyard import errors
from steelyard.channel import _OPTIONS, SharedChannels, explained
from steelyard.v1 import datasets_pb2, events_pb2, runs_pb2, server_pb2


@pytest.mark.parametrize("kind", [errors.Unavailable, errors.Internal, errors.ResourceExhausted])
def test_what_the_server_cannot_explain_gets_its_address_and_the_purpose(kind):
    error = explained(kind("connection refused"), "a:1", "asking for run 'r'", 3)
    assert type(error) is kind
    assert str(error) == f"asking for run 'r': a:1 answered {error.code}: connection refused"


def test_a_deadline_says_how_long_was_waited():
    error = explained(errors.DeadlineExceeded("late"), "a:1", "asking for run 'r'", 3)
    assert str(error).startswith("asking for run 'r': no answer from a:1 within 3 s;")
    assert isinstance(error, TimeoutError)


@pytest.mark.parametrize(
    "kind", [errors.InvalidArgument, errors.NotFound, errors.AlreadyExists, errors.Aborted]
)
def test_what_the_server_explains_is_left_as_it_is(kind):
    error = kind("the server's words")
    assert explained(error, "a:1", "asking", 3) is error


def test_only_methods_that_exist_and_may_be_repeated_are_retried():
    config = json.loads(str(dict(_OPTIONS)["grpc.service_config"]))
    (rule,) = config["methodConfig"]
    services = {
        one.full_name: one
        for module in (datasets_pb2, events_pb2, runs_pb2, server_pb2)
        for one in module.DESCRIPTOR.services_by_name.values()
    }
    retried = {(one["service"], one["method"]) for one in rule["name"]}
    for service, method in retried:
        assert method in services[service].methods_by_name
    everything = {(name, method) for name, one in services.items() for method in one.methods_by_name}
    assert {method for _, method in everything - retried} == {
        *("CreateDataset", "DeleteDataset", "CreateRun", "DeleteRun", "Observe", "Fork")
    }
    assert rule["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]


@pytest.fixture
def channels():
    return SharedChannels()


def test_who_asks_for_the_same_server_shares_its_channel_and_the_last_one_closes_it(channels):
    one, two, other = (channels.take(address, "joining") for address in ("a:1", "a:1", "b:1"))
    assert one is two
    assert one is not other
    channels.give_back(one, broken=False)
    assert channels.take("a:1", "joining") is two
    channels.give_back(two, broken=False)
    channels.give_back(two, broken=False)
    assert channels.take("a:1", "joining") is not two
    with pytest.raises(ValueError, match="closed channel"):
        two.unary_unary("/x/y")(b"")


def test_a_channel_that_broke_is_handed_to_nobody_and_stays_with_those_who_have_it(channels):
    one, two = channels.take("a:1", "joining"), channels.take("a:1", "joining")
    channels.give_back(one, broken=True)
    new = channels.take("a:1", "joining")
    assert new is not two
    channels.give_back(two, broken=True)
    with pytest.raises(ValueError, match="closed channel"):
        two.unary_unary("/x/y")(b"")
    assert channels.take("a:1", "joining") is new
