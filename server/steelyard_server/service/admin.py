"""AdminService."""

from __future__ import annotations

from collections.abc import Iterator

from steelyard.v1 import admin_pb2 as pb
from steelyard_server.keeping.keeper import Keeper, Kept
from steelyard_server.keeping.manifest import Manifest
from steelyard_server.service.calls import NOTHING_YET, NothingYet

_SEVERITIES = {"damage": pb.SEVERITY_DAMAGE, "note": pb.SEVERITY_NOTE}


class AdminService:
    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def Backup(self, request: pb.BackupRequest) -> pb.BackupResponse:
        made, removed = self._keeper.backup(request.to)
        return pb.BackupResponse(
            backup=_backup(Kept(made.name, made, None), self._keeper.place(request.to)), removed=removed
        )

    def ListBackups(self, request: pb.ListBackupsRequest) -> pb.ListBackupsResponse:
        place = self._keeper.place(request.to)
        return pb.ListBackupsResponse(
            backups=[_backup(kept, place) for kept in self._keeper.backups(request.to)]
        )

    def Check(self, request: pb.CheckRequest) -> Iterator[pb.CheckResponse | NothingYet]:
        for said in self._keeper.check(deep=request.deep):
            if "finding" in said:
                found = said["finding"]
                yield pb.CheckResponse(
                    finding=pb.Finding(
                        severity=_SEVERITIES[found["severity"]],
                        where=found["where"],
                        what=found["what"],
                        remedy=found["do"],
                    )
                )
            elif "report" in said:
                yield pb.CheckResponse(report=pb.CheckReport(**said["report"]))
            elif "progress" in said:
                yield pb.CheckResponse(progress=said["progress"])
            else:
                yield NOTHING_YET


def _backup(kept: Kept, place: str) -> pb.Backup:
    backup = pb.Backup(name=kept.name, place=place, fault=kept.fault)
    if kept.made is not None:
        _fill(backup, kept.made)
    if kept.verified_unix_seconds is not None:
        backup.verified_unix_seconds = kept.verified_unix_seconds
    return backup


def _fill(backup: pb.Backup, made: Manifest) -> None:
    backup.created_unix_seconds = made.created_unix_seconds
    backup.bytes = made.bytes
    backup.steelyard_version = made.steelyard_version
    backup.store_format = made.store_format
    backup.datasets = len(made.datasets)
    for run in made.runs:
        backup.runs.add(name=run.name, next_step=run.next_step, journal_records=run.journal_records)
