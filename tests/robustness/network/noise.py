"""What comes to an open port that no client of ours would send. HTTP/2 frames are made by hand (RFC 9113, 7541)."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Callable, Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SECONDS = 20.0
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 8, 9
_END_STREAM, _END_HEADERS = 1, 4


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=_SECONDS)


def headers_of(path: str, more: tuple[tuple[str, str], ...] = ()) -> bytes:
    """A header block of literals without indexing: lengths below 127, no Huffman code."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields
    )


def is_closed(one: socket.socket, seconds: float = _SECONDS) -> bool:
    """Whether the other side ends the connection within that time, whatever it says before."""
    deadline = time.monotonic() + seconds
    with contextlib.suppress(OSError):
        while (left := deadline - time.monotonic()) > 0:
            one.settimeout(left)
            try:
                if not one.recv(1 << 16):
                    return True
            except TimeoutError:
                return False
        return False
    return True


def garbage(dice: random.Random) -> bytes:
    return dice.randbytes(dice.choice((1, 9, 24, 100, 4000)))


def http1(dice: random.Random) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def bad_preface(dice: random.Random) -> bytes:
    at = dice.randrange(len(PREFACE))
    return PREFACE[:at] + bytes([PREFACE[at] ^ (1 << dice.randrange(8))]) + PREFACE[at + 1 :]


def tls_hello(dice: random.Random) -> bytes:
    return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(508)


def header_flood(dice: random.Random) -> bytes:
    """A block of headers that never ends: 8 MiB of it."""
    block = headers_of("/steelyard.v1.RunService/ListRuns")
    more = frame(_CONTINUATION, 0, 1, (b"\0\x05flood" + bytes([100]) + b"x" * 100) * 150)
    return PREFACE + frame(_SETTINGS) + frame(_HEADERS, 0, 1, block) + more * 512


def rapid_reset(dice: random.Random) -> bytes:
    """Calls that are taken back at once, a thousand of them."""
    block = headers_of("/steelyard.v1.RunService/ListRuns")
    calls = b"".join(
        frame(_HEADERS, _END_HEADERS, stream, block) + frame(_RST, 0, stream, (8).to_bytes(4, "big"))
        for stream in range(1, 2001, 2)
    )
    return PREFACE + frame(_SETTINGS) + calls


def ping_flood(dice: random.Random) -> bytes:
    return PREFACE + frame(_SETTINGS) + frame(_PING, 0, 0, bytes(8)) * 5000


def settings_flood(dice: random.Random) -> bytes:
    return PREFACE + frame(_SETTINGS, 0, 0, b"\x00\x04\x00\x00\x00\x01") * 5000


def random_frames(dice: random.Random) -> bytes:
    """A hundred frames of any kind, flags, stream and content; calls among them, so that some belong to one."""
    block = headers_of(
        dice.choice(("/steelyard.v1.RunService/ListRuns", "/steelyard.v1.TrainerService/Train", "/", ""))
    )
    frames = [PREFACE, frame(_SETTINGS)]
    for number in range(100):
        roll = dice.random()
        stream = dice.choice((0, 1, 3, 5, 2 * number + 1, 2, (1 << 31) - 1))
        if roll < 0.25:
            frames.append(frame(_HEADERS, dice.choice((4, 5, 0, 0x2C)), 2 * number + 1, block))
        elif roll < 0.4:
            size = dice.randrange(64)
            message = bytes([dice.randrange(3)]) + dice.choice((size, 0, 1 << 31)).to_bytes(4, "big")
            frames.append(frame(_DATA, dice.choice((0, 1, 8)), stream, message + dice.randbytes(size)))
        elif roll < 0.5:
            frames.append(frame(_WINDOW, 0, stream, dice.choice((0, 1, (1 << 31) - 1)).to_bytes(4, "big")))
        else:
            payload = dice.randbytes(dice.choice((0, 1, 4, 5, 6, 8, 40)))
            frames.append(frame(dice.randrange(12), dice.randrange(256), stream, payload))
    return b"".join(frames)


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    one.__name__: one
    for one in (
        garbage,
        http1,
        bad_preface,
        tls_hello,
        header_flood,
        rapid_reset,
        ping_flood,
        settings_flood,
        random_frames,
    )
}


def make(address: str, kind: str, dice: random.Random) -> socket.socket:
    """A connection on which that was sent, as far as the server took it. The caller closes it."""
    one = connect(address)
    with contextlib.suppress(OSError):
        one.sendall(KINDS[kind](dice))
    return one


@contextlib.contextmanager
def idle(address: str, count: int) -> Iterator[list[socket.socket]]:
    """So many connections that say nothing."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(connect(address))) for _ in range(count)]


def drip(connections: list[socket.socket], what: bytes, seconds: float) -> None:
    """Sends `what` a byte a second on each of the connections, for so long."""
    deadline = time.monotonic() + seconds
    for byte in what:
        for one in connections:
            with contextlib.suppress(OSError):
                one.send(bytes([byte]))
        if time.monotonic() > deadline:
            return
        time.sleep(1.0)
