"""Rules as configurations: {"method": name, parameter: value, ...}, as a policy holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from steelyard.weigh import checks
from steelyard.weigh.extremes import Extremes
from steelyard.weigh.importance import Importance
from steelyard.weigh.linupper import LinUpper
from steelyard.weigh.quadratic import Quadratic
from steelyard.weigh.rule import Rule
from steelyard.weigh.uniform import Uniform
from steelyard.weigh.upper import Upper

METHODS: Mapping[str, type[Rule]] = MappingProxyType(
    {rule.method: rule for rule in (Uniform, LinUpper, Quadratic, Extremes, Upper, Importance)}
)
"""Every rule by its name."""

WHERE = ("auto", "server", "client")
"""Where the arithmetic runs: on the server, in the trainer, or wherever it is cheaper."""


def parse(config: Mapping[str, Any]) -> Rule:
    """The rule that a configuration asks for.

    ValueError: no method, an unknown method or parameter (the message names the nearest and lists the known
    ones), or a value of the wrong type or out of range. The key "where" is checked and otherwise left to
    parse_where.
    """
    parse_where(config)
    if "method" not in config:
        came = ", ".join(map(str, config)) or "an empty configuration"
        raise ValueError(f"weigh: expected a method ({', '.join(METHODS)}), got only {came}")
    rule = METHODS[checks.choice("weigh.method", config["method"], METHODS)]
    parameters = {name: value for name, value in config.items() if name not in ("method", "where")}
    for name in parameters:
        _check_parameter(rule, name)
    return rule(**parameters)


def parse_where(config: Mapping[str, Any]) -> str:
    """Where the configuration wants the arithmetic, "auto" if it does not say. ValueError: another word."""
    if not isinstance(config, Mapping):
        raise ValueError(f"weigh: expected a mapping with a method, got {checks.describe(config)}")
    return checks.choice("weigh.where", config.get("where", "auto"), WHERE)


def to_config(rule: Rule) -> dict[str, Any]:
    """The canonical configuration of a rule: every parameter, in JSON's types. parse gives the rule back."""
    config: dict[str, Any] = {"method": rule.method}
    for name in parameters_of(type(rule)):
        value = getattr(rule, name)
        if value is not None:
            config[name] = [list(pair) for pair in value] if isinstance(value, tuple) else value
    return config


def parameters_of(rule: type[Rule]) -> tuple[str, ...]:
    """The names of a rule's parameters."""
    return tuple(field.name for field in dataclasses.fields(cast("Any", rule)))


def _check_parameter(rule: type[Rule], name: Any) -> None:
    known = parameters_of(rule)
    if not known:
        raise ValueError(f"weigh: {rule.method} has no parameters, got {name!r}")
    checks.choice(f"weigh: parameter of {rule.method}", name, known)
