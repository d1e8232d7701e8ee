"""Rules as configurations: {"method": name, parameter: value, ...}, as a policy holds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from steelyard.weigh import checks
from steelyard.weigh.registry import METHODS, find, names
from steelyard.weigh.rule import Rule, server_only

__all__ = ["METHODS", "WHERE", "parameters_of", "parse", "parse_where", "to_config"]

WHERE = ("auto", "server", "client")
"""Where the arithmetic runs: on the server, in the trainer, or wherever it is cheaper."""


def parse(config: Mapping[str, Any]) -> Rule:
    """The rule that a configuration asks for.

    ValueError: no method, an unknown method or parameter (the message names the nearest and lists the known
    ones), a value of the wrong type or out of range, or "where": "client" for a rule that only the server can
    weigh by. The key "where" is otherwise left to parse_where.
    """
    where = parse_where(config)
    if "method" not in config:
        came = ", ".join(map(str, config)) or "an empty configuration"
        raise ValueError(f"weigh: expected a method ({', '.join(names())}), got only {came}")
    kind = find(config["method"])
    parameters = {name: value for name, value in config.items() if name not in ("method", "where")}
    for name in parameters:
        _check_parameter(kind, name)
    rule = kind(**parameters)
    reason = server_only(rule)
    if where == "client" and reason is not None:
        raise ValueError(
            f'weigh.where: expected "server" or "auto" for {rule.method}, because {reason}; got "client"'
        )
    return rule


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
