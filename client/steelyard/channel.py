"""Channels to the server: their options, and errors that say which server was asked for what."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from steelyard import forking
from steelyard.errors import DeadlineExceeded, InvalidArgument, SteelyardError, Unavailable, from_rpc_error

MAX_MESSAGE_BYTES = 64 << 20

# Calls that give the same result when they are repeated; the protos say so of each. Creations are repeatable only with
# exist_ok, and a repeated observation would count twice.
_REPEATABLE = {
    "steelyard.v1.DatasetService": [
        "GetDataset",
        "ListDatasets",
        "AppendExamples",
        "RetireIds",
        "SetColumn",
    ],
    "steelyard.v1.RunService": [
        "GetRun",
        "ListRuns",
        "ChangePolicy",
        "GetStats",
        "GetHistory",
        "GetColumn",
        "CloseStep",
        "CreateBookmark",
        "DeleteBookmark",
        "Rewind",
        "GetBatch",
        "GetRetention",
    ],
    # Until its first message has come; a stream that breaks later is the reader's to ask for again.
    "steelyard.v1.EventService": ["StreamEvents"],
}

_RETRIES = {
    "methodConfig": [
        {
            "name": [
                {"service": service, "method": method}
                for service, methods in _REPEATABLE.items()
                for method in methods
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

_OPTIONS = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A dead peer is noticed within 40 s, also where the network swallows packets.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Measured: the unanswered keepalive ping counts against this, one minute by default.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Each channel has connections of its own: none shares its fate with another channel's backoff.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", json.dumps(_RETRIES)),
]


def check_address(address: str) -> str:
    """InvalidArgument where this is no HOST:PORT and no unix:PATH."""
    if not isinstance(address, str):
        raise InvalidArgument(f"address: expected HOST:PORT or unix:PATH, got {address!r}")
    if address.startswith("unix:") and len(address) > len("unix:"):
        return address
    host, colon, port = address.rpartition(":")
    if "/" in host or not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise InvalidArgument(
            f"address: expected HOST:PORT with a port from 1 to 65535, or unix:PATH; got {address!r}"
        )
    return address


def open_channel(address: str, purpose: str) -> grpc.Channel:
    """A new channel; it connects at the first call. FailedPrecondition where a fork has made gRPC unsafe."""
    forking.claim(purpose)
    channel = grpc.insecure_channel(address, options=_OPTIONS)
    forking.keep(channel)
    return channel


class SharedChannels:
    """One connection to each server for all the sessions of this process. Safe from any thread.

    Measured with 32 streams in each of two processes: 1.5 times the steps, for two thirds of the CPU, of a connection
    for each. A connection that broke is handed to nobody any more, so that nobody waits for its backoff.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: dict[str, grpc.Channel] = {}
        self._users: Counter[grpc.Channel] = Counter()

    def take(self, address: str, purpose: str) -> grpc.Channel:
        """The channel to `address`, which is give_back's to close. Errors are those of open_channel."""
        forking.claim(purpose)  # before the lock, which a forked child may have inherited taken
        with self._lock:
            channel = self._current.get(address)
            if channel is None:
                channel = self._current[address] = open_channel(address, purpose)
            self._users[channel] += 1
            return channel

    def give_back(self, channel: grpc.Channel, *, broken: bool) -> None:
        """Ends one use of it; the last one closes it. `broken`: the next one to take gets a new channel."""
        with self._lock:
            self._users[channel] -= 1
            unused = not self._users[channel]
            if unused:
                del self._users[channel]
            if unused or broken:
                self._current = {at: one for at, one in self._current.items() if one is not channel}
        if unused:
            channel.close()


@contextmanager
def errors_of(address: str, purpose: str, timeout: float) -> Iterator[None]:
    """Turns a failed call into the error that it stands for. `purpose` is what was asked for, in words."""
    try:
        yield
    except grpc.RpcError as error:
        # Chained, it would print the same words twice more.
        raise explained(from_rpc_error(error), address, purpose, timeout) from None
    except ValueError as error:
        # grpcio's answer to a call on a channel that was closed.
        if "closed channel" not in str(error).lower():
            raise
        raise Unavailable(f"{purpose}: the client of {address} was closed") from error


def explained(error: SteelyardError, address: str, purpose: str, timeout: float) -> SteelyardError:
    """The same error with the server and the purpose, where the server's own words cannot give them."""
    if isinstance(error, DeadlineExceeded):
        text = (
            f"{purpose}: no answer from {address} within {timeout:g} s; the server is not there, cannot be reached or "
            f"is overloaded ({error})"
        )
    elif error.code in (
        "UNAVAILABLE",
        "INTERNAL",
        "UNKNOWN",
        "CANCELLED",
        "RESOURCE_EXHAUSTED",
        "UNIMPLEMENTED",
    ):
        text = f"{purpose}: {address} answered {error.code}: {error}"
    else:
        return error
    return type(error)(text, code=error.code)
