"""What a round of a fault came to, kept as a line of JSON: tests/robustness/score.jsonl holds those of long runs."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
SCORE = ROOT / "tests" / "robustness" / "score.jsonl"

Figures = Mapping[str, int | float]
"""What a round found, by the words that the table has for it: whole numbers are added up, others give a range."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """`load` is in batches a second, as counted before the fault; None where the fault has no load of clients.

    `figures` are those that the fault names; `broken` is the promise that did not hold, or empty."""

    fault: str
    date: str
    commit: str
    seconds: float
    load: float | None
    figures: Figures
    broken: str = ""

    def line(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


def outcome(fault: str, seconds: float, load: float | None, figures: Figures, broken: str = "") -> Outcome:
    shown = {name: value if isinstance(value, int) else round(value, 3) for name, value in figures.items()}
    return Outcome(
        fault,
        time.strftime("%Y-%m-%d", time.gmtime()),
        commit(),
        round(seconds, 1),
        None if load is None else round(load),
        shown,
        broken.splitlines()[0][:300] if broken else "",
    )


def commit() -> str:
    """What was tried: the commit of the working tree, with a + where files of the product differ from it."""
    git = ["git", "-C", str(ROOT)]
    try:
        known = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        dirty = subprocess.run(
            [*git, "status", "--porcelain", "client", "server", "proto"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return known.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def read(path: Path = SCORE) -> list[Outcome]:
    if not path.exists():
        return []
    return [Outcome(**json.loads(line)) for line in path.read_text().splitlines() if line]


def append(one: Outcome, path: Path | None = None) -> None:
    with (path or SCORE).open("a") as file:
        file.write(one.line() + "\n")
