"""steelyard token: a new token, and what the access file keeps of it."""

from pathlib import Path
from typing import Annotated

import typer

from steelyard import Credentials
from steelyard.handshake import token_of
from steelyard_server.security import tokens


def token(
    hash_of: Annotated[
        Path | None,
        typer.Option("--hash-of", metavar="FILE", help="Make none: print the hash of the token in FILE."),
    ] = None,
) -> None:
    """Make a random token for a principal, and print it with its SHA-256 for the access file.

    The token is shown once and kept nowhere. Put it where its owner alone can read it (--token-file of the other
    verbs), and the hash into token_sha256 of the principal.
    """
    if hash_of is not None:
        # Read as a client will read it: another one would never be shown.
        typer.echo(tokens.hash_of(token_of(Credentials(token_file=hash_of))))
        return
    made, digest = tokens.made()
    typer.echo(f"token         {made}")
    typer.echo(f'token_sha256  "{digest}"')
