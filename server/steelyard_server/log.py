"""Where the server's events go: to the standard library's logging, under the name of their module.

So an embedded server prints nothing but warnings unless its program sets up logging, and the daemon sets up one
form for its own events and those of every library (cli/logs.py).
"""

from __future__ import annotations

import logging
from typing import cast

import structlog

_NAME_CHARACTERS = 128
"""Of a name in the log, which is a caller's and not yet looked at."""


def logger(name: str) -> structlog.stdlib.BoundLogger:
    """A logger of events: `logger(__name__).info("what_happened", run=name, step=step)`."""
    wrapped = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return cast("structlog.stdlib.BoundLogger", wrapped)


def printable(name: str) -> str:
    """For the log, which a terminal may show: what would move its cursor or begin a line is escaped."""
    name = name[:_NAME_CHARACTERS]
    return name if name.isprintable() else name.encode("unicode_escape").decode()
