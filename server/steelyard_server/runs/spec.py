"""What a run was created with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steelyard_server.policies.policy import Policy, PolicyError, faults_of, parse_policy, said_of
from steelyard_server.runs.errors import Invalid

NAME = r"^[A-Za-z0-9._-]{1,128}$"
MAX_BATCH_SIZE = 1 << 20
MAX_STALENESS = 4096
LEAST_REPORT_WINDOW = 256


class RunSpec(BaseModel):
    """The run specification, canonical: two specs are equal when they mean the same."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: Annotated[str, Field(pattern=NAME)]
    dataset: Annotated[str, Field(pattern=NAME)]
    batch_size: Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)]
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    draw: dict[str, Any]
    mix: dict[str, Any] = {"method": "none"}
    weigh: dict[str, Any]
    staleness: Annotated[int, Field(ge=0, le=MAX_STALENESS)] | Literal["any"] = 16
    on_nonfinite: Literal["skip", "reject"] = "skip"
    report_timeout: Annotated[float, Field(gt=0, le=7 * 86400)] = 600.0
    history_size: Annotated[int, Field(ge=0, le=255)] = 8
    retain_steps: Annotated[int, Field(ge=1)] = 100_000

    @property
    def policy(self) -> Policy:
        return parse_policy(self.draw, self.weigh, self.mix)

    @property
    def report_window(self) -> int:
        """Steps whose reports are still taken; older ones are closed as they are."""
        prefetched = self.staleness if isinstance(self.staleness, int) else 0
        return max(LEAST_REPORT_WINDOW, 2 * prefetched)

    def first_difference(self, other: RunSpec) -> str | None:
        """The first field that differs, with both values, or None."""
        for field in type(self).model_fields:
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine != theirs:
                return f"{field} is {mine!r} there and {theirs!r} here"
        return None


def parse_spec(values: Mapping[str, Any]) -> RunSpec:
    """Validates a run specification; Invalid says what was expected and what came."""
    try:
        policy = parse_policy(values.get("draw", {}), values.get("weigh", {}), values.get("mix"))
        return RunSpec.model_validate({**values, **policy.canonical()})
    except PolicyError as error:
        raise Invalid(str(error)) from error
    except ValidationError as error:
        raise Invalid(explain(error)) from error


def explain(error: ValidationError) -> str:
    """A validation error in one line: field, what was expected, what came."""
    return "; ".join(
        f"{'.'.join(str(part) for part in detail['loc'])}: {said_of(detail)}; got {detail['input']!r}"
        for detail in faults_of(error)
    )
