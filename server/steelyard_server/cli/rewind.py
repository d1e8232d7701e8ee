"""steelyard rewind: takes a run back to a step."""

import typer

from steelyard_server.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT,
    Address,
    AtBookmark,
    AtStep,
    Ca,
    Cert,
    Key,
    RunName,
    Timeout,
    TokenFile,
    connected,
    step_or_bookmark,
)


def rewind(
    run: RunName,
    step: AtStep = None,
    bookmark: AtBookmark = None,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Take a run back to a step: what it drew and was told from there on is undone, and its streams are ended."""
    to = step_or_bookmark(step, bookmark)
    if to is None:
        raise typer.BadParameter("expected one of --step and --bookmark, got neither")
    with connected(address, timeout, ca, cert, key, token_file) as client:
        next_step = client.run(run).rewind(to).next_step
    typer.echo(f"{run} goes on at step {next_step}")
