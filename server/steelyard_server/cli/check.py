"""steelyard check: whether all that is stored is what was written.

Exit status: 0 nothing is damaged, 1 something is, 2 it could not be checked.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard.errors import SteelyardError
from steelyard_server.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    AsJson,
    Ca,
    Cert,
    Key,
    Timeout,
    TokenFile,
    connected,
    print_json,
)
from steelyard_server.history.errors import StoreError
from steelyard_server.keeping.errors import BrokenOffError, DiedError, KeepingError, NotWholeError


def check(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Check this folder of a server that does not run; also the pages of its file."
        ),
    ] = None,
    backup: Annotated[
        str, typer.Option(metavar="PLACE", help="Check this backup, or the newest in this folder or URL.")
    ] = "",
    deep: Annotated[bool, typer.Option(help="Replay each run from checkpoint to checkpoint, too.")] = False,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = 3600.0,
    as_json: AsJson = False,
) -> None:
    """Read everything that is stored and compare it with its checksums, chains and indices. Changes nothing.

    Asks the server at --address, beside its trainers, unless --data-dir or --backup is given.
    """
    if data_dir is not None and backup:
        raise typer.BadParameter("expected one of --data-dir and --backup, got both")
    try:
        if data_dir is None and not backup:
            with connected(address, timeout, ca, cert, key, token_file) as client:
                report = client.admin.check(deep=deep, timeout=timeout)
            findings = [dataclasses.asdict(finding) for finding in report.findings]
            figures: dict[str, Any] = report.figures
        else:
            findings, figures = _checked_here(data_dir, backup, deep, timeout)
    except (SteelyardError, StoreError, KeepingError, OSError) as error:
        typer.echo(f"steelyard: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from None
    damaged = any(one["severity"] == "damage" for one in findings)
    if as_json:
        print_json({"damaged": damaged, "findings": findings, "report": figures})
    else:
        _print(findings, figures)
    raise typer.Exit(1 if damaged else 0)


def _checked_here(
    data_dir: Path | None, backup: str, deep: bool, timeout: float
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    if data_dir is not None:
        from steelyard_server.keeping.offline import check as check_offline

        return check_offline(data_dir, deep, timeout)
    from steelyard_server.keeping.restoring import verify

    try:
        made = verify(backup, deep=deep, seconds=timeout)
    except BrokenOffError:
        raise
    except (NotWholeError, DiedError) as error:
        return [
            {"severity": "damage", "where": backup, "what": str(error), "remedy": "use another backup"}
        ], {}
    return [], {"name": made.name, "bytes": made.bytes, "runs": len(made.runs)}


def _print(findings: list[dict[str, str]], figures: dict[str, Any]) -> None:
    for one in findings:
        typer.echo(f"{one['severity']}: {one['where']}: {one['what']}")
        if one["remedy"]:
            typer.echo(f"    what to do: {one['remedy']}")
    for name, value in figures.items():
        typer.echo(f"{name.replace('_', ' ')}: {value}")
    damages = sum(one["severity"] == "damage" for one in findings)
    typer.echo(f"{damages} damages" if damages else "nothing is damaged")
