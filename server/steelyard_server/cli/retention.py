"""steelyard retention: what is kept of a run's past, and what it costs."""

import dataclasses

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


def retention(
    run: RunName,
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """Print which steps can be returned to, the bytes that this takes, and what each bookmark adds to them."""
    with connected(address, timeout, ca, cert, key, token_file) as client:
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
