"""steelyard restore: a folder for a server to serve, from a backup."""

from pathlib import Path
from typing import Annotated

import typer

from steelyard_server.cli.options import AsJson, print_json


def restore(
    source: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="PLACE",
            help="A backup, or a folder or URL of several: the newest.",
            show_default=False,
        ),
    ],
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="The folder to restore to: empty, or not there yet.", show_default=False
        ),
    ] = None,
    verify_only: Annotated[
        bool,
        typer.Option(
            help="A drill: restore to a folder that is removed again, and note with the backup that it worked."
        ),
    ] = False,
    scratch: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where --verify-only has its folder. [default: $TMPDIR]"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a backup back. All of it is verified before the folder becomes a store; nothing is overwritten."""
    from steelyard_server.keeping.restoring import restore as restore_to
    from steelyard_server.keeping.restoring import verify

    if verify_only == (data_dir is not None):
        raise typer.BadParameter("expected one of --data-dir and --verify-only")
    say = (lambda text: None) if as_json else (lambda text: typer.echo(text, err=True))
    made = verify(source, scratch, say=say) if data_dir is None else restore_to(source, data_dir, say=say)
    steps = {run.name: run.next_step for run in made.runs}
    if as_json:
        print_json(
            {
                "name": made.name,
                "created": made.created_unix_seconds,
                "bytes": made.bytes,
                "runs": steps,
                "data_dir": None if data_dir is None else str(data_dir),
            }
        )
        return
    typer.echo(f"{made.name} is whole" if data_dir is None else f"{data_dir} is as {made.name} was")
    for name, step in steps.items():
        typer.echo(f"run {name}: the next step is {step}")
