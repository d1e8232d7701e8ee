"""No number of the authors' code lies unused: each is asked for by name in a test."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
LEAST_CONSTANT = 6
"""So much of a name must stand in the test itself: a name that is wholly computed says nothing here."""


def name_patterns(source: str) -> Iterator[str]:
    """A regular expression for each string of `source`: itself, or with a gap for each value that is put in."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Constant(value=str(text)):
                yield re.escape(text)
            case ast.JoinedStr(values=parts):
                texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
                if sum(len(str(text)) for text in texts if text is not None) >= LEAST_CONSTANT:
                    yield "".join(".+" if text is None else re.escape(str(text)) for text in texts)


def unused(names: list[str], sources: list[str]) -> list[str]:
    patterns = {pattern for source in sources for pattern in name_patterns(source)}
    asked = re.compile("|".join(sorted(patterns)))
    return [name for name in names if not asked.fullmatch(name)]


def test_every_golden_is_asked_for_by_name() -> None:
    names = list(json.loads((TESTS / "golden" / "goldens.json").read_text(encoding="utf-8")))
    names.remove("origin")
    sources = [
        path.read_text(encoding="utf-8")
        for path in sorted(TESTS.rglob("test_*.py"))
        if path != Path(__file__)
    ]
    assert unused(names, sources) == []


def test_a_golden_that_no_test_asks_for_is_seen() -> None:
    sources = ["golden('a/one')", "for r in (1, 2):\n    golden(f'b/ratio r={r}')", "golden(f'{x}')"]
    assert unused(["a/one", "b/ratio r=1", "b/ratio r=3", "c/two"], sources) == ["c/two"]
