"""steelyard batch: what was drawn at a step."""

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


def batch(
    run: RunName,
    step: Annotated[
        int,
        typer.Argument(
            metavar="STEP", min=0, help="A step that was drawn and is retained.", show_default=False
        ),
    ],
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Print the whole global batch of a step: ids, the probabilities they were drawn with, their weights."""
    with connected(address, timeout, ca, cert, key, token_file) as client:
        served = client.run(run).batch(step)
    columns = {
        "id": served.ids.tolist(),
        "probability": served.probability.tolist(),
        "weight": served.weight.tolist(),
    }
    if as_json:
        print_json({"run": run, "step": served.step, **columns})
        return
    print_table(tuple(columns), zip(*columns.values(), strict=True))
