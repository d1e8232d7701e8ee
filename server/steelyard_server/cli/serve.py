"""steelyard serve: the daemon."""

import inspect
from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard_server.config import PREFIX, Settings, load


def serve(config: Path | None = None, **flags: Any) -> None:
    """Serve until SIGTERM or SIGINT, which drain: no new batches, reports in flight made durable, a checkpoint.

    A flag is stronger than the environment, which is stronger than the file.
    """
    settings = load(flags, config)
    from steelyard_server import allocator
    from steelyard_server.cli import logs
    from steelyard_server.server import serve as run_server

    allocator.share_among_threads()

    logs.configure(settings.log_level, settings.log_format)
    raise typer.Exit(run_server(settings))


def _parameters() -> list[inspect.Parameter]:
    """A flag for each setting, and --config. What Typer makes the options from."""
    config = typer.Option(help="TOML file of settings, by their names here with _ for -.", metavar="FILE")
    return [
        *(_flag(name) for name in Settings.model_fields),
        _keyword("config", Annotated[Path | None, config]),
    ]


def _flag(name: str) -> inspect.Parameter:
    """The flag of a setting. Its text is the setting's own; values go to the settings as they were typed."""
    field = Settings.model_fields[name]
    default = "" if field.is_required() or field.default is None else f" [default: {field.default}]"
    text = " ".join((field.description or "").split())
    option = typer.Option(
        help=f"{text} [env: {PREFIX}{name.upper()}]{default}", metavar=name.rpartition("_")[2].upper()
    )
    kind = bool if field.annotation is bool else str
    return _keyword(name, Annotated[kind | None, option])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


serve.__signature__ = inspect.Signature(_parameters())  # type: ignore[attr-defined]
serve.__annotations__ = {one.name: one.annotation for one in _parameters()}
