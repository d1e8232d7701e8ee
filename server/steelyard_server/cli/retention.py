"""steelyard retention: what is kept of a run's past, and what it costs."""

import dataclasses

import steelyard
from steelyard_server.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT,
    Address,
    AsJson,
    RunName,
    Timeout,
    print_json,
    print_table,
)


def retention(
    run: RunName,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Print which steps can be returned to, the bytes that this takes, and what each bookmark adds to them."""
    with steelyard.connect(address, timeout=timeout) as client:
        kept = client.run(run).retention()
    if as_json:
        print_json(dataclasses.asdict(kept))
        return
    figures = dataclasses.asdict(kept)
    marks = figures.pop("bookmarks")
    print_table(("kept", "value"), figures.items())
    if marks:
        print_table(
            ("bookmark", "step", "journal_bytes"),
            [(name, one["step"], one["journal_bytes"]) for name, one in marks.items()],
        )
