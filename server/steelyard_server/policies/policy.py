"""A run's policy: how it draws and how it weighs, validated together."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from steelyard import weigh
from steelyard_server.policies.columns import Derived
from steelyard_server.policies.draw import METHODS, Draw, Drawer, Examples
from steelyard_server.policies.draw.contract import Float32s

_OWN = "own:"


class PolicyError(ValueError):
    """The policy cannot be used; the message says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Policy:
    draw: Draw
    weigh: weigh.Rule
    where: str
    """Where the weights are computed: "auto", "server" or "client"."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        """The columns folded from reports that the policy reads."""
        return self.draw.derived

    @property
    def static(self) -> tuple[str, ...]:
        """The uploaded columns that it reads."""
        return self.draw.static

    @property
    def own(self) -> tuple[str, ...]:
        """The columns that its drawer keeps for itself."""
        return self.draw.own

    @property
    def listens(self) -> tuple[str, ...]:
        """The signals that its drawer is told of."""
        return self.draw.listens

    @property
    def reads_reports(self) -> bool:
        return self.draw.reads_reports

    def draws_as(self, other: Policy) -> bool:
        """Whether both draw by the same law: then a change from one to the other leaves the drawer as it is."""
        return self.draw == other.draw

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> Drawer:
        """What draws the batches; as Draw.drawer."""
        return self.draw.drawer(examples, seed=seed, batch_size=batch_size, state=state)

    def too_small(self, drawable: int, batch_size: int) -> str | None:
        """Why a batch cannot be drawn from so few examples; None where it can."""
        return self.draw.too_small(drawable, batch_size)

    def objection(self, column: str, values: Float32s) -> str | None:
        """Why finite `values` of `column` cannot be used; None where they can."""
        return self.draw.objection(column, values)

    def canonical(self) -> dict[str, Any]:
        """The policy with all defaults filled in, as JSON values."""
        return {"draw": self.draw.canonical(), "weigh": {**weigh.to_config(self.weigh), "where": self.where}}


def parse_policy(draw: Mapping[str, Any], weigher: Mapping[str, Any]) -> Policy:
    """Validates a policy given as plain JSON values; PolicyError names what is wrong and the nearest right name."""
    try:
        rule, where = weigh.parse(weigher), weigh.parse_where(weigher)
    except (ValueError, TypeError) as error:
        raise PolicyError(f"weigh: {error}") from error
    policy = Policy(_parse_draw(draw), rule, where)
    _refuse_misnamed_columns(policy)
    _refuse_double_counting(policy)
    return policy


def _parse_draw(config: Mapping[str, Any]) -> Draw:
    name = config.get("method")
    if not isinstance(name, str) or name not in METHODS:
        raise PolicyError(
            f"draw: expected method to be {_one_of(METHODS)}; got {name!r}{_nearest(name, METHODS)}"
        )
    method = METHODS[name]
    try:
        return method.parse(config)
    except ValidationError as error:
        raise PolicyError("; ".join(_explain(method, name, detail) for detail in error.errors())) from error


def _explain(method: type[Draw], name: str, detail: Any) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = method.model_fields
        return f"draw: method {name!r} has no field {field!r}{_nearest(field, known)}; its fields are {_one_of(known)}"
    return f"draw.{field}: {detail['msg']}; got {detail['input']!r}"


def _refuse_misnamed_columns(policy: Policy) -> None:
    """A colon is in no name of an uploaded column, so that a method's own columns are never anybody else's."""
    for name in policy.static:
        if name.startswith(_OWN):
            raise PolicyError(
                f"draw: {name!r} is a method's own column, which no draw may read as an uploaded one"
            )
    for name in policy.own:
        if not name.startswith(_OWN):
            raise PolicyError(f"draw: expected a method's own column to be named {_OWN}NAME, got {name!r}")


def _refuse_double_counting(policy: Policy) -> None:
    by_loss = [column.name for column in policy.derived if column.signal == "loss"]
    by_loss += [f"each reported {signal}" for signal in policy.listens if signal == "loss"]
    if by_loss and policy.weigh.reads == "losses":
        raise PolicyError(
            f"the draw reads {by_loss[0]} and the weigher reads the losses again, so a high loss would count twice; "
            "draw by 'shuffle' and weigh by the losses, or draw by them and weigh by 'uniform' or 'importance'"
        )


def _one_of(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names))


def _nearest(name: object, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
