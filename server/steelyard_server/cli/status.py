"""steelyard status: whether a server answers, and how far its runs are.

Exit status: 0 all is well, 1 the server does not answer, or a run of it has a fault.
"""

import dataclasses
import math
from typing import Any

import typer

from steelyard.client import Client
from steelyard.errors import NotFound, SteelyardError
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
    """Say whether the server answers, and how far each run is. A run that it cannot read is named with its fault."""
    with connected(address, timeout, ca, cert, key, token_file) as client:
        stats = _stats(client)
    if as_json:
        print_json({"address": address, "runs": stats})
    else:
        _print(stats)
    if any(values["fault"] for values in stats.values()):
        raise typer.Exit(1)


def _stats(client: Client) -> dict[str, dict[str, Any]]:
    """By run; of one that the server cannot read, only its fault."""
    found: dict[str, dict[str, Any]] = {}
    for run in client.list_runs():
        try:
            found[run.name] = {"fault": "", **dataclasses.asdict(client.run(run.name).stats())}
        except NotFound:  # deleted since it was listed
            continue
        except SteelyardError as error:
            # What the server says of one run is no reason to say nothing of the others; that it is gone is.
            if not error.answered:
                raise
            found[run.name] = {"fault": f"{error.code}: {error}"}
    return found


def _print(stats: dict[str, dict[str, Any]]) -> None:
    print_table(
        ("run", *HEADS, "state"),
        [
            [
                name,
                *(values.get(head, math.nan) for head in HEADS),
                values["fault"].partition(":")[0] or "ok",
            ]
            for name, values in stats.items()
        ],
    )
    for name, values in stats.items():
        if values["fault"]:
            typer.echo(f"run {name}, fault: {values['fault']}")
        for text in values.get("missing_inputs", ()):
            typer.echo(f"run {name}, missing: {text}")
