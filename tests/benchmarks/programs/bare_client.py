"""Streams without Steelyard: each on a connection of its own, with `credit` reports under way."""

from __future__ import annotations

import queue
import threading
import time
from argparse import Namespace
from collections.abc import Iterator

import grpc

from tests.benchmarks.programs import bare, parent


class Stream:
    def __init__(self, args: Namespace, started: threading.Semaphore) -> None:
        self._args = args
        self._started = started
        self._credit: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._sent: dict[int, float] = {}
        self.over = False
        self.done: list[tuple[float, float]] = []
        """When each step was answered, and how long it took."""
        self.error: str | None = None

    def run(self) -> None:
        # A pool of its own, or streams to one server share a connection.
        options = [*bare.OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{self._args.port}", options=options) as channel:
            call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(self._args.method)
            try:
                for received in call(self._reports()):
                    step, last = bare.head(received)
                    if last:
                        now = time.monotonic()
                        self.done.append((now, now - self._sent.pop(step)))
                        self._credit.put(None)
                        if step == 0:
                            self._started.release()
            except grpc.RpcError as error:
                self.error = str(error)
                self._started.release()

    def _reports(self) -> Iterator[bytes]:
        for _ in range(self._args.credit):
            self._credit.put(None)
        step = 0
        while not self.over:
            try:
                self._credit.get(timeout=0.1)
            except queue.Empty:
                continue
            self._sent[step] = time.monotonic()
            yield bare.message(step, self._args.report)
            step += 1


def main() -> None:
    parser = parent.parser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--credit", type=int, default=4)
    parser.add_argument("--report", type=int, required=True, help="bytes of a report")
    args = parser.parse_args()
    parent.live_for(args.life)
    started = threading.Semaphore(0)
    streams = [Stream(args, started) for _ in range(args.streams)]
    threads = [threading.Thread(target=stream.run, daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    for _ in streams:
        started.acquire()
    parent.say("ready")
    start, stop = parent.hear_window()
    time.sleep(max(0.0, stop - time.monotonic()))
    for stream in streams:
        stream.over = True
    for thread in threads:
        thread.join(10)
    counted = [[took for at, took in stream.done if start <= at < stop] for stream in streams]
    parent.say(
        {
            "steps": sum(map(len, counted)),
            "least": min(map(len, counted)),
            "seconds": [round(took, 6) for one in counted for took in one],
            "errors": [stream.error for stream in streams if stream.error],
        }
    )


if __name__ == "__main__":
    main()
