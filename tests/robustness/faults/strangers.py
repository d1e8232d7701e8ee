"""Callers whom the server does not know, or who may not do what they ask for, beside a training that goes on."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import trustme

import steelyard
from steelyard.v1 import runs_pb2, trainer_pb2
from tests.robustness.faults.credentials import Papers, Secured, replace
from tests.robustness.faults.crowd import Crowd
from tests.robustness.faults.daemon import free_port
from tests.robustness.faults.networks import descriptors_left
from tests.robustness.faults.registry import Bench, Broken, Round, fault
from tests.robustness.faults.scene import Load, Scene
from tests.robustness.network import noise
from tests.robustness.network.process import descriptors
from tests.security.issuer import AUDIENCE, Issuer

LIFE_SECONDS = 5
"""Of a token of the trainer, where these end."""
ACCESS = """
[[principals]]
name = "owner"
jwt = [{ subject = "owner" }]
grants = [{ verbs = ["draw", "report", "read", "admin"], runs = ["*"], datasets = ["*"] }]

[[principals]]
name = "trainer"
jwt = [{ subject = "trainer" }]
grants = [{ verbs = ["draw", "report", "read"], runs = ["r"] }]

[[principals]]
name = "reader"
jwt = [{ subject = "reader" }]
grants = [{ verbs = ["read"], runs = ["r"] }]

[[principals]]
name = "neighbour"
jwt = [{ subject = "neighbour" }]
grants = [{ verbs = ["draw", "report", "read", "admin"], runs = ["other-*"], datasets = ["other-*"] }]
"""


_ALLOWED = {("reader", "RunService/GetRun"), ("reader", "RunService/GetColumn")}


class Known(Scene):
    """A server over TLS that knows its callers by their tokens. The trainer's is in a file, which is replaced."""

    def __init__(self, bench: Bench) -> None:
        self.papers, self.issuer = Papers(bench.folder / "papers"), Issuer()
        folder = bench.folder / "tokens"
        folder.mkdir()
        (folder / "access.toml").write_text(ACCESS)
        (folder / "keys.pem").write_bytes(self.issuer.public_pem)
        self._token = folder / "trainer"
        self.give(600)
        super().__init__(
            bench,
            **self.papers.of_server,
            http=f"127.0.0.1:{free_port()}",
            access=folder / "access.toml",
            jwt_keys=folder / "keys.pem",
            jwt_audience=AUDIENCE,
            jwt_leeway_seconds=0,
        )

    def give(self, seconds: int) -> float:
        """A new token for the trainer that lives so long, and when it ends (seconds of time.monotonic)."""
        end = int(time.time()) + seconds
        replace(self._token, self.issuer.token(sub="trainer", exp=end).encode())
        return time.monotonic() + end - time.time()

    def owner(self) -> steelyard.Credentials:
        return steelyard.Credentials(
            ca=self.papers.ca, token=self.issuer.token(sub="owner", exp=int(time.time()) + 3500)
        )

    def trained(self) -> Load:
        known = {"STEELYARD_CA": str(self.papers.ca), "STEELYARD_TOKEN_FILE": str(self._token)}
        return Load(self.server.address, "r", self.bench.folder, known)


# ---- tokens that are none, or of others ----


def _unknown(issuer: Issuer) -> dict[str, str | None]:
    """By what is wrong with it: a token that shows nothing."""
    now, whole = int(time.time()), issuer.token()
    return {
        "no token": None,
        "expired": issuer.token(iat=now - 600, exp=now - 1),
        "of another audience": issuer.token(aud="another"),
        "of another key": Issuer().token(),
        "signed with the public key": issuer.token("HS256", key=b"x" * 32),
        "of a principal that is in no row": issuer.token(sub="nobody"),
        "cut short": whole[:-9],
        "random": "x" * 43,
    }


def _asked(run: str) -> dict[str, bytes]:
    """By method: what a stranger asks for."""
    join = trainer_pb2.Join(run=run, world_size=1, attempt="stranger", session="s", credit=1)
    messages = {
        "RunService/GetRun": runs_pb2.GetRunRequest(name=run),
        "RunService/GetColumn": runs_pb2.GetColumnRequest(name=run, column="last_loss"),
        "RunService/Observe": runs_pb2.ObserveRequest(name=run),
        "RunService/DeleteRun": runs_pb2.DeleteRunRequest(name=run),
        "TrainerService/Train": trainer_pb2.TrainRequest(messages=[trainer_pb2.TrainerMessage(join=join)]),
    }
    return {method: message.SerializeToString() for method, message in messages.items()}


class Stranger:
    """One caller over TLS, with a token or without. What came back is checked as it comes."""

    def __init__(self, scene: Known, token: str | None) -> None:
        credentials = grpc.ssl_channel_credentials(scene.papers.ca.read_bytes())
        self._channel = grpc.secure_channel(
            scene.server.address, credentials, [("grpc.use_local_subchannel_pool", 1)]
        )
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def ask(self, method: str, request: bytes) -> tuple[str, str]:
        """The status and its text."""
        path = f"/steelyard.v1.{method}"
        try:
            if method.endswith("/Train"):
                call: Any = self._channel.stream_stream(path)
                next(call(iter([request]), metadata=self._metadata, timeout=60))
            else:
                call = self._channel.unary_unary(path)
                call(request, metadata=self._metadata, timeout=60)
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""  # type: ignore[attr-defined]
        return "OK", ""

    def close(self) -> None:
        self._channel.close()


def _all_refused(strangers: dict[str, tuple[Stranger, str]], said: Counter[str]) -> None:
    """Each asks for everything once. Broken where one is answered otherwise than it should be, or told more."""
    for who, (stranger, expected) in strangers.items():
        mine, missing = _asked("r"), _asked("missing")
        for method in mine:
            if (who, method) in _ALLOWED:
                continue
            came, text = stranger.ask(method, mine[method])
            none, none_text = stranger.ask(method, missing[method])
            unknown = "NOT_FOUND" if expected == "PERMISSION_DENIED" else expected
            if (came, none) != (expected, unknown):
                raise Broken(
                    f"{who}, {method}: expected {expected} of a run and {unknown} of none, got {came} ({text}) and "
                    f"{none} ({none_text})"
                )
            if came == none and text.replace("'r'", "'missing'") != none_text:
                raise Broken(
                    f"{who}, {method}: a run that is there is told from none: {text!r}, {none_text!r}"
                )
            said[came] += 1
            said[none] += 1


@fault(
    "tokens of strangers",
    how="for 5 s others call, and join, without a token, with one that has expired, is of another audience, key or "
    "algorithm, cut short, random or nobody's; and with good ones of another namespace, or of another verb",
    bar="each UNAUTHENTICATED, NOT_FOUND (as a run that is none) or PERMISSION_DENIED; none served; the training goes "
    "on, same batches, every loss counts once",
    rounds=10,
)
def tokens(bench: Bench) -> Iterator[Round]:
    with Known(bench) as scene:
        while True:
            rate = scene.load()
            kinds = {who: (token, "UNAUTHENTICATED") for who, token in _unknown(scene.issuer).items()}
            kinds["neighbour"] = (scene.issuer.token(sub="neighbour"), "NOT_FOUND")
            kinds["reader"] = (scene.issuer.token(sub="reader"), "PERMISSION_DENIED")
            said: Counter[str] = Counter()
            counted = scene.server.figure("steelyard_auth_failures_total")
            first, began = len(scene.trainer.told), time.monotonic()
            with contextlib.ExitStack() as stack:
                strangers = {
                    who: (stack.enter_context(contextlib.closing(Stranger(scene, token))), expected)
                    for who, (token, expected) in kinds.items()
                }
                with Crowd(lambda: _all_refused(strangers, said), 1 if bench.short else 3) as crowd:  # noqa: B023
                    time.sleep(0.1 if bench.short else 5.0)
            if crowd.errors:
                raise crowd.errors[0]
            trained = _goes_on(scene, first, began)
            counted = scene.server.figure("steelyard_auth_failures_total") - counted
            if counted != said["UNAUTHENTICATED"]:
                raise Broken(f"{said['UNAUTHENTICATED']} callers were not known, and {counted:g} are counted")
            yield Round(rate, {**dict(sorted(said.items())), "batches/s meanwhile": trained})


def _goes_on(scene: Scene, first: int, began: float) -> float:
    """Batches a second since then. Broken where the training does not go on, or is another."""
    scene.await_batch()
    trained = (len(scene.trainer.told) - first) / (time.monotonic() - began)
    scene.settle()
    return trained


# ---- tokens of the trainer that end ----


class Renewal:
    """Gives the trainer a new token long before the one before ends, until the block is left."""

    def __init__(self, scene: Known) -> None:
        self._scene, self._over = scene, threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self.end = 0.0
        """Of the newest token (seconds of time.monotonic)."""

    def _renew(self) -> None:
        while not self._over.is_set():
            self.end = self._scene.give(LIFE_SECONDS)
            self._over.wait(LIFE_SECONDS / 2)

    def __enter__(self) -> Renewal:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)


@fault(
    "tokens that end",
    how=f"a trainer's tokens live for {LIFE_SECONDS} s; they are renewed in time, three lives long, and then 5 s late",
    bar="no error for a client that retries; nothing served 3 s after the end of a token; same batches, every loss "
    "counts once",
    rounds=10,
    suite=False,
)
def ending(bench: Bench) -> Iterator[Round]:
    def ended() -> int:
        return int(
            scene.server.figure(
                "steelyard_rpc_handled_total",
                method="/steelyard.v1.TrainerService/Train",
                code="UNAUTHENTICATED",
            )
        )

    with Known(bench) as scene:
        # The trainer joined by a token for the setting up; its stream is made anew by one that ends soon.
        scene.give(LIFE_SECONDS)
        scene.server.kill()
        scene.server.start()
        while True:
            before = ended()
            with Renewal(scene) as renewal:
                rate = scene.load()
                time.sleep((1 if bench.short else 3) * LIFE_SECONDS)
            time.sleep(max(0.0, renewal.end + 5 - time.monotonic()))
            scene.trainer.new()
            cut_off = scene.trainer.told[-1].at - renewal.end
            if cut_off > 3:
                raise Broken(f"a batch came {cut_off:.1f} s after the end of the token")
            if ended() == before:
                raise Broken("no stream was ended: no token did")
            began = time.monotonic()
            with Renewal(scene):
                again = scene.await_batch(began).at - began
                scene.settle()
            yield Round(
                rate,
                {
                    "streams ended": ended() - before,
                    "last batch after the end, s": cut_off,
                    "trains again, s": again,
                },
            )


# ---- certificates of strangers ----

Leaf = trustme.LeafCert | None


def _contexts(papers: Papers, folder: Path) -> dict[str, ssl.SSLContext | None]:
    """By who it is: by what they shake hands; None: not at all. The first is one of ours."""
    folder.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    days = [now + datetime.timedelta(days=number) for number in (-2, -1, 1, 2)]
    authority, other, name = papers.authority, trustme.CA(), "trainer.example"
    leaves: dict[str, Leaf] = {
        "one of ours": authority.issue_cert(name),
        "no certificate": None,
        "another authority's": other.issue_cert(name),
        "expired": authority.issue_cert(name, not_before=days[0], not_after=days[1]),
        "not yet valid": authority.issue_cert(name, not_before=days[2], not_after=days[3]),
    }
    found: dict[str, ssl.SSLContext | None] = {}
    for who, leaf in leaves.items():
        context = ssl.create_default_context(cafile=str(papers.ca))
        context.set_alpn_protocols(["h2"])
        if leaf is not None:
            pem = folder / f"{len(found)}.pem"
            pem.write_bytes(leaf.private_key_and_cert_chain_pem.bytes())
            context.load_cert_chain(pem)
        found[who] = context
    return {**found, "plaintext": None}


_PREFACE = noise.PREFACE + noise.frame(4)
_CALL = _PREFACE + noise.frame(1, 5, 1, noise.headers_of("/steelyard.v1.RunService/ListRuns"))


def _let_in(address: str, context: ssl.SSLContext | None, say: bytes = _CALL) -> bool:
    """Whether the server says anything to whoever comes so. Where the handshake fails it does not."""
    try:
        with noise.connect(address) as plain, contextlib.ExitStack() as stack:
            one: socket.socket = plain
            if context is not None:
                one = stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
            one.sendall(say)
            return bool(one.recv(1))
    except TimeoutError:
        raise Broken("a stranger was neither refused nor closed within 20 s") from None
    except OSError:  # among them ssl.SSLError
        return False


@fault(
    "certificates of strangers",
    how="for 5 s others connect without a certificate, with one of another authority, one that has expired or is not "
    "valid yet, and in plaintext, to a server that insists on certificates",
    bar="every handshake refused, no call served; the training goes on, same batches, every loss counts once; "
    "descriptors back",
    rounds=10,
)
def certificates(bench: Bench) -> Iterator[Round]:
    with Secured(
        bench,
        http=f"127.0.0.1:{free_port()}",
        handshake_timeout_seconds=1,
        max_connection_age_seconds=0,
    ) as scene:
        contexts = _contexts(scene.papers, bench.folder / "strangers")
        ours = contexts.pop("one of ours")
        while True:
            rate = scene.load()
            base = descriptors(scene.server.pid)
            if not _let_in(scene.server.address, ours, _PREFACE):
                raise Broken("one with a good certificate was refused: nothing would be tested")
            served, came = _listed(scene), Counter[str]()
            first, began = len(scene.trainer.told), time.monotonic()

            def knock(who: str, context: ssl.SSLContext | None) -> Callable[[], None]:
                def one() -> None:
                    if _let_in(scene.server.address, context):
                        raise Broken(f"{who}: the server let it in")
                    came[who] += 1  # noqa: B023 -- called in this round

                return one

            with contextlib.ExitStack() as stack:
                crowds = [
                    stack.enter_context(Crowd(knock(who, context), 1)) for who, context in contexts.items()
                ]
                time.sleep(0.2 if bench.short else 5.0)
            for crowd in crowds:
                if crowd.errors:
                    raise crowd.errors[0]
            if _listed(scene) != served:
                raise Broken("a call of a stranger came to be served")
            trained = _goes_on(scene, first, began)
            descriptors_left(scene, base)
            yield Round(rate, {"handshakes refused": came.total(), "batches/s meanwhile": trained})


def _listed(scene: Scene) -> float:
    """How many calls of the method that strangers ask for were taken on."""
    return scene.server.figure("steelyard_rpc_handled_total", method="/steelyard.v1.RunService/ListRuns")
