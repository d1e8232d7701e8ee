"""`python -m steelyard_server` is the `steelyard` command."""

from steelyard_server.cli.main import app

app()
