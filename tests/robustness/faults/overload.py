"""More than the server takes on, and input that is wrong, from others beside a training."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

import steelyard
from steelyard import wire
from steelyard.arguments import pack_ids
from steelyard.v1 import arrays_pb2, runs_pb2, trainer_pb2
from tests.robustness.faults.crowd import Crowd
from tests.robustness.faults.outcome import ROOT
from tests.robustness.faults.registry import Bench, Broken, Round, fault
from tests.robustness.faults.scene import Scene
from tests.robustness.network.bare import Stream, batches_of, report_of

CALLS, STREAMS = 8, 12
"""That the server takes on at a time."""
_COLUMN = "/steelyard.v1.RunService/GetColumn"
_OBSERVE = "/steelyard.v1.RunService/Observe"


class Raw:
    """Unary calls of bytes, without any retry. `codes` are the statuses."""

    def __init__(self, address: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        self._channel = grpc.insecure_channel(address, options=options)
        self.codes: Counter[str] = Counter()

    def call(self, method: str, request: bytes, metadata: Any = ()) -> str:
        """The name of the status."""
        call: Any = self._channel.unary_unary(method)
        try:
            call(request, timeout=60, metadata=metadata)
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name  # type: ignore[attr-defined]
        self.codes[code] += 1
        return code

    def close(self) -> None:
        self._channel.close()


def _answered(scene: Scene, request: bytes, callers: int, seconds: float) -> tuple[float, Raw]:
    """Calls answered a second, by so many callers that call again at once."""
    with contextlib.closing(Raw(scene.server.address)) as raw:
        began = time.monotonic()
        with Crowd(lambda: raw.call(_COLUMN, request), callers):
            time.sleep(seconds)
        return raw.codes["OK"] / (time.monotonic() - began), raw


@fault(
    "overload",
    how=f"3 times as many callers and streams as a server of {CALLS} calls and {STREAMS} streams takes, who call again "
    "at once; and clients that wait when they are told to",
    bar="what is too much is RESOURCE_EXHAUSTED, nothing else fails, the training goes on, a client gets its answer; "
    "half of the refusals within 50 ms, as a process sees them that waits for no processor",
    rounds=10,
    suite=False,
)
def overload(bench: Bench) -> Iterator[Round]:
    request = runs_pb2.GetColumnRequest(name="r", column="last_loss").SerializeToString()
    seconds = 1.0 if bench.short else 8.0
    with Scene(bench, max_concurrent_calls=CALLS, max_open_streams=STREAMS) as scene:
        scene.client.create_run("other", dataset="d", batch_size=8)
        while True:
            rate = scene.load()
            peak, _ = _answered(scene, request, CALLS, seconds)
            first = len(scene.trainer.told)
            refused = _streams(scene, 3 * STREAMS)
            with (
                Crowd(lambda: scene.run.column("last_loss"), 2) as polite,
                _knocking(scene, seconds) as knocks,
            ):
                meanwhile, raw = _answered(scene, request, 3 * CALLS, seconds)
            if set(raw.codes) - {"OK", "RESOURCE_EXHAUSTED"}:
                raise Broken(f"expected calls to be answered or RESOURCE_EXHAUSTED; got {dict(raw.codes)}")
            if polite.errors:
                raise Broken(f"{len(polite.errors)} calls of clients that wait failed: {polite.errors[0]!r}")
            scene.await_batch()
            scene.trainer.new()
            trained = (len(scene.trainer.told) - first) / (1.5 * seconds)
            scene.settle()
            answered = meanwhile + len(polite.seconds) / seconds
            late = sorted(knocks.get("RESOURCE_EXHAUSTED", [])) or [0.0]
            if late[len(late) // 2] > 50:
                raise Broken(f"half of the refusals took more than {late[len(late) // 2]:.0f} ms")
            yield Round(
                rate,
                {
                    "calls refused": raw.codes["RESOURCE_EXHAUSTED"],
                    "streams refused": refused,
                    "refused after, ms (p50)": late[len(late) // 2],
                    "refused after, ms (p99)": late[int(0.99 * (len(late) - 1))],
                    "answered a second before": peak,
                    "answered a second meanwhile": answered,
                    "of before": answered / peak,
                    "batches/s meanwhile": trained,
                },
            )


@contextlib.contextmanager
def _knocking(scene: Scene, seconds: float) -> Iterator[dict[str, list[float]]]:
    """The milliseconds of calls by their status, as a process of its own sees them; filled at the end."""
    found: dict[str, list[float]] = {}
    program = [sys.executable, "-m", "tests.robustness.faults.programs.knocks"]
    with subprocess.Popen(
        [*program, scene.server.address, str(seconds)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        yield found
        said, _ = process.communicate(timeout=60)
    found.update(json.loads(said))


def _streams(scene: Scene, count: int) -> int:
    """Opens so many beside the trainer's, and how many were refused. Broken where one ended otherwise."""
    refused = 0
    with contextlib.ExitStack() as stack:
        for number in range(count):
            one = stack.enter_context(Stream(scene.server.address))
            one.join("other", rank=number, world_size=count, attempt="crowd", session=f"s{number}", credit=0)
            answer = one.next()
            if answer is grpc.StatusCode.RESOURCE_EXHAUSTED:
                refused += 1
            elif isinstance(answer, grpc.StatusCode):
                raise Broken(f"expected a stream too many to be RESOURCE_EXHAUSTED; got {answer.name}")
    if refused < count - STREAMS:
        raise Broken(f"expected all streams but {STREAMS} of {count} to be refused; {refused} were")
    return refused


# ---- input that is wrong ----


def _observed(ids: list[int], values: list[float]) -> bytes:
    request = runs_pb2.ObserveRequest(name="bad", ids=pack_ids(np.array(ids, np.int64)))
    request.signals.append(arrays_pb2.Signal(name="loss", values=wire.pack(values, np.float32)))
    return request.SerializeToString()


def _bad_calls(raw: Raw, size: int) -> dict[str, tuple[str, str]]:
    """By what was sent: the status that came, and the one expected."""
    flood = (("x-flood", "x" * (64 << 10)),)
    get = runs_pb2.GetRunRequest(name="bad").SerializeToString()
    return {
        "an id out of range": (raw.call(_OBSERVE, _observed([size], [1.0])), "INVALID_ARGUMENT"),
        "lengths that differ": (raw.call(_OBSERVE, _observed([1, 2], [1.0])), "INVALID_ARGUMENT"),
        "NaN where it is rejected": (raw.call(_OBSERVE, _observed([1], [float("nan")])), "INVALID_ARGUMENT"),
        "infinity": (raw.call(_OBSERVE, _observed([1], [float("inf")])), "INVALID_ARGUMENT"),
        "bytes that are no message": (raw.call(_OBSERVE, b"\xff" * 64), "INVALID_ARGUMENT"),
        "9 MiB": (raw.call(_OBSERVE, bytes(9 << 20)), "RESOURCE_EXHAUSTED"),
        "64 KiB of metadata": (
            raw.call("/steelyard.v1.RunService/GetRun", get, flood),
            "RESOURCE_EXHAUSTED",
        ),
    }


def _bad_reports(address: str, token: str) -> dict[str, tuple[str, str]]:
    """As _bad_calls, of what is reported on a trainer's stream."""
    found = {}
    with Stream(address) as stream:
        stream.join("bad", attempt=token, session=token)
        stream.expect("joined")
        (batch,) = batches_of(stream, 1)
        good = np.ones(64, np.float32)

        def told(what: str, report: trainer_pb2.Report, expected: str) -> None:
            stream.send(report=report)
            answer = stream.next()
            while not isinstance(answer, grpc.StatusCode) and answer.WhichOneof("message") == "batch":
                answer = stream.next()
            came = answer.name if isinstance(answer, grpc.StatusCode) else answer.WhichOneof("message")
            if came == "refusal":
                came = steelyard.errors.code_name(answer.refusal.code)
            found[what] = came, expected

        told("NaN in a report", report_of(batch, good * np.nan), "INVALID_ARGUMENT")
        told("a report", report_of(batch, good), "acknowledgement")
        told("the same report again", report_of(batch, good), "acknowledgement")
        told("the same report altered", report_of(batch, good * 2), "ALREADY_EXISTS")
    return found


@fault(
    "bad input",
    how="from others, always: reports twice, altered, of NaN; ids out of range, lengths that differ, bytes that are "
    "no message, 9 MiB, 64 KiB of metadata",
    bar="each its own status; the training goes on, same batches, every loss counts once; what others run is unchanged",
    rounds=20,
    suite=False,
)
def bad_input(bench: Bench) -> Iterator[Round]:
    with Scene(bench, max_message_bytes=8 << 20) as scene:
        run = scene.client.create_run("bad", dataset="d", batch_size=64, on_nonfinite="reject")
        while True:
            rate, sent, reported = scene.load(), 0, run.stats().reported_losses
            deadline, lives = time.monotonic() + (1 if bench.short else 10), 0
            with contextlib.closing(Raw(scene.server.address)) as raw:
                while time.monotonic() < deadline:
                    lives += 1
                    answers = _bad_calls(raw, bench.size)
                    answers |= _bad_reports(scene.server.address, f"a{bench.moments.random()}")
                    for what, (came, expected) in answers.items():
                        if came != expected:
                            raise Broken(f"{what}: expected {expected}, got {came}")
                    sent += len(answers)
            if (grown := run.stats().reported_losses - reported) != 64 * lives:
                raise Broken(f"expected {64 * lives} losses of {lives} good reports to count; {grown} did")
            scene.settle()
            yield Round(rate, {"bad inputs": sent})
