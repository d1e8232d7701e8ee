"""Entry point of the `steelyard` command.

Exit status: 0 done, 1 it failed (one line on stderr says why), 2 the command or its configuration is wrong.
"""

import os
import sys


def app() -> None:
    """Runs the command line of this process and exits. Light to import, so that a missing extra can be named."""
    # Before gRPC is imported. Its own lines on stderr are no JSON, name no peer, and stand before our own errors.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from steelyard_server.cli.verbs import cli
    except ModuleNotFoundError as error:
        sys.exit(_missing(error))
    from steelyard.errors import SteelyardError
    from steelyard_server.config import ConfigError
    from steelyard_server.history.errors import StoreError
    from steelyard_server.keeping.errors import KeepingError

    try:
        cli(prog_name="steelyard")
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"steelyard: {line}", file=sys.stderr)  # noqa: T201 -- a command speaks
        sys.exit(2)
    except (SteelyardError, StoreError, KeepingError, OSError) as error:
        sys.exit(f"steelyard: {' '.join(str(error).split())}")


def _missing(error: ModuleNotFoundError) -> str:
    """The message for a module that is not installed; one of our own is a bug, and is raised again."""
    module = (error.name or "").partition(".")[0]
    if module in ("steelyard", "steelyard_server"):
        raise error
    return (
        f"steelyard: the command needs the packages of the extra `server`, and {module!r} is not installed:"
        " pip install 'steelyard[server]'"
    )
