"""The contract of a method, clause by clause, run on one configuration of it.

    check(MyMethod)                             its defaults, and its attribute `example` where fields need values
    check({"method": "linupper", "r": 0.4})     what a policy holds

Needs hypothesis; for draw and mix methods the server's packages too.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from steelyard.testing.contract.subject import ContractError, Subject, subject_of

__all__ = ["ContractError", "check"]


def check(
    method: Mapping[str, Any] | type[Any],
    *,
    family: str | None = None,
    columns: Mapping[str, npt.ArrayLike] | None = None,
) -> None:
    """Runs the whole contract of the method's family. ContractError names the clause and what came.

    `family` is needed where a configuration's name is that of methods of two families. `columns` are values for the
    static columns that the method reads, gone through over and over; without, they are made up.
    """
    subject = subject_of(method, family, columns or {})
    with subject.registered():
        clauses = importlib.import_module(f"steelyard.testing.contract.{subject.family}").CLAUSES
        for clause in clauses:
            _run(subject, clause)


def _run(subject: Subject, clause: Any) -> None:
    promise = clause.__name__.replace("_", " ")
    try:
        clause(subject)
    except Exception as error:
        raise ContractError(
            f"{subject.family} method {subject.name!r} breaks its contract: {promise}: "
            f"{type(error).__name__}: {error}"
        ) from error
