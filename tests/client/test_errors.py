"""The error tree: every class survives pickling, every status has its class."""

import pickle
from typing import Any

import grpc
import pytest

from steelyard import errors
from steelyard.errors import SteelyardError, from_code, from_rpc_error
from steelyard.v1 import runs_pb2, runs_pb2_grpc


def tree() -> list[type[SteelyardError]]:
    found = [SteelyardError]
    for one in found:
        found.extend(one.__subclasses__())
    return found


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("code", [None, "ABORTED"])
def test_every_error_survives_pickling(kind: type[SteelyardError], code: str | None) -> None:
    error = kind("expected 3 losses, got 2", code=code)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == str(error) == "expected 3 losses, got 2"
    assert copy.code == error.code == (code or kind.default_code)


def test_every_error_is_in_the_drawing_and_the_drawing_shows_no_other() -> None:
    drawing = (errors.__doc__ or "").split("Errors cross processes")[0].splitlines()
    drawn = [line.strip(" │├└─").split()[0] for line in drawing if line.startswith("    ")]
    assert sorted(drawn) == sorted(kind.__name__ for kind in tree())


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(errors.InvalidArgument, ValueError)
    assert issubclass(errors.MismatchedLosses, ValueError)
    assert issubclass(errors.NotFound, LookupError)
    assert issubclass(errors.DeadlineExceeded, TimeoutError)
    assert issubclass(errors.StalenessError, errors.FailedPrecondition)


@pytest.mark.parametrize("status", [one for one in grpc.StatusCode if one is not grpc.StatusCode.OK])
def test_every_status_of_grpc_has_an_error_of_its_name(status: grpc.StatusCode) -> None:
    error = from_code(status.value[0], "why")
    assert error.code == status.name
    assert str(error) == "why"


@pytest.mark.parametrize(
    "kind",
    [kind for kind in SteelyardError.__subclasses__() if kind.default_code],
    ids=lambda kind: kind.__name__,
)
def test_a_class_with_a_status_is_what_its_status_becomes(kind: type[SteelyardError]) -> None:
    status = grpc.StatusCode[kind.default_code or ""]
    assert type(from_code(status.value[0], "why")) is kind


def test_a_number_that_grpc_does_not_know_is_named() -> None:
    error = from_code(99, "why")
    assert type(error) is SteelyardError
    assert error.code == "status 99"


def test_a_failed_call_becomes_the_error_of_its_status() -> None:
    # Port 1 of the own machine: nothing listens there, so the call fails at once with a status of grpc's own making.
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError) as caught:
        runs_pb2_grpc.RunServiceStub(channel).GetRun(runs_pb2.GetRunRequest(), timeout=30)
    error = from_rpc_error(caught.value)
    assert type(error) is errors.Unavailable
    assert "127.0.0.1:1" in str(error)


def test_a_failure_without_status_or_words_still_has_a_message() -> None:
    assert str(from_rpc_error(grpc.RpcError("the channel is closed"))) == "the channel is closed"

    class Silent(grpc.RpcError):
        def code(self) -> Any:
            return grpc.StatusCode.ABORTED

        def details(self) -> Any:
            return ""

    error = from_rpc_error(Silent())
    assert type(error) is errors.Aborted
    assert "ABORTED" in str(error)
