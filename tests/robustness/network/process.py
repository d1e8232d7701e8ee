"""What a process holds: memory and file descriptors."""

from __future__ import annotations

from pathlib import Path


def descriptors(pid: int) -> int:
    """Files and sockets that are open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def private_bytes(pid: int) -> int:
    """Memory that it has now and no other: the store's file, which is mapped, is not in it."""
    return 1024 * next(
        int(line.split()[1])
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("RssAnon")
    )
