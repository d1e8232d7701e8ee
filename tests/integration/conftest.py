"""A real server, and trainers and calls that speak the bare protocol, so that they can also break it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import steelyard
from steelyard import wire
from steelyard.testing import server
from steelyard.v1 import arrays_pb2, datasets_pb2_grpc, runs_pb2_grpc, trainer_pb2, trainer_pb2_grpc

WAIT = 20.0
"""Seconds after which a message that should have come is a failure."""


class Refused(Exception):  # noqa: N818 -- a fact, not a fault: it is what the test expects
    """A call or stream that ended with a status other than OK."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class RawTrainer:
    """One Train stream. Messages are sent as given; answers are read by a thread and handed out in order."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reading = threading.Event()
        self._reading.set()
        self._call = trainer_pb2_grpc.TrainerServiceStub(self._channel).Train(iter(self._outgoing.get, None))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._reading.wait()
                for message in response.messages:
                    self._answers.put(message)
            self._answers.put(None)
        except grpc.RpcError as error:
            self._answers.put(Refused(error.code().name, error.details() or ""))  # type: ignore[attr-defined]

    def send(self, **message: Any) -> None:
        self._outgoing.put(trainer_pb2.TrainRequest(messages=[trainer_pb2.TrainerMessage(**message)]))

    def join(self, run: str, **fields: Any) -> trainer_pb2.Joined:
        """Joins and returns the answer."""
        defaults = {
            "rank": 0,
            "world_size": 1,
            "attempt": "a",
            "session": f"s{fields.get('rank', 0)}",
            "credit": 1,
        }
        self.send(join=trainer_pb2.Join(run=run, **{**defaults, **fields}))
        return self.expect("joined")

    def next(self, timeout: float = WAIT) -> Any:
        """The next message, None at an end with OK. Refused at another end; TimeoutError where nothing comes."""
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError(f"nothing came within {timeout} s") from None
        if isinstance(answer, Refused):
            raise answer
        return answer

    def expect(self, kind: str, timeout: float = WAIT) -> Any:
        answer = self.next(timeout)
        came = None if answer is None else answer.WhichOneof("message")
        assert came == kind, f"expected {kind}, got {answer}"
        return getattr(answer, kind)

    def nothing_comes(self, seconds: float = 0.3) -> bool:
        try:
            answer = self.next(seconds)
        except TimeoutError:
            return True
        raise AssertionError(f"expected nothing, got {answer}")

    def end(self) -> Refused | None:
        """Reads until the stream ends; how it did."""
        try:
            while self.next() is not None:
                pass
        except Refused as refused:
            return refused
        return None

    def report(self, batch: Any, losses: Any, **changes: Any) -> None:
        values = np.asarray(losses, np.float32)
        fields = {
            "step": batch.step,
            "offset": batch.offset,
            "digest": batch.digest,
            "signals": [arrays_pb2.Signal(name="loss", values=wire.pack(values, np.float32))],
        }
        self.send(report=trainer_pb2.Report(**{**fields, **changes}))

    def train(self, steps: int, loss: Callable[[Any, int], Any]) -> list[list[int]]:
        """Takes `steps` batches one by one, reporting each; the ids."""
        served = []
        for _ in range(steps):
            batch = self.expect("batch")
            ids = wire.unpack_ids(batch.ids)
            self.report(batch, loss(ids, batch.step))
            self.expect("acknowledgement")
            self.send(credit=trainer_pb2.Credit(batches=1))
            served.append(ids.tolist())
        return served

    def pause(self) -> None:
        """Reads no more, so that what the server sends stays on its way."""
        self._reading.clear()

    def resume(self) -> None:
        self._reading.set()

    def close(self) -> None:
        self._reading.set()
        self._call.cancel()
        self._outgoing.put(None)
        self._channel.close()
        self._thread.join(WAIT)


class Raw:
    """A server's bare calls."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)])
        self.datasets = datasets_pb2_grpc.DatasetServiceStub(self._channel)
        self.runs = runs_pb2_grpc.RunServiceStub(self._channel)
        self._trainers: list[RawTrainer] = []

    def call(self, method: Any, request: Any) -> Any:
        """The answer; Refused with the status otherwise."""
        try:
            return method(request, timeout=WAIT)
        except grpc.RpcError as error:
            raise Refused(error.code().name, error.details() or "") from None  # type: ignore[attr-defined]

    def trainer(self) -> RawTrainer:
        self._trainers.append(RawTrainer(self.address))
        return self._trainers[-1]

    def close(self) -> None:
        for trainer in self._trainers:
            trainer.close()
        self._channel.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[steelyard.Client]:
    with server(tmp_path / "server") as client:
        yield client


@pytest.fixture
def raw(client: steelyard.Client) -> Iterator[Raw]:
    bare = Raw(client.address)
    yield bare
    bare.close()


@pytest.fixture
def raw_of() -> Iterator[Callable[[str], Raw]]:
    """Bare calls to any address."""
    made: list[Raw] = []

    def make(address: str) -> Raw:
        made.append(Raw(address))
        return made[-1]

    yield make
    for bare in made:
        bare.close()


@pytest.fixture
def refused() -> type[Refused]:
    """What a bare call or stream raises that ends with a status other than OK."""
    return Refused
