"""steelyard bookmark: names a step that can be returned to."""

from typing import Annotated

import typer

from steelyard_server.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT,
    Address,
    AtStep,
    Ca,
    Cert,
    Key,
    RunName,
    Timeout,
    TokenFile,
    connected,
)


def bookmark(
    run: RunName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The bookmark's name.", show_default=False)],
    step: AtStep = None,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Name a step: the given one, or the first that is not closed. A bookmark keeps its step from being forgotten."""
    with connected(address, timeout, ca, cert, key, token_file) as client:
        marked = client.run(run).bookmark(name, step)
    typer.echo(f"{name} is step {marked} of {run}")
