"""How a program becomes a process of a job, forked from one that has imported torch: four begin within a second."""

import os
import runpy
import sys


def begin(path: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    """Runs the script at `path` here; what it writes goes to the file `log`."""
    with open(log, "wb", buffering=0) as out:  # noqa: PTH123 -- a descriptor to hand on
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.environ.update(environment)
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")
