"""steelyard methods: what there is to draw, mix and weigh by."""

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard_server import plugins
from steelyard_server.catalogue import REQUIRED, Entry, Parameter, entries, find
from steelyard_server.cli.options import AsJson, print_json

_WIDTH = 110


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Only the method of this name.", show_default=False)
    ] = None,
    family: Annotated[
        str | None, typer.Option(metavar="draw|mix|weigh", help="Only the methods of this family.")
    ] = None,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw what the method does to losses; .png, .svg or .pdf."),
    ] = None,
    losses: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The losses for --plot: one a line, or .npy. Without: made-up ones."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PARAMETER=VALUE", help="A parameter for --plot, in JSON; repeatable."),
    ] = None,
) -> None:
    """List the methods with their parameters, defaults and sources: the built-in ones and those that are installed.

    Asks no server: it lists what one started from here would know.
    """
    if plot is None and (losses is not None or settings):
        raise typer.BadParameter("--losses and --set are for --plot FILE")
    for fault in plugins.register():
        typer.echo(f"steelyard: {fault}", err=True)
    try:
        found = entries(family) if name is None else find(name, family)
    except LookupError as error:
        raise typer.BadParameter(str(error)) from error
    if plot is not None:
        _plot(name, found, plot, losses, settings or [])
        return
    if as_json:
        print_json([entry.as_json() for entry in found])
        return
    for entry in found:
        for line in _lines(entry, whole=name is not None):
            typer.echo(line)


def _plot(name: str | None, found: list[Entry], to: Path, losses: Path | None, settings: list[str]) -> None:
    from steelyard_server import plots

    if name is None:
        raise typer.BadParameter("--plot: expected the name of a method: steelyard methods NAME --plot FILE")
    if len(found) != 1:
        families = ", ".join(entry.family for entry in found)
        raise typer.BadParameter(
            f"--plot: expected one method; {name} is of {families}: say which by --family"
        )
    if to.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"--plot: expected a file whose name ends in .png, .svg or .pdf; got {to}")
    parameters = dict(_setting(text) for text in settings)
    if "method" in parameters:
        raise typer.BadParameter(f"--set: expected a parameter of {name}, got 'method'")
    try:
        given = plots.default_losses() if losses is None else plots.read_losses(losses)
        made_from = plots.DEFAULT if losses is None else f"{len(given)} losses of {losses.name}"
        plots.save(found[0], parameters, given, made_from, to)
    except plots.PlotError as error:
        typer.echo(f"steelyard: {error}", err=True)
        raise typer.Exit(1) from error
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _setting(text: str) -> tuple[str, Any]:
    """parameter=value; the value is JSON, or a word as it stands."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"--set: expected parameter=value, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _lines(entry: Entry, *, whole: bool) -> Iterator[str]:
    """A method for the screen: three lines and their continuations, or all that is known of it."""
    origin = "" if entry.origin == "built in" else f" (from {entry.origin})"
    yield f"{entry.family} {entry.name}{origin}"
    yield from _wrapped(entry.summary)
    if whole:
        yield from _wrapped(f"Never reported: {entry.never_reported}")
    yield from _wrapped(f"Source: {entry.paper}; {entry.where}")
    if whole:
        for parameter in entry.parameters:
            yield from _wrapped(
                f"{parameter.name} = {shown(parameter)} ({parameter.type}): {parameter.doc}", hang="      "
            )
    elif entry.parameters:
        yield from _wrapped(" · ".join(f"{one.name}={shown(one)}" for one in entry.parameters))
    yield ""


def shown(parameter: Parameter) -> str:
    """A default as it is written in a policy."""
    default: Any = parameter.default
    if default is REQUIRED:
        return "(required)"
    return default if isinstance(default, str) else json.dumps(default)


def _wrapped(text: str, hang: str = "    ") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="    ", subsequent_indent=hang, break_long_words=False)
