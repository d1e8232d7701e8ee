"""steelyard stats: everything that a run counts."""

import dataclasses

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


def stats(
    run: RunName,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Print what a run has done: steps, losses, reports refused or late, what is drawable, what is on disk."""
    with connected(address, timeout, ca, cert, key, token_file) as client:
        values = dataclasses.asdict(client.run(run).stats())
    if as_json:
        print_json(values)
        return
    missing = values["missing_inputs"]
    values["missing_inputs"] = len(missing)
    values["group_shares"] = " ".join(f"{share:.6g}" for share in values["group_shares"]) or None
    print_table(("stat", "value"), [(name, "-" if one is None else one) for name, one in values.items()])
    for text in missing:
        typer.echo(f"missing: {text}")
