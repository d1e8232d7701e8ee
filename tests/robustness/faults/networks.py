"""The network between a trainer and its server: breaks, swallows, loses, crawls, or ends without a word."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import steelyard
from tests.robustness.faults.registry import Bench, Broken, CannotBeTried, Round, fault
from tests.robustness.faults.scene import Load, Scene
from tests.robustness.network import namespace, noise
from tests.robustness.network.bare import Stream
from tests.robustness.network.process import descriptors, private_bytes
from tests.robustness.network.proxy import Proxy

KEEPALIVE_SECONDS = 15.0
_PORT = 7077
MIB = 1 << 20


class Proxied(Scene):
    """The trainer reaches the server through a proxy of ours; the owner's calls go directly."""

    def trained(self) -> Load:
        self.proxy = Proxy(self.server.address).__enter__()
        return Load(self.proxy.address, "r", self.bench.folder)

    def end(self) -> None:
        super().end()
        if hasattr(self, "proxy"):
            self.proxy.__exit__()


class Away(Scene):
    """The server is in a network of its own."""

    def begin(self) -> None:
        why = namespace.why_not()
        if why is not None:
            raise CannotBeTried(why)
        self.net = namespace.Namespace().__enter__()
        self.server.address = f"{self.net.host}:{_PORT}"
        self.server.settings |= {"listen": self.server.address}
        self.server.before = self.net.prefix
        self.server.environment = {"STEELYARD_INSECURE": "true"}
        super().begin()

    def end(self) -> None:
        super().end()
        if hasattr(self, "net"):
            self.net.__exit__()


def descriptors_left(scene: Scene, base: int, seconds: float = 60.0) -> int:
    """Of the server, beyond `base`, once that is none or the time is over. Broken: some are."""
    deadline = time.monotonic() + seconds
    while (left := descriptors(scene.server.pid) - base) > 0:
        if time.monotonic() > deadline:
            raise Broken(f"{left} file descriptors of the server were not given back within {seconds:g} s")
        time.sleep(0.1)
    return left


def _broken(bench: Bench, break_: Callable[[Proxied], None]) -> Iterator[Round]:
    """Rounds in each of which the trainer's connection is broken so."""
    with Proxied(bench) as scene:
        base = descriptors(scene.server.pid)
        while True:
            rate = scene.load()
            break_(scene)
            began = time.monotonic()
            served = scene.await_batch(began).at - began
            scene.settle()
            descriptors_left(scene, base)
            yield Round(rate, {"trains again, s": served})


@fault(
    "connection reset",
    how="RST to both ends at a random moment, by a proxy",
    bar="every loss counts once, same batches, descriptors back",
    rounds=200,
    suite=False,
)
def reset(bench: Bench) -> Iterator[Round]:
    def break_(scene: Proxied) -> None:
        time.sleep(bench.moments.uniform(0, 0.3))
        scene.proxy.reset()

    yield from _broken(bench, break_)


@fault(
    "connection cut within a frame",
    how="RST behind a random byte of what is on its way, by a proxy",
    bar="every loss counts once, same batches, descriptors back",
    rounds=200,
    suite=False,
)
def cut(bench: Bench) -> Iterator[Round]:
    def break_(scene: Proxied) -> None:
        cuts, deadline = scene.proxy.cuts, time.monotonic() + 30
        scene.proxy.cut_after(bench.moments.randrange(1, 60_000))
        while scene.proxy.cuts == cuts:
            if time.monotonic() > deadline:
                raise Broken("nothing was cut: too little went over the connection")
            time.sleep(0.01)

    yield from _broken(bench, break_)


@fault(
    "black hole",
    how="every packet dropped for 60 s, in a network namespace",
    bar="calls end at their deadline; trains again within 10 s of its end; descriptors back; every loss counts once",
    rounds=10,
    suite=False,
)
def hole(bench: Bench) -> Iterator[Round]:
    with Away(bench) as scene:
        base = descriptors(scene.server.pid)
        while True:
            rate = scene.load()
            with scene.net.dropping(), steelyard.connect(scene.server.address, timeout=2) as other:
                began = time.monotonic()
                try:
                    other.run("r")
                except steelyard.DeadlineExceeded:
                    took = time.monotonic() - began
                else:
                    raise Broken("a call was answered through a network that drops everything")
                time.sleep(max(0.0, (3.0 if bench.short else 60.0) - took))
            healed = time.monotonic()
            served = scene.await_batch(healed).at - healed
            if served > 10:
                raise Broken(
                    f"expected a batch within 10 s of the end of the black hole; it took {served:.1f} s"
                )
            scene.settle()
            descriptors_left(scene, base, 90)
            yield Round(rate, {"call of 2 s ended, s": took, "trains again, s": served})


@fault(
    "packets refused",
    how="RST for every packet to the port for 1 s, by the kernel in a network namespace",
    bar="every loss counts once, same batches, descriptors back",
    rounds=50,
    suite=False,
)
def refused(bench: Bench) -> Iterator[Round]:
    with Away(bench) as scene:
        base = descriptors(scene.server.pid)
        while True:
            rate = scene.load()
            with scene.net.refusing(_PORT):
                time.sleep(1.0)
            healed = time.monotonic()
            served = scene.await_batch(healed).at - healed
            scene.settle()
            descriptors_left(scene, base)
            yield Round(rate, {"trains again, s": served})


def _slowly(scene: Away, seconds: float) -> float:
    """Batches a second while the network is bad."""
    scene.await_batch()
    first, began = len(scene.trainer.told), time.monotonic()
    time.sleep(seconds)
    scene.trainer.new()
    return (len(scene.trainer.told) - first) / (time.monotonic() - began)


@fault(
    "packets lost",
    how="5 % of the packets each way dropped for 10 s, in a network namespace",
    bar="slower, same batches, every loss counts once",
    rounds=10,
    suite=False,
)
def lossy(bench: Bench) -> Iterator[Round]:
    with Away(bench) as scene:
        while True:
            rate = scene.load()
            with scene.net.dropping(share=0.05):
                slowed = _slowly(scene, 1.0 if bench.short else 10.0)
                scene.settle()
            yield Round(rate, {"batches a second meanwhile": slowed})


@fault(
    "narrow link",
    how="1 Mbit a second from the server for 10 s, by a token bucket in a network namespace",
    bar="slower, same batches, every loss counts once",
    rounds=10,
    suite=False,
)
def narrow(bench: Bench) -> Iterator[Round]:
    with Away(bench) as scene:
        while True:
            rate = scene.load()
            scene.net.rate("1mbit")
            try:
                slowed = _slowly(scene, 1.0 if bench.short else 10.0)
                scene.settle()
            finally:
                scene.net.full_rate()
            yield Round(rate, {"batches a second meanwhile": slowed})


@fault(
    "machine of the trainer gone",
    how="the server's end of the connection stays open with nobody behind it, by a proxy",
    bar="the rank is free for a new process within two keepalives (30 s); descriptors back",
    rounds=10,
    suite=False,
)
def gone(bench: Bench) -> Iterator[Round]:
    with Proxied(bench) as scene:
        base = descriptors(scene.server.pid)
        run = scene.client.create_run("lost", dataset="d", batch_size=64)
        while True:
            rate = scene.load()
            token = f"{bench.moments.random()}"
            with Proxy(scene.server.address) as other:
                with Stream(other.address) as lost:
                    lost.join("lost", attempt=token)
                    lost.expect("joined")
                    lost.expect("batch")
                    other.orphan()
                    began = time.monotonic()
                with run.join(attempt=token, timeout=60) as session:
                    session.next(timeout=60)
                    took = time.monotonic() - began
            if took > 2 * KEEPALIVE_SECONDS:
                raise Broken(
                    f"expected the rank to be free within {2 * KEEPALIVE_SECONDS:g} s; it took {took:.1f} s"
                )
            scene.settle()
            descriptors_left(scene, base)
            yield Round(rate, {"rank free after, s": took})


def _slowest(scene: Scene, first: int) -> float:
    """The 99th percentile of the times between two batches from that one on, in milliseconds."""
    scene.trainer.new()
    at = [one.at for one in scene.trainer.told[first:]]
    gaps = sorted(1000 * (later - sooner) for sooner, later in itertools.pairwise(at))
    return gaps[int(0.99 * (len(gaps) - 1))] if gaps else 0.0


@fault(
    "noise on the port",
    how="garbage, HTTP/1, bad prefaces, TLS, endless headers, rapid resets, floods of pings and settings, random "
    "frames",
    bar="the training goes on, descriptors back, and memory: at most 192 MiB more after 30 s, however often",
    rounds=30,
    suite=False,
)
def noisy(bench: Bench) -> Iterator[Round]:
    with Scene(bench, handshake_timeout_seconds=2) as scene:
        base, memory = descriptors(scene.server.pid), 0
        while True:
            rate = scene.load()
            calm = _slowest(scene, -200)
            memory = memory or private_bytes(scene.server.pid)
            dice, worst = random.Random(bench.moments.random()), dict[str, float]()
            for kind in noise.KINDS:
                mine = len(scene.trainer.told)
                for _ in range(2 if bench.short else 10):
                    noise.make(scene.server.address, kind, dice).close()
                # What was read is dealt with by then.
                time.sleep(0.1 if bench.short else 1.0)
                scene.await_batch()
                worst[kind] = _slowest(scene, mine)
            scene.settle()
            descriptors_left(scene, base)
            grown = _memory_left(scene, memory, 192 * MIB) / MIB
            yield Round(
                rate,
                {
                    "p99 before, ms": calm,
                    "p99 of headers without an end, ms": worst.pop("header_flood"),
                    "p99 of calls taken back, ms": worst.pop("rapid_reset"),
                    "p99 of the worst of the others, ms": max(worst.values()),
                    "memory, MiB": grown,
                },
            )


def _memory_left(scene: Scene, base: int, most: int, seconds: float = 30.0) -> int:
    """What the server holds beyond `base`, once that is at most so much or the time is over. Broken: it is more."""
    deadline = time.monotonic() + seconds
    while (left := private_bytes(scene.server.pid) - base) > most:
        if time.monotonic() > deadline:
            raise Broken(f"the server holds {left / MIB:.0f} MiB more than before the noise")
        time.sleep(0.2)
    return left


@fault(
    "idle connections",
    how="8000 connections that say nothing",
    bar="the training goes on; all closed by the handshake timeout of 3 s; descriptors back",
    rounds=20,
    suite=False,
)
def idle(bench: Bench) -> Iterator[Round]:
    with Scene(bench, handshake_timeout_seconds=3) as scene:
        base = descriptors(scene.server.pid)
        while True:
            rate = scene.load()
            calm, first, began = _slowest(scene, -200), len(scene.trainer.told), time.monotonic()
            with noise.idle(scene.server.address, 200 if bench.short else 8000) as connections:
                opened = time.monotonic() - began
                if not all(noise.is_closed(one, 60) for one in connections):
                    raise Broken("a connection that said nothing was not closed within 60 s")
                closed = time.monotonic() - began
            slowest = _slowest(scene, first)
            scene.settle()
            descriptors_left(scene, base)
            figures: dict[str, Any] = {"open after, s": opened, "closed after, s": closed}
            yield Round(rate, {**figures, "p99 before, ms": calm, "p99 meanwhile, ms": slowest})


@fault(
    "a byte a second",
    how="200 connections that send the preface a byte a second",
    bar="the training goes on; all closed by the handshake timeout of 3 s; descriptors back",
    rounds=20,
    suite=False,
)
def slowloris(bench: Bench) -> Iterator[Round]:
    with Scene(bench, handshake_timeout_seconds=3) as scene:
        base = descriptors(scene.server.pid)
        while True:
            rate = scene.load()
            calm, first = _slowest(scene, -200), len(scene.trainer.told)
            with noise.idle(scene.server.address, 20 if bench.short else 200) as connections:
                noise.drip(connections, noise.PREFACE, 5)
                if not all(noise.is_closed(one, 5) for one in connections):
                    raise Broken("a connection of a byte a second was not closed within 10 s")
            slowest = _slowest(scene, first)
            scene.settle()
            descriptors_left(scene, base)
            yield Round(rate, {"p99 before, ms": calm, "p99 meanwhile, ms": slowest})
