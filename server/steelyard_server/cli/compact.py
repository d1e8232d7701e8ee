"""steelyard compact: gives the disk back what a store no longer uses."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from steelyard_server.cli.options import AsJson, print_json


def compact(
    data_dir: Annotated[
        Path,
        typer.Option(metavar="DIR", help="The folder of a server that does not run.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """Make the file of a store as small as what is in it. The old one is kept until the new one is verified."""
    from steelyard_server.keeping.compacting import compact as compact_store

    say = (lambda text: None) if as_json else (lambda text: typer.echo(text, err=True))
    done = compact_store(data_dir, say=say)
    if as_json:
        print_json(dataclasses.asdict(done))
    else:
        typer.echo(f"before {done.before} bytes, now {done.after}")
