"""The verbs, put together."""

from importlib import metadata
from typing import Annotated

import typer

from steelyard_server.cli import (
    backup,
    backups,
    batch,
    bookmark,
    check,
    compact,
    delete,
    events,
    fork,
    history,
    methods,
    restore,
    retention,
    rewind,
    runs,
    serve,
    stats,
    status,
    token,
)

cli = typer.Typer(
    name="steelyard",
    help="Serve batches of training examples by what their losses say, and ask a server about its runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steelyard {metadata.version('steelyard')}")
        raise typer.Exit


@cli.callback()
def _before_every_verb(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None: ...


for verb in (
    serve.serve,
    status.status,
    runs.runs,
    stats.stats,
    batch.batch,
    history.history,
    events.events,
    methods.methods,
    retention.retention,
    bookmark.bookmark,
    rewind.rewind,
    fork.fork,
    delete.delete,
    backup.backup,
    backups.backups,
    restore.restore,
    check.check,
    compact.compact,
    token.token,
):
    cli.command()(verb)
