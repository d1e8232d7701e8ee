"""The child process of work.py: does one task and says how it went."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import KeepingError

_NICE = 10
"""So that runs come first."""


def _backup(
    say: Callable[[Any], None],
    directory: str,
    to: str,
    shared: bool,
    rate: float,
    part_bytes: int,
    keep: int,
) -> list[str]:
    """Says {"made": manifest}; then removes what `keep` (0: none) no longer keeps. The names of it."""
    from .places import place_at, prepare
    from .retention import prune
    from .writing import write_backup

    place = place_at(to)
    prepare(to)
    place.sweep()
    made = write_backup(Path(directory), place, shared=shared, rate=rate, part_bytes=part_bytes)
    say({"made": made.model_dump(mode="json")})
    return prune(place, keep, made.name) if keep else []


def _check(
    say: Callable[[Any], None], directory: str, shared: bool, deep: bool, expected: dict[str, Any] | None
) -> Any:
    from steelyard_server import plugins

    from .checking import check_store
    from .manifest import Manifest

    plugins.register()
    manifest = None if expected is None else Manifest.model_validate(expected)
    return check_store(Path(directory), shared=shared, deep=deep, expected=manifest, say=say)


def _copy(say: Callable[[Any], None], directory: str, to: str) -> Any:
    from .compacting import copy_compacted

    return copy_compacted(Path(directory), Path(to))


TASKS: dict[str, Callable[..., Any]] = {"backup": _backup, "check": _check, "copy": _copy}


def main() -> None:
    os.nice(_NICE)
    # Messages go there alone: what a library prints must not be taken for one.
    out, sys.stdout = sys.stdout, sys.stderr
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(kind: str, value: Any) -> None:
        out.write(json.dumps({kind: value}) + "\n")
        out.flush()

    try:
        tell("done", TASKS[task["task"]](lambda value: tell("said", value), **task["arguments"]))
    except Exception as error:
        kind = type(error).__name__ if isinstance(error, KeepingError) else "KeepingError"
        tell("failed", [kind, f"{error}" or repr(error)])
    out.flush()
    # Threads of a library of the destination's may not end.
    os._exit(0)


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
