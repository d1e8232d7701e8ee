"""Where a method comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """What a method was built from: the paper (title, authors, year) and the place in it or in its authors' code."""

    paper: str
    where: str
