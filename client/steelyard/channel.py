"""Channels to the server: their options, and errors that say which server was asked for what."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from steelyard import forking, handshake
from steelyard.credentials import Credentials, Stamp
from steelyard.errors import (
    DeadlineExceeded,
    HandshakeFailed,
    InvalidArgument,
    SteelyardError,
    Unavailable,
    from_rpc_error,
)
from steelyard.handshake import channel_credentials

_LOG = logging.getLogger("steelyard")

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
    "steelyard.v1.ServerService": ["GetServer"],
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
                # CANCELLED is what gRPC's server says of a call that waited for it when too many did, or when it ended.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
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


_WHY_SECONDS = 1.0

Place = tuple[str, Credentials | None]
Secured = tuple[Stamp, grpc.ChannelCredentials | None]


class SharedChannels:
    """One connection to each server, by each credentials, for all who take it. Safe from any thread.

    Measured with 32 streams in each of two processes: 1.5 times the steps, for two thirds of the CPU, of a connection
    for each. A connection that broke is handed to nobody any more, so that nobody waits for its backoff; neither is
    one whose certificate files have changed since it was made, which those who have it keep until they are done.
    """

    def __init__(self, most: int | None = None) -> None:
        """`most` share a connection, the next one gets another. For streams, which last: a server lets no more than
        its max_concurrent_streams onto one, and the next would wait for one of them to end."""
        self._most = most
        self._lock = threading.Lock()
        self._current: dict[Place, tuple[grpc.Channel, Stamp]] = {}
        self._users: Counter[grpc.Channel] = Counter()
        self._good: dict[Place, Secured] = {}
        self._complained: Stamp | None = None

    def take(self, address: str, purpose: str, credentials: Credentials | None = None) -> grpc.Channel:
        """The channel to `address`, which is give_back's to close. FailedPrecondition where a fork has made gRPC
        unsafe; InvalidArgument where the files of the credentials are no good and never were."""
        forking.claim(purpose)  # before the lock, which a forked child may have inherited taken
        place: Place = (address, credentials)
        # Of before they are read: where files change meanwhile, the next one to take finds that out.
        stamp = () if credentials is None else credentials.stamp()
        with self._lock:
            stamp, secured = self._secured(place, stamp, purpose)
            channel, made_from = self._current.get(place, (None, ()))
            full = channel is not None and self._users[channel] == self._most
            if channel is None or made_from != stamp or full:
                channel = _opened(address, secured, credentials)
                self._current[place] = (channel, stamp)
            self._users[channel] += 1
            return channel

    def hold(self, channel: grpc.Channel) -> None:
        """One use more of a channel that is taken already."""
        with self._lock:
            self._users[channel] += 1

    def give_back(self, channel: grpc.Channel, *, broken: bool) -> None:
        """Ends one use of it; the last one closes it. `broken`: the next one to take gets a new channel."""
        with self._lock:
            if channel not in self._users:
                return  # closed with all of them
            self._users[channel] -= 1
            unused = not self._users[channel]
            if unused:
                del self._users[channel]
            if unused or broken:
                self._current = {at: one for at, one in self._current.items() if one[0] is not channel}
        if unused:
            channel.close()

    def close(self) -> None:
        """Closes all of them; calls under way end."""
        with self._lock:
            channels = list(self._users)
            self._users.clear()
            self._current = {}
        for channel in channels:
            channel.close()

    def _secured(self, place: Place, stamp: Stamp, purpose: str) -> Secured:
        """What a channel is to be made with now, and of which files. Files that are no good, such as a certificate that
        is replaced before its key, leave what was read before them in use."""
        known = self._good.get(place)
        if known is not None and known[0] == stamp:
            return known
        try:
            read = channel_credentials(place[1], place[0])
        except InvalidArgument as error:
            if known is None:
                raise
            if self._complained != stamp:
                self._complained = stamp
                _LOG.warning("%s: going on by the certificates of before: %s", purpose, error)
            return known
        self._good[place] = (stamp, read)
        return stamp, read


def _opened(
    address: str, secured: grpc.ChannelCredentials | None, credentials: Credentials | None
) -> grpc.Channel:
    """A new channel; it connects at the first call."""
    if secured is None:
        channel = grpc.insecure_channel(address, options=_OPTIONS)
    else:
        options = [*_OPTIONS]
        if credentials is not None and credentials.server_name is not None:
            options.append(("grpc.ssl_target_name_override", credentials.server_name))
        channel = grpc.secure_channel(address, secured, options=options)
    forking.keep(channel)
    return channel


def why_not(channel: grpc.Channel, address: str, credentials: Credentials | None) -> str | None:
    """Why there is no connection, of a channel on which a call was waiting for one; None where there is one."""
    check = channel.unary_unary("/grpc.health.v1.Health/Check", _as_it_is, _as_it_is)
    try:
        check(b"", timeout=_WHY_SECONDS)
    except grpc.RpcError as error:
        failure = from_rpc_error(error)
        if any(words in str(failure) for words in handshake.UNSENT):
            return str(told_in_words(failure, address, credentials))
    except ValueError:
        pass  # closed meanwhile
    return None


def _as_it_is(message: bytes) -> bytes:
    return message


@contextmanager
def errors_of(
    address: str, purpose: str, timeout: float, credentials: Credentials | None = None
) -> Iterator[None]:
    """Turns a failed call into the error that it stands for. `purpose` is what was asked for, in words."""
    try:
        yield
    except grpc.RpcError as error:
        # Chained, it would print the same words twice more.
        failure = told_in_words(from_rpc_error(error), address, credentials)
        raise explained(failure, address, purpose, timeout) from None
    except ValueError as error:
        # grpcio's answer to a call on a channel that was closed.
        if "closed channel" not in str(error).lower():
            raise
        raise Unavailable(f"{purpose}: the client of {address} was closed") from error


def told_in_words(error: SteelyardError, address: str, credentials: Credentials | None) -> SteelyardError:
    """The same, or HandshakeFailed where gRPC's words are those of a handshake that failed."""
    words = handshake.explained(str(error), credentials, address) if error.code == "UNAVAILABLE" else None
    return error if words is None else HandshakeFailed(words)


def explained(error: SteelyardError, address: str, purpose: str, timeout: float) -> SteelyardError:
    """The same error with the server and the purpose, where the server's own words cannot give them."""
    if isinstance(error, HandshakeFailed):
        text = f"{purpose}: {error}"
    elif isinstance(error, DeadlineExceeded):
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
    whole = type(error)(text, code=error.code)
    whole.retry_after, whole.answered = error.retry_after, error.answered
    return whole
