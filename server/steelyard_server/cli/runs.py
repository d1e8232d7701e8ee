"""steelyard runs: what runs a server has."""

import dataclasses

from steelyard.client import Client
from steelyard.errors import NotFound, SteelyardError
from steelyard.info import RunInfo
from steelyard_server.cli.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT,
    Address,
    AsJson,
    Ca,
    Cert,
    Key,
    Timeout,
    TokenFile,
    connected,
    print_json,
    print_table,
)


def runs(
    address: Address = DEFAULT_ADDRESS,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
    timeout: Timeout = DEFAULT_TIMEOUT,
    as_json: AsJson = False,
) -> None:
    """List the runs: what they draw from, how, and the bookmarks that they can return to."""
    with connected(address, timeout, ca, cert, key, token_file) as client:
        found = client.list_runs()
        faults = {run.name: _fault(client, run) for run in found}
    if as_json:
        print_json([{**dataclasses.asdict(run), "fault": faults[run.name]} for run in found])
        return
    heads = (
        "run",
        "dataset",
        "size",
        "batch_size",
        "draw",
        "mix",
        "weigh",
        "staleness",
        "next_step",
        "bookmarks",
        "state",
    )
    rows = []
    for run in found:
        bookmarks = ",".join(f"{name}={step}" for name, step in sorted(run.bookmarks.items()))
        policy = tuple(one.get("method", "?") for one in (run.draw, run.mix, run.weigh))
        rows.append(
            [
                run.name,
                run.dataset,
                run.dataset_size,
                run.batch_size,
                *policy,
                run.staleness,
                run.next_step,
                bookmarks,
                faults[run.name].partition(":")[0] or "ok",
            ]
        )
    print_table(heads, rows)


def _fault(client: Client, run: RunInfo) -> str:
    """What stands against reading it; empty where nothing does. A list has such a run as it was created, so only
    those at step 0 are asked for alone."""
    if run.next_step:
        return ""
    try:
        client.run(run.name)
    except NotFound:  # deleted since it was listed
        return ""
    except SteelyardError as error:
        if not error.answered:
            raise
        return f"{error.code}: {error}"
    return ""
