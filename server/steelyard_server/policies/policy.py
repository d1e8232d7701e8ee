"""A run's policy: how it draws, in what mix of groups, and how it weighs, validated together."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from steelyard import weigh
from steelyard_server.policies.columns import SERVED, Derived, parse_derived
from steelyard_server.policies.draw import METHODS, Draw, Drawer, Examples
from steelyard_server.policies.draw.contract import Float32s, Ids
from steelyard_server.policies.inputs import Input
from steelyard_server.policies.mix import METHODS as MIXES
from steelyard_server.policies.mix import Mix, groups
from steelyard_server.policies.mix.drawer import KEPT, MixDrawer, chooses
from steelyard_server.policies.refusals import HANDS_ON, double_counted, mixed_twice, weights_lost

T = TypeVar("T", bound=BaseModel)

NO_MIX: Mapping[str, Any] = {"method": "none"}
"""Batches are drawn from all examples, whatever group they are in."""

_OWN = "own:"
_LONGEST_SIGNAL = 64  # as of reports


class PolicyError(ValueError):
    """The policy cannot be used; the message says what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Policy:
    draw: Draw
    weigh: weigh.Rule
    where: str
    """Where the weights are computed: "auto", "server" or "client"."""
    mix: Mix | None = None
    """None: batches are drawn from all examples, whatever group they are in."""

    @property
    def derived(self) -> tuple[Derived, ...]:
        """The columns folded from reports that the policy reads."""
        return self.draw.derived

    @property
    def static(self) -> tuple[str, ...]:
        """The uploaded columns that it reads, each once."""
        return tuple(dict.fromkeys([*self.drawn_by, *self.weigh.columns]))

    @property
    def drawn_by(self) -> tuple[str, ...]:
        """The uploaded columns that batches are drawn by."""
        if self.mix is None:
            return self.draw.static
        return (*self.draw.static, self.mix.group, *self.mix.columns)

    @property
    def only_weighed(self) -> frozenset[str]:
        """The uploaded columns that no draw reads."""
        return frozenset(self.weigh.columns) - frozenset(self.drawn_by)

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What its methods read that somebody else must bring."""
        draw, rule = self.draw, self.weigh
        through = {column.signal: column.name for column in draw.derived if column.signal != SERVED}
        read = {**dict.fromkeys(draw.listens, ""), **through}
        mixes = () if self.mix is None else (self.mix,)
        return (
            *(Input("draw", draw.method, "signal", name, column) for name, column in read.items()),
            *(Input("draw", draw.method, "column", name) for name in draw.static),
            *(Input("mix", mix.method, "signal", name) for mix in mixes for name in mix.signals),
            *(
                Input("mix", mix.method, "column", name)
                for mix in mixes
                for name in (mix.group, *mix.columns)
            ),
            *(Input("weigh", rule.method, "signal", name) for name in rule.signals),
            *(Input("weigh", rule.method, "column", name) for name in rule.columns),
        )

    @property
    def own(self) -> tuple[str, ...]:
        """The columns that its drawer keeps for itself."""
        if self.mix is None or not chooses(self.mix):
            return self.draw.own
        return (*self.draw.own, KEPT)

    @property
    def listens(self) -> tuple[str, ...]:
        """The signals that its drawer is told of."""
        signals = () if self.mix is None else self.mix.signals
        return tuple(dict.fromkeys([*self.draw.listens, *signals]))

    @property
    def reads_reports(self) -> bool:
        return self.draw.reads_reports or (self.mix is not None and bool(self.mix.signals))

    def draws_as(self, other: Policy) -> bool:
        """Whether both draw by the same law: then a change from one to the other leaves the drawer as it is."""
        return self.draw == other.draw and self.mix == other.mix

    def inherited(self, before: Policy, state: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """What this policy's drawer takes over from that of the one `before` it, which left `state`; None where it
        begins anew. Where only the masses are given otherwise, the draws within the groups go on."""
        mix, former = self.mix, before.mix
        if state is None or mix is None or former is None or self.draw != before.draw:
            return None
        if mix.group != former.group or chooses(mix) or chooses(former):
            return None
        return {name: value for name, value in state.items() if name != "mix"}

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> Drawer:
        """What draws the batches; as Draw.drawer."""
        if self.mix is None:
            return self.draw.drawer(examples, seed=seed, batch_size=batch_size, state=state)
        return MixDrawer(self.mix, self.draw, examples, seed=seed, batch_size=batch_size, state=state)

    def too_small(self, drawable: int, batch_size: int) -> str | None:
        """Why a batch cannot be drawn from so few examples; None where it can."""
        return self.draw.too_small(drawable, batch_size)

    def objection(self, column: str, values: Float32s) -> str | None:
        """Why finite `values` of `column` cannot be used; None where they can."""
        if column in self.only_weighed:
            return None
        if self.mix is not None and column == self.mix.group:
            objection = groups.objection(column, values)
            if objection is not None:
                return objection
        return self.draw.objection(column, values)

    def field_of(self, column: str) -> tuple[str, bool]:
        """Which field asks for an uploaded column, as draw.score; and whether one folded from reports may stand there
        in its place. Only the part of the policy where no field names it."""
        parts = {name: values for name, values in self.canonical().items() if column in self._reads(name)}
        for part, values in parts.items():
            for field, value in values.items():
                if field == "method" or not (
                    value == column or (isinstance(value, list) and column in value)
                ):
                    continue
                return f"{part}.{field}", part == "draw" and self._may_be_derived(field)
        return next(iter(parts), "draw"), False

    def _reads(self, part: str) -> Collection[str]:
        if part == "weigh":
            return self.weigh.columns
        if part == "mix":
            return () if self.mix is None else (self.mix.group, *self.mix.columns)
        return self.draw.static

    def _may_be_derived(self, field: str) -> bool:
        try:
            other = type(self.draw).model_validate({**self.draw.canonical(), field: "last_loss"})
        except ValidationError:
            return False
        return "last_loss" in [name for one in other.derived for name in one.columns]

    def misfit(self, column: Callable[[str], Float32s], retired: Ids, batch_size: int) -> str | None:
        """Why the mix cannot serve a dataset with these columns and retired ids; None where it can. O(size)."""
        if self.mix is None:
            return None
        of = groups.group_ids(column(self.mix.group))
        sizes = groups.sizes_of(of, retired)
        if not sizes.any():
            return f"mix: expected examples with a group in column {self.mix.group!r}; none has one"
        try:
            self.mix.start(sizes)
        except ValueError as error:
            return str(error)
        if chooses(self.mix):
            columns = {name: column(name) for name in self.mix.columns}
            sizes = groups.sizes_of(groups.chosen(self.mix, of, columns, retired, 0), retired)
        reason = self.draw.too_small(int(sizes.sum()), batch_size)
        return reason and f"{reason} in the groups of column {self.mix.group!r}"

    def canonical(self) -> dict[str, Any]:
        """The policy with all defaults filled in, as JSON values."""
        return {
            "draw": self.draw.canonical(),
            "mix": dict(NO_MIX) if self.mix is None else self.mix.canonical(),
            "weigh": {**weigh.to_config(self.weigh), "where": self.where},
        }


def parse_policy(
    draw: Mapping[str, Any], weigher: Mapping[str, Any], mix: Mapping[str, Any] | None = None
) -> Policy:
    """Validates a policy given as plain JSON values; PolicyError names what is wrong and the nearest right name. `mix`:
    none where it is None or its method "none". An empty weigher is `default_weigher`'s."""
    drawn, mixed = _parse("draw", METHODS, draw), _parse_mix(NO_MIX if mix is None else mix)
    weigher = weigher or default_weigher(drawn)
    try:
        rule, where = weigh.parse(weigher), weigh.parse_where(weigher)
    except (ValueError, TypeError) as error:
        said = str(error)
        raise PolicyError(said if said.startswith("weigh") else f"weigh: {said}") from error
    for column in rule.columns:
        if parse_derived(column) is not None:
            raise PolicyError(
                f"weigh: expected {rule.method!r} to read uploaded columns; {column!r} is the name of one that is "
                "folded from reports"
            )
    refusal = double_counted(drawn, rule) or mixed_twice(mixed, rule) or weights_lost(drawn, rule)
    if refusal is not None:
        raise PolicyError(refusal)
    policy = Policy(drawn, rule, where, mixed)
    _refuse_misnamed_columns(policy)
    _refuse_misnamed_signals(policy)
    return policy


def default_weigher(draw: Draw) -> Mapping[str, Any]:
    """What a run weighs by that does not say: by what the draw gives where it gives anything, else all alike."""
    return {"method": HANDS_ON if draw.gives_weights else "uniform"}


def _parse_mix(config: Mapping[str, Any]) -> Mix | None:
    if config.get("method") != NO_MIX["method"]:
        return _parse("mix", MIXES, config, also=NO_MIX["method"])
    if fields := sorted(set(config) - {"method"}):
        raise PolicyError(f"mix: method 'none' has no fields; got {fields[0]!r}")
    return None


def _parse(family: str, methods: Mapping[str, type[T]], config: Mapping[str, Any], also: str = "") -> T:
    """The method of a family that a configuration states. `also`: a further name, to be told of."""
    name = config.get("method")
    if not isinstance(name, str) or name not in methods:
        known = [*methods, also] if also else list(methods)
        raise PolicyError(
            f"{family}: expected method to be {_one_of(known)}; got {name!r}{_nearest(name, known)}"
        )
    method = methods[name]
    try:
        return method.model_validate(dict(config))
    except ValidationError as error:
        details = faults_of(error)
        raise PolicyError("; ".join(_explain(family, method, name, detail) for detail in details)) from error


def _explain(family: str, method: type[BaseModel], name: str, detail: Any) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    said = said_of(detail)
    if detail["type"] == "extra_forbidden" and len(detail["loc"]) == 1:
        known = method.model_fields
        return (
            f"{family}: method {name!r} has no field {field!r}{_nearest(field, known)}; "
            f"its fields are {_one_of(known)}"
        )
    if not field:
        return f"{family}: {said}"
    return f"{family}.{field}: {said}; got {detail['input']!r}"


def faults_of(error: ValidationError) -> list[Any]:
    """The errors in it, less those of a list or object that only say that something in it was refused."""
    details = error.errors()
    places = [detail["loc"] for detail in details]
    return [
        detail
        for detail, place in zip(details, places, strict=True)
        if not any(len(other) > len(place) and other[: len(place)] == place for other in places)
    ]


def said_of(detail: Any) -> str:
    """What one of a ValidationError's errors says, without pydantic's word before what a method says itself."""
    if detail["type"] == "model_type":
        return f"expected an object with the fields of a {detail['ctx']['class_name'].lower()}"
    own = detail.get("ctx", {}).get("error") if detail["type"] == "value_error" else None
    return str(own or detail["msg"])


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


def _refuse_misnamed_signals(policy: Policy) -> None:
    """No report can bring such a one."""
    for one in policy.inputs:
        if one.kind == "signal" and not 1 <= len(one.name) <= _LONGEST_SIGNAL:
            raise PolicyError(
                f"{one.family}: expected signals with names of 1..{_LONGEST_SIGNAL} characters; {one.method!r} reads "
                f"{one.name[:80]!r}, of {len(one.name)}"
            )


def _one_of(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _nearest(name: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
