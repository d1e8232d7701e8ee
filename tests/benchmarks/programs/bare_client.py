"""Streams without Steelyard, with `credit` reports under way on each."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from argparse import Namespace
from collections.abc import Iterator

import grpc

from tests.benchmarks.programs import bare, parent


class Stream:
    def __init__(self, args: Namespace, channel: grpc.Channel, started: threading.Semaphore) -> None:
        self._args = args
        self._channel = channel
        self._started = started
        self._credit: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._sent: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.over = False
        self.done: list[tuple[float, float, int]] = []
        """When an answer was complete, how long it took, and how many steps it is of."""
        self.error: str | None = None

    def run(self) -> None:
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(self._args.method)
        try:
            for received in call(self._gathered() if self._args.method == bare.GATHERED else self._reports()):
                number, last = bare.head(received)
                if not last:
                    continue
                steps = number if self._args.method == bare.GATHERED else 1
                now = time.monotonic()
                self.done.append((now, now - self._sent.get(), steps))
                self._credit.put(steps)
                if len(self.done) == 1:
                    self._started.release()
        except grpc.RpcError as error:
            self.error = str(error)
            self._started.release()

    def _reports(self) -> Iterator[bytes]:
        for _ in range(self._args.credit):
            self._credit.put(1)
        step = 0
        while not self.over:
            with contextlib.suppress(queue.Empty):
                self._credit.get(timeout=0.1)
                self._sent.put(time.monotonic())
                yield bare.message(step, self._args.report)
                step += 1

    def _gathered(self) -> Iterator[bytes]:
        """All that there is credit for as one message."""
        # Two halves, so that one is on its way while the other is answered.
        self._credit.put(self._args.credit // 2)
        self._credit.put(self._args.credit - self._args.credit // 2)
        while not self.over:
            with contextlib.suppress(queue.Empty):
                steps = self._credit.get(timeout=0.1)
                self._sent.put(time.monotonic())
                yield bare.message(steps, steps * self._args.report)


def open_channel(port: int) -> grpc.Channel:
    # A pool of its own, or all channels to one server share a connection.
    options = [*bare.OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=options)


def main() -> None:
    parser = parent.parser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--credit", type=int, default=4)
    parser.add_argument("--report", type=int, required=True, help="bytes of a report")
    parser.add_argument("--shared", action="store_true", help="all streams on one connection")
    args = parser.parse_args()
    parent.live_for(args.life)
    started = threading.Semaphore(0)
    channels = [open_channel(args.port) for _ in range(1 if args.shared else args.streams)]
    streams = [Stream(args, channels[at % len(channels)], started) for at in range(args.streams)]
    threads = [threading.Thread(target=stream.run, daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    for _ in streams:
        started.acquire()
    parent.say("ready")
    start, stop = parent.hear_window()
    time.sleep(max(0.0, start - time.monotonic()))
    cpu = time.process_time()
    time.sleep(max(0.0, stop - time.monotonic()))
    cpu = time.process_time() - cpu
    for stream in streams:
        stream.over = True
    for thread in threads:
        thread.join(10)
    for channel in channels:
        channel.close()
    counted = [[(took, steps) for at, took, steps in stream.done if start <= at < stop] for stream in streams]
    made = [sum(steps for _, steps in one) for one in counted]
    parent.say(
        {
            "steps": sum(made),
            "least": min(made),
            "cpu": cpu,
            "seconds": [round(took, 6) for one in counted for took, _ in one],
            "errors": [stream.error for stream in streams if stream.error],
        }
    )


if __name__ == "__main__":
    main()
