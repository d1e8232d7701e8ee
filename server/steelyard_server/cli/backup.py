"""steelyard backup: all that a server holds, as of one moment."""

from pathlib import Path
from typing import Annotated

import typer

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
from steelyard_server.cli.places import plain

_To = Annotated[
    str,
    typer.Option(metavar="PLACE", help="Folder or URL at or below the server's backup_to. [default: that]"),
]
_Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Back up this folder of a server that does not run, to --to, and ask nobody."
    ),
]


def backup(
    to: _To = "",
    data_dir: _Data = None,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = 3600.0,
    as_json: AsJson = False,
) -> None:
    """Have the server make a backup while it goes on serving, and print its name and place."""
    if data_dir is not None:
        if not to:
            raise typer.BadParameter("--data-dir needs --to")
        from steelyard_server.keeping.offline import backup as backup_offline

        made = backup_offline(data_dir, to, timeout)
    else:
        with connected(address, timeout, ca, cert, key, token_file) as client:
            made = plain(client.admin.backup(to, timeout=timeout))
    if as_json:
        print_json(made)
    else:
        typer.echo(f"{made['place']}/{made['name']}: {made['bytes']} bytes, {len(made['runs'])} runs")
