"""steelyard fork: a new run that begins where another one was."""

import json
from typing import Annotated, Any

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

_PARENTS = "[default: the parent's]"
Draw = Annotated[str | None, typer.Option(metavar="JSON", help=f'As in {{"method": "shuffle"}}. {_PARENTS}')]
Mix = Annotated[
    str | None,
    typer.Option(metavar="JSON", help=f'As in {{"method": "static", "shares": [3, 1]}}. {_PARENTS}'),
]
Weigh = Annotated[
    str | None, typer.Option(metavar="JSON", help=f'As in {{"method": "linupper", "r": 0.4}}. {_PARENTS}')
]


def fork(
    run: RunName,
    new_run: Annotated[str, typer.Argument(metavar="NEW", help="The new run's name.", show_default=False)],
    step: AtStep = None,
    bookmark: AtBookmark = None,
    draw: Draw = None,
    mix: Mix = None,
    weigh: Weigh = None,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Begin a new run at a step of another, with its state of that moment, under the same or another policy.

    Without a step or a bookmark it begins at the first step that is not closed.
    """
    at = step_or_bookmark(step, bookmark)
    methods = {
        "draw": _method("--draw", draw),
        "mix": _method("--mix", mix),
        "weigh": _method("--weigh", weigh),
    }
    with connected(address, timeout, ca, cert, key, token_file) as client:
        next_step = client.run(run).fork(new_run, step=at, **methods).info().next_step
    typer.echo(f"{new_run} begins at step {next_step} of {run}")


def _method(flag: str, text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise typer.BadParameter(f"{flag} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{flag}: expected a JSON object, got {text}")
    return value
