"""Backups and checks of a server: client.admin gives them. For whoever operates it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from steelyard.answers import answers
from steelyard.arguments import seconds
from steelyard.errors import SteelyardError
from steelyard.transport import Transport
from steelyard.v1 import admin_pb2 as pb

_SECONDS = 3600.0
_CHECKING = "checking the store"


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup; `place`/`name` is what `steelyard restore --from` takes. Times in seconds since 1970, sizes in
    bytes."""

    name: str
    place: str
    created: float
    bytes: int
    steelyard_version: str
    store_format: int
    datasets: int
    runs: dict[str, int]
    """The next step of each run, by name."""
    verified: float | None
    """When a restore of it was verified last."""
    fault: str
    """Why it cannot be used; empty where it can."""


@dataclass(frozen=True, slots=True)
class Finding:
    """`damage`: something is not what was written. `note`: worth knowing, and nothing is lost."""

    severity: Literal["damage", "note"]
    where: str
    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check read, and what it found. Sizes in bytes."""

    findings: tuple[Finding, ...]
    figures: dict[str, int]

    @property
    def damaged(self) -> bool:
        return any(finding.severity == "damage" for finding in self.findings)


class Admin:
    """What an operator asks of a server. Calls take long: each has a `timeout` of its own, in seconds."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def backup(self, to: str = "", *, timeout: float = _SECONDS) -> Backup:
        """Has the server make a backup, by default in its backup_to, else at `to`, which must lie below that.

        It holds all that was acknowledged before the call. FailedPrecondition: the server has no backup_to, or `to` is
        outside. Aborted: another one is under way. Not repeated by itself: each call makes one.
        """
        with self._patient(timeout) as transport:
            answer = transport.call(lambda to_: to_.admin.Backup, pb.BackupRequest(to=to), "making a backup")
        return _backup(answer.backup)

    def backups(self, to: str = "") -> list[Backup]:
        """The whole backups of the server's backup_to, or at `to` below it; oldest first."""
        answer = self._transport.call(
            lambda to_: to_.admin.ListBackups, pb.ListBackupsRequest(to=to), "listing the backups"
        )
        return [_backup(one) for one in answer.backups]

    def check(
        self,
        *,
        deep: bool = False,
        timeout: float = _SECONDS,
        on_progress: Callable[[str], object] = lambda _: None,
    ) -> CheckReport:
        """Has the server read and check all that it stores, beside its trainers. `deep`: replays runs as well.

        `timeout`: how long nothing may be heard. Aborted: another check is under way.
        """
        findings: list[Finding] = []
        report: CheckReport | None = None
        with self._patient(timeout) as transport:
            # To the end, also after the report: the server counts a call that is left before as cancelled.
            request = pb.CheckRequest(deep=deep)
            transport.abilities(
                _CHECKING
            )  # a call that waits for the server, or tells why there is no connection
            for message in answers(transport, lambda to: to.admin.Check, request, _CHECKING):
                match message.WhichOneof("said"):
                    case "progress":
                        on_progress(message.progress)
                    case "finding":
                        findings.append(_finding(message.finding))
                    case "report":
                        report = CheckReport(tuple(findings), _figures(message.report))
        if report is None:
            raise SteelyardError(f"the check by {self._transport.address} ended without a report")
        return report

    @contextmanager
    def _patient(self, timeout: float) -> Iterator[Transport]:
        """The way to the same server, with another patience than the client's."""
        own = self._transport
        transport = Transport(own.address, seconds("timeout", timeout), own.credentials)
        try:
            yield transport
        finally:
            transport.close()


def _figures(report: pb.CheckReport) -> dict[str, int]:
    return {field.name: getattr(report, field.name) for field in report.DESCRIPTOR.fields}


def _finding(message: pb.Finding) -> Finding:
    severity: Literal["damage", "note"] = "note" if message.severity == pb.SEVERITY_NOTE else "damage"
    return Finding(severity, message.where, message.what, message.remedy)


def _backup(message: pb.Backup) -> Backup:
    return Backup(
        name=message.name,
        place=message.place,
        created=message.created_unix_seconds,
        bytes=message.bytes,
        steelyard_version=message.steelyard_version,
        store_format=message.store_format,
        datasets=message.datasets,
        runs={run.name: run.next_step for run in message.runs},
        verified=message.verified_unix_seconds if message.HasField("verified_unix_seconds") else None,
        fault=message.fault,
    )
