"""steelyard history: the last losses of examples."""

from typing import Annotated

import typer

from steelyard_server.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT,
    Address,
    AsJson,
    Ca,
    Cert,
    Key,
    RunName,
    Timeout,
    TokenFile,
    connected,
    print_json,
    print_table,
)


def history(
    run: RunName,
    ids: Annotated[
        list[int], typer.Argument(metavar="ID...", min=0, help="Example ids.", show_default=False)
    ],
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Print the last losses of examples, oldest first."""
    with connected(address, timeout, ca, cert, key, token_file) as client:
        entries = client.run(run).history(ids)
    if as_json:
        print_json({str(example): list(kept) for example, kept in zip(ids, entries, strict=True)})
        return
    rows = [(example, *entry) for example, kept in zip(ids, entries, strict=True) for entry in kept]
    print_table(("id", "step", "loss"), rows)
