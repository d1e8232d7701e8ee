"""The trainers' stream without a client: messages go as they are given, and what is read is up to the test."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np

from steelyard import wire
from steelyard.v1 import arrays_pb2, trainer_pb2, trainer_pb2_grpc

SECONDS = 30.0


class Stream:
    """One Train stream. Answers are read by a thread, as long as `reading` is set."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.reading = threading.Event()
        self.reading.set()
        self._call = trainer_pb2_grpc.TrainerServiceStub(self._channel).Train(iter(self._outgoing.get, None))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            for response in self._call:
                for message in response.messages:
                    self._answers.put(message)
                self.reading.wait()
            self._answers.put(grpc.StatusCode.OK)
        except grpc.RpcError as error:
            self._answers.put(error.code())  # type: ignore[attr-defined]

    def send(self, **message: Any) -> None:
        self._outgoing.put(trainer_pb2.TrainRequest(messages=[trainer_pb2.TrainerMessage(**message)]))

    def join(self, run: str, **fields: Any) -> None:
        defaults = {"rank": 0, "world_size": 1, "attempt": "a", "session": "s", "credit": 1}
        self.send(join=trainer_pb2.Join(run=run, **{**defaults, **fields}))

    def next(self, seconds: float = SECONDS) -> Any:
        """The next message, or the status that the stream ended with. TimeoutError where nothing comes."""
        try:
            return self._answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError(f"nothing came within {seconds:g} s") from None

    def expect(self, kind: str, seconds: float = SECONDS) -> Any:
        answer = self.next(seconds)
        came = answer if isinstance(answer, grpc.StatusCode) else answer.WhichOneof("message")
        assert came == kind, f"expected {kind}, got {answer}"
        return getattr(answer, kind)

    def end(self) -> grpc.StatusCode:
        """Reads until the stream ends; its status."""
        while not isinstance(answer := self.next(), grpc.StatusCode):
            pass
        return answer

    def close(self) -> None:
        self.reading.set()
        self._call.cancel()
        self._outgoing.put(None)
        self._channel.close()
        self._thread.join(SECONDS)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def report_of(batch: trainer_pb2.Batch, losses: Any, first: int = 0) -> trainer_pb2.Report:
    """A report of `losses` for the positions of the batch from `first` on."""
    values = wire.pack(np.asarray(losses, np.float32), np.float32)
    return trainer_pb2.Report(
        step=batch.step,
        offset=batch.offset + first,
        digest=batch.digest,
        signals=[arrays_pb2.Signal(name="loss", values=values)],
    )


def batches_of(stream: Stream, count: int) -> Iterator[trainer_pb2.Batch]:
    """The next `count` batches, whatever comes between them."""
    while count:
        answer = stream.next()
        assert not isinstance(answer, grpc.StatusCode), f"the stream ended with {answer}"
        if answer.WhichOneof("message") == "batch":
            count -= 1
            yield answer.batch
