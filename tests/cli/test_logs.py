"""One log for everything, in the form that was asked for. Each case is a process: logging is global."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import logging
from steelyard_server.cli import logs
from steelyard_server.log import logger
early = logger("early")
logs.configure({level!r}, {form!r})
early.info("drawn", step=3)
early.debug("detail")
logging.getLogger("library").warning("map at %d", 7)
try:
    1 / 0
except ZeroDivisionError:
    early.exception("failed")
"""


def logged(level: str, form: str) -> list[str]:
    script = SCRIPT.format(level=level, form=form)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return done.stderr.splitlines()


def test_json_is_one_object_a_line_whoever_wrote_it() -> None:
    events = [json.loads(line) for line in logged("info", "json")]
    assert [(event["event"], event["level"], event["logger"]) for event in events] == [
        ("drawn", "info", "early"),
        ("map at 7", "warning", "library"),
        ("failed", "error", "early"),
    ]
    assert events[0]["step"] == 3
    assert "ZeroDivisionError" in events[2]["exception"]
    assert all(event["timestamp"].endswith("Z") for event in events)


@pytest.mark.parametrize(
    ("level", "words"), [("debug", ["drawn", "detail", "map at 7", "failed"]), ("error", ["failed"])]
)
def test_the_level_says_what_is_left_out(level: str, words: list[str]) -> None:
    text = "\n".join(logged(level, "console"))
    assert [word for word in ("drawn", "detail", "map at 7", "failed") if word in text] == words
    assert "\x1b[" not in text
    assert "ZeroDivisionError" in text
