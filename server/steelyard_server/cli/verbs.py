"""The verbs, put together."""

import typer

from steelyard_server.cli import bookmark, fork, history, rewind, runs, serve, status

cli = typer.Typer(
    name="steelyard",
    help="Serve batches of training examples by what their losses say, and ask a server about its runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for verb in (
    serve.serve,
    status.status,
    runs.runs,
    history.history,
    bookmark.bookmark,
    rewind.rewind,
    fork.fork,
):
    cli.command()(verb)
