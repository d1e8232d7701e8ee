"""The access file: who is who, and who may do what.

[[principals]]
name = "gpt-trainers"
certificates = ["spiffe://cluster/ns/training/sa/gpt"]

[[principals.grants]]
verbs = ["draw", "report", "read"]
runs = ["gpt-*"]
datasets = ["stdlib"]
"""

from __future__ import annotations

import hmac
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from steelyard_server.security import quotas
from steelyard_server.security.caller import Caller
from steelyard_server.security.evidence import Certificate, Evidence, Hashed, Local, Proven
from steelyard_server.security.grants import PATTERN, Rights, Verb

Pattern = Annotated[str, StringConstraints(pattern=f"^{PATTERN}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._@:/-]{1,128}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


class TableError(ValueError):
    """An access file that is refused; the message has one line per fault."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Quota(_Part):
    """Over it, calls are RESOURCE_EXHAUSTED and streams are read more slowly. Bytes count in both directions."""

    calls_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    bytes_per_second: Annotated[ByteSize, Field(ge=1)] | None = None


class Grant(_Part):
    """The verbs on every run and on every dataset whose name matches one of the patterns."""

    verbs: Annotated[tuple[Verb, ...], Field(min_length=1)]
    runs: tuple[Pattern, ...] = ()
    datasets: tuple[Pattern, ...] = ()

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.runs and not self.datasets:
            raise ValueError("expected patterns of runs, of datasets, or of both; got neither")
        return self


class JwtRule(_Part):
    """All that is said of a token must be so; a claim that is a list must contain the value."""

    subject: Text | None = None
    claims: dict[str, Text | int | bool] = {}

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.subject is None and not self.claims:
            raise ValueError("expected a subject, claims, or both; got neither")
        return self

    def fits(self, claims: Mapping[str, Any]) -> bool:
        wanted = self.claims if self.subject is None else {**self.claims, "sub": self.subject}
        return all(name in claims and _says(claims[name], value) for name, value in wanted.items())


class Principal(_Part):
    """One that calls: how it is recognised, and what it may do. Any one of the ways is enough."""

    name: Name
    certificates: tuple[Text, ...] = ()
    """Alternative names of a client certificate, exactly as they stand there, spiffe:// ones too."""
    common_names: tuple[Text, ...] = ()
    """Common names of a client certificate: only of those that bear no alternative names."""
    token_sha256: tuple[Sha256, ...] = ()
    """SHA-256 of a token, in hexadecimal; `steelyard token` makes both."""
    jwt: tuple[JwtRule, ...] = ()
    local: bool = False
    """Whoever may open the unix socket."""
    grants: tuple[Grant, ...] = ()
    quota: Quota = Quota()

    @cached_property
    def rights(self) -> Rights:
        return Rights.of(self.grants)

    def recognises(self, evidence: Evidence) -> bool:
        match evidence:
            case Certificate(names, common_name):
                # Who signs requests for certificates may judge their alternative names alone.
                by_common_name = not names and common_name in self.common_names
                return by_common_name or any(name in names for name in self.certificates)
            case Hashed(digest):
                # All are compared, so that the time does not tell which.
                return sum(hmac.compare_digest(known, digest) for known in self.token_sha256) > 0
            case Proven(claims):
                return any(rule.fits(claims) for rule in self.jwt)
            case Local():
                return self.local


class Table(_Part):
    """The whole file. Who is in no row may do nothing."""

    principals: tuple[Principal, ...] = ()

    @model_validator(mode="after")
    def _tells_them_apart(self) -> Self:
        for what, values in (
            ("name", [one.name for one in self.principals]),
            ("certificate", [name for one in self.principals for name in set(one.certificates)]),
            ("common name", [name for one in self.principals for name in set(one.common_names)]),
            ("token hash", [digest for one in self.principals for digest in set(one.token_sha256)]),
            ("local socket", ["local" for one in self.principals if one.local]),
        ):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(f"expected every {what} to be of one principal; {twice[0]!r} is of several")
        return self

    def recognise(self, evidence: Evidence) -> Caller | None:
        """The first principal of the file that fits; None where none does."""
        found = [one for one in self.principals if one.recognises(evidence)]
        if not found:
            return None
        one = found[0]
        expires_at = evidence.expires_at if isinstance(evidence, Proven) else None
        return Caller(one.name, one.rights, _quota(one.quota), expires_at)

    @property
    def has_hashes(self) -> bool:
        return any(one.token_sha256 for one in self.principals)

    @property
    def ways(self) -> frozenset[str]:
        """The ways in which its principals are recognised."""
        return frozenset(
            way
            for one in self.principals
            for way, given in (
                ("certificate", one.certificates or one.common_names),
                ("token", one.token_sha256),
                ("jwt", one.jwt),
                ("local", one.local),
            )
            if given
        )


def parse(data: bytes) -> Table:
    """TableError says where in the file what was expected and what came; never a secret, since there is none in it."""
    try:
        return Table.model_validate(tomllib.loads(data.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TableError(f"not TOML: {error}") from None
    except ValidationError as error:
        raise TableError(
            "\n".join(
                f"{_place(fault['loc'])}: {fault['msg'].removeprefix('Value error, ')}"
                for fault in error.errors(include_url=False, include_input=False)
            )
        ) from None


def _place(loc: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
    return re.sub(r"\.(str|int|bool)$", "", text) or "the file"


def _says(claim: Any, value: str | int | bool) -> bool:
    if isinstance(claim, list):
        return any(_says(one, value) for one in claim)
    return type(claim) is type(value) and claim == value


def _quota(quota: Quota) -> quotas.Quota:
    return quotas.Quota(
        quota.calls_per_second, None if quota.bytes_per_second is None else float(quota.bytes_per_second)
    )
