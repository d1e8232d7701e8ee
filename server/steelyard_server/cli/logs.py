"""Where the daemon's log goes: standard error, one line an event, from every library of the process."""

import logging
import sys
from typing import Literal

import structlog
from structlog.typing import Processor

_COMMON: list[Processor] = [
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def configure(level: str, form: Literal["console", "json"]) -> None:
    """Sets the logging of this process; for a command, not for a library."""
    render: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        render += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            # The one that it takes where it finds rich shows local variables: payloads and tokens among them.
            exception_formatter=structlog.dev.plain_traceback,
        )
        render += [console]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*_COMMON, structlog.stdlib.ExtraAdder()], processors=render
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # At debug it tells of its event loops, several times a call.
    logging.getLogger("grpc").setLevel(max(logging.INFO, logging.getLogger().level))
