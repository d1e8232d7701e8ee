"""What several verbs share: the address that they ask, and how they print."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import steelyard

Address = Annotated[
    str,
    typer.Option(
        envvar="STEELYARD_ADDRESS", metavar="HOST:PORT", help="The server to ask.", show_envvar=True
    ),
]
DEFAULT_ADDRESS = "127.0.0.1:7077"


def _file(variable: str, text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        envvar=variable, metavar="FILE", help=text, show_envvar=True, show_default=False
    )
    return option


Ca = Annotated[Path | None, _file("STEELYARD_CA", "PEM: the authorities that sign the server's certificate.")]
Cert = Annotated[Path | None, _file("STEELYARD_CERT", "PEM: the certificate to show the server.")]
Key = Annotated[Path | None, _file("STEELYARD_KEY", "PEM: the key of --cert.")]
TokenFile = Annotated[
    Path | None, _file("STEELYARD_TOKEN_FILE", "A file with the token to show the server, over TLS.")
]


def connected(
    address: str,
    timeout: float,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    token_file: Path | None,
) -> steelyard.Client:
    """A client by the options that every verb has. Nothing is sent before it is asked for something."""
    given = steelyard.Credentials(ca=ca, cert=cert, key=key, token_file=token_file)
    return steelyard.connect(address, credentials=given, timeout=timeout)


Timeout = Annotated[
    float,
    typer.Option(
        min=0.001,
        metavar="SECONDS",
        help="How long a call may take, waiting for the server to be there included.",
    ),
]
DEFAULT_TIMEOUT = 30.0

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON; what is not a finite number is null.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="The run's name.", show_default=False)]
AtStep = Annotated[int | None, typer.Option(min=0, metavar="STEP", help="A step that the run still retains.")]
AtBookmark = Annotated[str | None, typer.Option(metavar="NAME", help="A bookmark of the run.")]


def step_or_bookmark(step: int | None, bookmark: str | None) -> int | str | None:
    """The one of the two that was given, None where neither was; both are bad usage."""
    if step is not None and bookmark is not None:
        raise typer.BadParameter("expected one of --step and --bookmark, got both")
    return bookmark if step is None else step


def print_json(value: Any) -> None:
    """Prints `value`, of plain types, as one JSON document."""
    typer.echo(json.dumps(finite(value), indent=2, allow_nan=False))


def print_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints rows under their heads, columns aligned: numbers to the right, words to the left."""
    rows = [list(row) for row in rows]
    lines = [list(heads), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [
        bool(rows) and all(isinstance(row[place], (int, float)) for row in rows)
        for place in range(len(heads))
    ]
    for line in lines:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        typer.echo("  ".join(cells).rstrip())


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def finite(value: Any) -> Any:
    """`value`, of plain types, as JSON can say it: None for what is not a finite number."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
