"""A prioritised table of Reverb: its server as a child, and the client that samples and sets priorities.

Its server listens on every interface: start this in a network namespace that holds only loopback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.benchmarks.programs import cycles, parent

_PORT = 7979
_NAME = "t"
_KEPT = 32
_KEYS_AT_A_TIME = 1024
"""So many batches of so many keys are drawn, and those get new priorities."""
_UPDATES = 16
"""Made beforehand, and sent in turn."""
_IN_FLIGHT = 4096
_WORKERS = 4
"""Of a dataset's sampling streams: of 1, 2 and 4 with 512 to 4096 in flight this was the fastest on 2 cores."""


def serve(size: int) -> None:
    import reverb  # type: ignore[import-not-found]

    selectors = reverb.selectors
    table = reverb.Table(
        _NAME, selectors.Prioritized(1.0), selectors.Fifo(), size, reverb.rate_limiters.MinSize(1)
    )
    server = reverb.Server([table], port=_PORT)
    parent.say("serving")
    sys.stdin.read()
    server.stop()


class Client:
    def __init__(self, size: int) -> None:
        import reverb  # type: ignore[import-not-found]

        self._reverb = reverb
        self._address = f"localhost:{_PORT}"
        self._client = reverb.Client(self._address)
        self._fill(size)
        self._keys: list[Any] = []

    def _fill(self, size: int) -> None:
        with self._client.writer(max_sequence_length=1) as writer:
            for _, scores in cycles.chunks(size):
                for score in scores.tolist():
                    writer.append([np.uint8(0)])
                    writer.create_item(_NAME, 1, score)

    def rate(self, case: str, batch: int, seconds: float) -> float:
        """Ids or priorities a second."""
        cases: dict[str, Callable[[int], Iterator[int]]] = {
            "sample": self._sample,
            "dataset": self._dataset,
            "mutate": self._mutate,
            "update": self._update,
        }
        counts = cases[case](batch)
        next(counts)
        start, done = time.perf_counter(), 0
        while (took := time.perf_counter() - start) < seconds:
            done += next(counts)
        counts.close()  # type: ignore[attr-defined]
        return done / took

    def _sample(self, batch: int) -> Iterator[int]:
        while True:
            for sample in self._client.sample(_NAME, batch):
                assert sample[0].info.table_size
            yield batch

    def _dataset(self, batch: int) -> Iterator[int]:
        import tensorflow as tf  # type: ignore[import-not-found, import-untyped]

        dataset = self._reverb.TimestepDataset(
            server_address=self._address,
            table=_NAME,
            dtypes=[tf.uint8],
            shapes=[tf.TensorShape([])],
            max_in_flight_samples_per_worker=_IN_FLIGHT,
            num_workers_per_iterator=_WORKERS,
        )
        for sample in dataset.batch(batch):
            if len(self._keys) < _KEPT:
                self._keys.append(sample.info.key.numpy())
            yield batch

    def _mutate(self, batch: int) -> Iterator[int]:
        updates = [
            dict(zip(keys.tolist(), scores, strict=True)) for keys, scores in self._new_priorities(batch)
        ]
        while True:
            for update in updates:
                self._client.mutate_priorities(_NAME, update)
                yield len(update)

    def _update(self, batch: int) -> Iterator[int]:
        import tensorflow as tf  # type: ignore[import-not-found, import-untyped]

        client = self._reverb.TFClient(self._address)
        updates = [
            (tf.constant(keys, tf.uint64), tf.constant(scores, tf.float64))
            for keys, scores in self._new_priorities(batch)
        ]
        while True:
            for keys, scores in updates:
                client.update_priorities(_NAME, keys, scores)
                yield len(scores)

    def _new_priorities(self, batch: int) -> Iterator[tuple[Any, list[float]]]:
        """Updates of keys that were drawn, each once, `batch` of them where there are so many."""
        if len(self._keys) < _KEPT:
            sampled = self._dataset(_KEYS_AT_A_TIME)
            while len(self._keys) < _KEPT:
                next(sampled)
        rng = np.random.default_rng(2)
        drawn = np.unique(np.concatenate(self._keys))
        for _ in range(_UPDATES):
            keys = rng.choice(drawn, min(batch, len(drawn)), replace=False)
            yield keys, rng.lognormal(size=len(keys)).tolist()


def main() -> None:
    parser = parent.parser()
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    parent.live_for(args.life)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    parent.keep_output()
    if args.serve:
        serve(args.size)
        return
    command = [sys.executable, "-m", "tests.benchmarks.programs.reverb_table", *sys.argv[1:], "--serve"]
    server = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert server.stdout is not None
    if not server.stdout.readline():
        raise SystemExit(f"Reverb's server ended with status {server.wait()}")
    client = Client(args.size)
    parent.say("filled")
    for line in sys.stdin:
        asked = json.loads(line)
        parent.say({"rate": client.rate(asked["case"], asked["batch"], asked["seconds"])})
    # Its client would wait for the server at the end.
    server.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
