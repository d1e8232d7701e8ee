"""steelyard serve: the daemon."""

from pathlib import Path
from typing import Annotated, Any

import typer

from steelyard_server.config import PREFIX, Settings, load


def _option(name: str) -> Any:
    """The flag of a setting. Its text is the setting's own; values go to the settings as they were typed."""
    field = Settings.model_fields[name]
    default = "" if field.is_required() or field.default is None else f" [default: {field.default}]"
    metavar = name.rpartition("_")[2].upper()
    text = " ".join((field.description or "").split())
    return typer.Option(help=f"{text} [env: {PREFIX}{name.upper()}]{default}", metavar=metavar)


def serve(
    data_dir: Annotated[str | None, _option("data_dir")] = None,
    listen: Annotated[str | None, _option("listen")] = None,
    http: Annotated[str | None, _option("http")] = None,
    port_file: Annotated[str | None, _option("port_file")] = None,
    insecure: Annotated[bool | None, _option("insecure")] = None,
    durability: Annotated[str | None, _option("durability")] = None,
    durability_interval_seconds: Annotated[str | None, _option("durability_interval_seconds")] = None,
    grace_seconds: Annotated[str | None, _option("grace_seconds")] = None,
    max_message_bytes: Annotated[str | None, _option("max_message_bytes")] = None,
    map_size_bytes: Annotated[str | None, _option("map_size_bytes")] = None,
    max_map_size_bytes: Annotated[str | None, _option("max_map_size_bytes")] = None,
    max_runs: Annotated[str | None, _option("max_runs")] = None,
    max_datasets: Annotated[str | None, _option("max_datasets")] = None,
    max_examples: Annotated[str | None, _option("max_examples")] = None,
    checkpoint_interval_seconds: Annotated[str | None, _option("checkpoint_interval_seconds")] = None,
    checkpoint_journal_bytes: Annotated[str | None, _option("checkpoint_journal_bytes")] = None,
    call_threads: Annotated[str | None, _option("call_threads")] = None,
    kernels: Annotated[str | None, _option("kernels")] = None,
    log_level: Annotated[str | None, _option("log_level")] = None,
    log_format: Annotated[str | None, _option("log_format")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="TOML file of settings, by their names here with _ for -.", metavar="FILE"),
    ] = None,
) -> None:
    """Serve until SIGTERM or SIGINT, which drain: no new batches, reports in flight made durable, a checkpoint.

    A flag is stronger than the environment, which is stronger than the file.
    """
    flags = {name: value for name, value in locals().items() if name != "config"}
    settings = load(flags, config)
    from steelyard_server import allocator
    from steelyard_server.cli import logs
    from steelyard_server.server import serve as run_server

    allocator.share_among_threads()

    logs.configure(settings.log_level, settings.log_format)
    raise typer.Exit(run_server(settings))
