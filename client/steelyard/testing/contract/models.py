"""What holds for the parameters of methods that are pydantic models: those of draw and of mix."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from steelyard.testing.contract.subject import Subject


def the_configuration_survives_being_stored(subject: Subject) -> None:
    model = subject.method.parse(subject.config)
    stored = json.loads(json.dumps(model.canonical()))
    again = subject.method.parse(stored)
    assert again == model, f"{stored} gives {again!r}, expected {model!r}"
    assert isinstance(subject.method.never_reported, str)
    assert subject.method.never_reported, "never_reported is empty"


def bad_parameters_are_refused_by_name(subject: Subject) -> None:
    canonical = subject.method.parse(subject.config).canonical()
    for name, field in subject.method.model_fields.items():
        for bad in (float("nan"), {"no": "such"}, *_outside(field.metadata)):
            _refused(subject, {**canonical, name: bad}, name)
    _refused(subject, {**canonical, "no_such_parameter": 1}, "no_such_parameter")


def _outside(metadata: list[Any]) -> Iterator[float]:
    """Numbers just outside of the limits that a field states."""
    for limit in metadata:
        for word, beyond in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            edge = getattr(limit, word, None)
            if edge is not None:
                yield edge + beyond * max(1.0, abs(edge))


def _refused(subject: Subject, config: dict[str, Any], name: str) -> None:
    message = ""
    try:
        subject.method.parse(config)
    except ValueError as error:
        message = str(error)
    assert message, f"{name} = {config[name]!r} was taken"
    assert name in message, f"the message about {name} does not name it: {message}"
