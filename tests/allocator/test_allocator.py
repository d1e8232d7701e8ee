"""What threads of a server have freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

FREES = """
import sys, threading
import numpy as np
from steelyard_server import allocator

def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10

if sys.argv[1] == "share":
    assert allocator.share_among_threads()
before = anonymous()

def fill_and_free():
    kept = [np.ones(10_000, np.uint8) for _ in range(4000)]
    last = np.ones(1000, np.uint8)
    full.wait(60)
    kept.clear()
    freed.wait(60)
    free.wait(60)
    del last

full, freed, free = (threading.Barrier(5) for _ in range(3))
threads = [threading.Thread(target=fill_and_free) for _ in range(4)]
for thread in threads:
    thread.start()
full.wait(60)
freed.wait(60)
print(anonymous() - before)
assert allocator.give_back()
print(anonymous() - before)
free.wait(60)
"""


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="it asks Linux what a process holds, and glibc"
)
@pytest.mark.parametrize("threads", ["share", "apart"])
def test_what_was_freed_below_something_that_is_kept_is_given_back(threads: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FREES, threads], capture_output=True, text=True, check=True, timeout=60
    )
    held, after = map(int, ran.stdout.split())
    assert held > 100e6
    assert after < 20e6
