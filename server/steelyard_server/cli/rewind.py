"""steelyard rewind: takes a run back to a step."""

import typer

import steelyard
from steelyard_server.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    AtBookmark,
    AtStep,
    RunName,
    step_or_bookmark,
)


def rewind(
    run: RunName,
    step: AtStep = None,
    bookmark: AtBookmark = None,
    address: Address = DEFAULT_ADDRESS,
) -> None:
    """Take a run back to a step: what it drew and was told from there on is undone, and its streams are ended."""
    to = step_or_bookmark(step, bookmark)
    if to is None:
        raise typer.BadParameter("expected one of --step and --bookmark, got neither")
    with steelyard.connect(address) as client:
        next_step = client.run(run).rewind(to).next_step
    typer.echo(f"{run} goes on at step {next_step}")
