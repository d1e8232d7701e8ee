"""Checks of a rule's parameters. Each returns the value in its one canonical type, or raises ValueError."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any


def number(name: str, value: Any, low: float, high: float) -> float:
    """A finite number in [low, high]; bools are not numbers."""
    amount = _real(name, value, "a number")
    if not low <= amount <= high:
        raise ValueError(f"{name}: expected a number from {low:g} to {high:g}, got {value}")
    return amount


def count(name: str, value: Any, low: int = 0) -> int:
    """An integer of at least `low`. A float without a fraction is one: JSON and protobuf know no integers."""
    amount = _real(name, value, "an integer")
    if not amount.is_integer() or not low <= amount <= 2**53:
        raise ValueError(f"{name}: expected an integer of at least {low}, got {value}")
    return int(amount)


def share(name: str, value: Any) -> float:
    """A part of a whole: a number above 0 (from a millionth) and at most 1."""
    return number(name, value, 1e-6, 1.0)


def text(name: str, value: Any) -> str:
    """A word that is not empty: the name of a column or signal."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}: expected a name, got {describe(value)}")
    return value


def flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected true or false, got {describe(value)}")
    return value


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the known words."""
    known = list(known)
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {describe(value)}")
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}{nearest(value, known)}")
    return value


def schedule(name: str, value: Any, low: float, high: float) -> tuple[tuple[int, float], ...] | None:
    """None, or (step, number) pairs in ascending order of the step, at least one."""
    if value is None:
        return None
    if not _is_sequence(value) or len(value) == 0:
        raise ValueError(f"{name}: expected a list of (step, number) pairs, got {describe(value)}")
    pairs: list[tuple[int, float]] = []
    for place, pair in enumerate(value):
        entry = f"{name}[{place}]"
        if not _is_sequence(pair) or len(pair) != 2:
            raise ValueError(f"{entry}: expected a (step, number) pair, got {describe(pair)}")
        pairs.append((count(f"{entry} step", pair[0]), number(f"{entry} value", pair[1], low, high)))
        if place and pairs[-1][0] <= pairs[-2][0]:
            raise ValueError(f"{entry} step: expected one above {pairs[-2][0]}, got {pairs[-1][0]}")
    return tuple(pairs)


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that it may have meant, if any is near."""
    spelt = {one.lower(): one for one in known}
    found = difflib.get_close_matches(word.lower(), spelt, n=1, cutoff=0.4)
    return f"; did you mean {spelt[found[0]]!r}?" if found else ""


def describe(value: Any) -> str:
    """A value and its type, short enough for a message."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _real(name: str, value: Any, expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}: expected {expected}, got {describe(value)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf
