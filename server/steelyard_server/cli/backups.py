"""steelyard backups: which backups there are."""

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
    print_table,
)
from steelyard_server.cli.places import plain, plain_kept, when

_From = Annotated[
    str, typer.Option("--from", metavar="PLACE", help="Look in this folder or URL, and ask no server.")
]


def backups(
    source: _From = "",
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = 60.0,
    as_json: AsJson = False,
) -> None:
    """List the whole backups, oldest first, and when a restore of each was verified."""
    if source:
        from steelyard_server.keeping.keeper import read_kept
        from steelyard_server.keeping.places import place_at

        place = place_at(source)
        found = [plain_kept(read_kept(place, name), place.where) for name in place.names()]
    else:
        with connected(address, timeout, ca, cert, key, token_file) as client:
            found = [plain(one) for one in client.admin.backups()]
    if as_json:
        print_json(found)
        return
    print_table(
        ("name", "made", "bytes", "runs", "verified"),
        [
            [one["name"], when(one["created"]), one["bytes"], len(one["runs"]), when(one["verified"])]
            for one in found
        ],
    )
    for one in found:
        if one["fault"]:
            typer.echo(f"{one['name']} cannot be used: {one['fault']}")
