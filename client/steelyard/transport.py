"""Unary calls to one server: a channel made at the first of them, deadlines, and errors that explain."""

from __future__ import annotations

import threading
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from steelyard import forking
from steelyard.channel import errors_of, open_channel
from steelyard.errors import Unavailable
from steelyard.v1 import datasets_pb2_grpc, events_pb2_grpc, runs_pb2_grpc

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

Stubs = tuple[
    datasets_pb2_grpc.DatasetServiceStub, runs_pb2_grpc.RunServiceStub, events_pb2_grpc.EventServiceStub
]


class Transport:
    """The stubs of one server, opened when they are first asked for. Safe to use from many threads."""

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self.timeout = timeout
        self._lock = threading.Lock()
        self._closed = False
        self._channel: grpc.Channel | None = None
        self._stubs: Stubs | None = None

    @property
    def datasets(self) -> datasets_pb2_grpc.DatasetServiceStub:
        return self._open()[0]

    @property
    def runs(self) -> runs_pb2_grpc.RunServiceStub:
        return self._open()[1]

    @property
    def events(self) -> events_pb2_grpc.EventServiceStub:
        return self._open()[2]

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT, purpose: str
    ) -> ResponseT:
        """Makes one call. `purpose` says in words what was asked for; an error repeats it."""
        with errors_of(self.address, purpose, self.timeout):
            # A server that is being started, or started again, is waited for within the deadline.
            return method(request, timeout=self.timeout, wait_for_ready=True)

    def close(self) -> None:
        # A forked child closes nothing: the channel is its parent's, and the lock may be held for ever.
        if not forking.allowed():
            return
        with self._lock:
            self._closed = True
            channel, self._channel, self._stubs = self._channel, None, None
        if channel is not None:
            channel.close()

    def _open(self) -> Stubs:
        # Before the lock: a forked child may have inherited it held.
        forking.claim(f"a call to {self.address}")
        with self._lock:
            if self._closed:
                raise Unavailable(f"the client of {self.address} was closed")
            if self._stubs is None:
                self._channel = open_channel(self.address, f"a call to {self.address}")
                self._stubs = (
                    datasets_pb2_grpc.DatasetServiceStub(self._channel),
                    runs_pb2_grpc.RunServiceStub(self._channel),
                    events_pb2_grpc.EventServiceStub(self._channel),
                )
            return self._stubs
