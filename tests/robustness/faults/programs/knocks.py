"""Calls a server again and again, and says how long each status took: knocks.py ADDRESS SECONDS

A process of its own, before others where it may be (as root): so that what it measures is the server's time, and not
its own wait for a processor. What it says is {"OK": [ms, ...], "RESOURCE_EXHAUSTED": [ms, ...]} in JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections import defaultdict
from typing import Any

import grpc

from steelyard.v1 import runs_pb2

PAUSE = 0.005


def main() -> None:
    address, seconds = sys.argv[1], float(sys.argv[2])
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    took: defaultdict[str, list[float]] = defaultdict(list)
    request = runs_pb2.GetRunRequest(name="r").SerializeToString()
    with grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        call: Any = channel.unary_unary("/steelyard.v1.RunService/GetRun")
        end = time.monotonic() + seconds
        while (began := time.monotonic()) < end:
            try:
                call(request, timeout=60)
                code = "OK"
            except grpc.RpcError as error:
                code = error.code().name  # type: ignore[attr-defined]
            took[code].append(1000 * (time.monotonic() - began))
            time.sleep(PAUSE)
    print(json.dumps(took))


if __name__ == "__main__":
    main()
