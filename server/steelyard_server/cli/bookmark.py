"""steelyard bookmark: names a step that can be returned to."""

from typing import Annotated

import typer

import steelyard
from steelyard_server.cli.options import DEFAULT_ADDRESS, DEFAULT_TIMEOUT, Address, AtStep, RunName, Timeout


def bookmark(
    run: RunName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The bookmark's name.", show_default=False)],
    step: AtStep = None,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Name a step: the given one, or the first that is not closed. A bookmark keeps its step from being forgotten."""
    with steelyard.connect(address, timeout=timeout) as client:
        marked = client.run(run).bookmark(name, step)
    typer.echo(f"{name} is step {marked} of {run}")
