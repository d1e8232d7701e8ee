"""steelyard status: whether a server answers, and how far its runs are."""

import dataclasses

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

HEADS = ("next_step", "closed_steps", "served_ids", "reported_losses", "connected_ranks", "mean_loss")


def status(
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = 5.0,
    as_json: AsJson = False,
) -> None:
    """Say whether the server answers, and how far each run is."""
    with connected(address, timeout, ca, cert, key, token_file) as client:
        stats = {run.name: dataclasses.asdict(client.run(run.name).stats()) for run in client.list_runs()}
    if as_json:
        print_json({"address": address, "runs": stats})
        return
    print_table(
        ("run", *HEADS), [[name, *(values[head] for head in HEADS)] for name, values in stats.items()]
    )
    for name, values in stats.items():
        for text in values["missing_inputs"]:
            typer.echo(f"run {name}, missing: {text}")
