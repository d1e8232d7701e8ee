"""What a server says of runs, also one of another version."""

from __future__ import annotations

import pytest
from google.protobuf import struct_pb2

from steelyard.errors import FailedPrecondition
from steelyard.info import check_mix
from steelyard.v1 import runs_pb2


def run_with(**parts: object) -> runs_pb2.Run:
    policy = runs_pb2.Policy(**{name: struct_pb2.Struct() for name in parts})
    return runs_pb2.Run(spec=runs_pb2.RunSpec(policy=policy))


def test_a_mix_that_an_older_server_passed_over_is_told() -> None:
    with pytest.raises(
        FailedPrecondition, match=r"making r: expected the mix .*temperature.* without groups"
    ):
        check_mix({"method": "temperature"}, run_with(draw=1, weigh=1), "making r")


def test_nobody_is_told_of_a_mix_that_was_taken_or_not_asked_for() -> None:
    check_mix({"method": "temperature"}, run_with(draw=1, mix=1), "making r")
    check_mix({"method": "none"}, run_with(draw=1), "making r")
    check_mix(None, run_with(draw=1), "making r")
