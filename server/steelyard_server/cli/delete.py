"""steelyard delete: a run, a bookmark or a dataset."""

from typing import Annotated

import typer

from steelyard.client import Client
from steelyard.errors import DataLoss, FailedPrecondition, NotFound, PermissionDenied
from steelyard_server.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT,
    Address,
    Ca,
    Cert,
    Key,
    Timeout,
    TokenFile,
    connected,
)


def delete(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="The run.", show_default=False)] = None,
    bookmark: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only this bookmark of the run.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A dataset that no run uses.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
) -> None:
    """Delete a run with its history and journal, one of its bookmarks, or a dataset. There is no way back."""
    if (run is None) == (dataset is None) or (bookmark and run is None):
        raise typer.BadParameter("expected RUN, RUN --bookmark NAME, or --dataset NAME")
    what = (
        f"dataset {dataset}"
        if run is None
        else f"bookmark {bookmark} of run {run}"
        if bookmark
        else f"run {run}"
    )
    with connected(address, timeout, ca, cert, key, token_file) as client:
        if not yes:
            _look(client, run, bookmark, dataset)
            typer.confirm(f"Delete {what}?", abort=True)
        if dataset is not None:
            client.delete_dataset(dataset)
        elif run is not None and bookmark:
            client.run(run).delete_bookmark(bookmark)
        elif run is not None:
            client.delete_run(run)
    typer.echo(f"deleted {what}")


def _look(client: Client, run: str | None, bookmark: str | None, dataset: str | None) -> None:
    """NotFound for what there is not: nobody is asked about that."""
    try:
        if dataset is not None:
            client.dataset(dataset)
        elif run is not None and bookmark not in (*client.run(run).info().bookmarks, None):
            raise NotFound(f"run {run!r} has no bookmark {bookmark!r}")
    except PermissionDenied:
        # Who may delete need not be one who may read; the server will tell.
        return
    except (DataLoss, FailedPrecondition):
        # A run is there that cannot be read: to delete it may be the way out.
        if bookmark is not None:
            raise
