"""What a backup says of itself: written when all the rest is there, and without it there is no backup.

    manifest.json = {"manifest": {...}, "sha256": of the value of "manifest" as canonical JSON}

A newer `version` is refused: it may mean something else.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import NotWholeError

FILE = "manifest.json"
VERSION = 1
MOST_BYTES = 64 << 20
"""Of a manifest: 1000 runs take half a megabyte."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Frozen):
    """A piece of the data file; all of them, in order, are the file."""

    name: str = Field(pattern=r"^data\.\d{5}$")
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class DatasetFacts(_Frozen):
    name: str
    size: int
    retired: int
    fingerprint: str


class RunFacts(_Frozen):
    """How far a run is: the next step to draw, and how many records its journal has had; `chain` is the hash chain at
    its end, so two backups of equal chains hold the same history."""

    name: str
    dataset: str
    next_step: int
    journal_records: int
    chain: str = Field(pattern=r"^[0-9a-f]{32}$")


class Manifest(_Frozen):
    version: Literal[1] = 1
    name: str
    created_unix_seconds: float
    steelyard_version: str
    store_format: int
    transaction: int
    """LMDB's number of the last commit that is in it."""
    bytes: int
    parts: tuple[Part, ...]
    datasets: tuple[DatasetFacts, ...]
    runs: tuple[RunFacts, ...]


def to_bytes(manifest: Manifest) -> bytes:
    value = manifest.model_dump(mode="json")
    return (
        json.dumps({"manifest": value, "sha256": _digest(value)}, indent=1, sort_keys=True).encode() + b"\n"
    )


def from_bytes(data: bytes, where: str) -> Manifest:
    """NotWholeError where it is not a whole manifest, or one of a newer program."""
    try:
        outer = json.loads(data)
        value, digest = outer["manifest"], outer["sha256"]
        version = value["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise NotWholeError(
            f"{where}: expected a whole {FILE}, found {len(data)} bytes that are none"
        ) from error
    if isinstance(version, int) and version > VERSION:
        raise NotWholeError(
            f"{where}: the backup has manifest version {version}; this program knows {VERSION} and older"
        )
    if _digest(value) != digest:
        raise NotWholeError(f"{where}: {FILE} is not as it was written: its own hash does not fit it")
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        raise NotWholeError(
            f"{where}: {FILE} is not of version {VERSION}: {error.errors()[0]['msg']}"
        ) from error
    if manifest.bytes != sum(part.bytes for part in manifest.parts):
        raise NotWholeError(f"{where}: the parts in {FILE} do not add up to {manifest.bytes} bytes")
    return manifest


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
