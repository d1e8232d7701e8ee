"""A check that a server makes beside its runs, and whose caller takes it back or has no more time: it ends, and leaves
no child, no reader of the data and no thread that listens, however long its child says nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import lmdb
import pytest

import steelyard
from steelyard.testing import ServerProcess
from steelyard.v1 import admin_pb2, admin_pb2_grpc

SECONDS = 10.0


def children(server: int) -> list[int]:
    """Those of a server that do its keeping."""
    found = []
    for listed in Path(f"/proc/{server}/task").glob("*/children"):
        for child in listed.read_text().split():
            try:
                if b"keeping.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
            except OSError:  # it has ended
                continue
    return found


def readers(data: lmdb.Environment) -> set[int]:
    """The processes that hold a moment of the data, by LMDB's table."""
    lines = [line.split() for line in data.readers().splitlines()]
    return {int(line[0]) for line in lines if len(line) == 3 and line[0].isdigit() and line[2] != "-"}


def pipes(server: int) -> int:
    """How many it has open: to its children. The threads that read what a child says end with theirs."""
    found = 0
    for descriptor in Path(f"/proc/{server}/fd").iterdir():
        with contextlib.suppress(OSError):  # it was that of a moment
            found += str(descriptor.readlink()).startswith("pipe:")
    return found


def halted(server: int, data: lmdb.Environment) -> int:
    """Stops the child of a check that is within its read transaction: it says nothing any more, as on a disk that does
    not answer. The child; 0 where it was faster."""
    deadline = time.monotonic() + SECONDS / 2
    while time.monotonic() < deadline:
        for child in readers(data) - {server}:
            os.kill(child, signal.SIGSTOP)
            if child in readers(data):
                return child
            os.kill(child, signal.SIGCONT)
        time.sleep(0.0005)
    return 0


@pytest.mark.parametrize("ended_by", ["its caller", "its deadline"])
def test_a_check_that_nobody_waits_for_any_more_ends_whatever_it_does(
    store_dir: Path, ended_by: str, eventually: Callable[..., Any]
) -> None:
    timeout = None if ended_by == "its caller" else SECONDS / 2
    with (
        ServerProcess(store_dir.parent, kernels="numpy") as server,
        lmdb.open(str(store_dir), readonly=True, create=False, max_readers=512) as data,
        grpc.insecure_channel(server.address) as channel,
    ):
        client = server.client()
        stub = admin_pb2_grpc.AdminServiceStub(channel)
        assert not client.admin.check(deep=True).damaged
        child = 0
        while not child:
            call = stub.Check(admin_pb2.CheckRequest(deep=True), timeout=timeout)
            child = halted(server.pid, data)
        with pytest.raises(steelyard.SteelyardError, match="a check is under way"):
            client.admin.check()
        if ended_by == "its caller":
            call.cancel()
        with pytest.raises(grpc.RpcError) as failed:
            list(call)
        assert failed.value.code().name == ("CANCELLED" if timeout is None else "DEADLINE_EXCEEDED")
        assert eventually(lambda: not children(server.pid))
        assert eventually(lambda: child not in readers(data))
        assert eventually(lambda: not pipes(server.pid))
        assert not client.admin.check(deep=True).damaged
