"""Every metric that a server exports, in one table: families are made from it, and so is deploy/monitoring/METRICS.md.

python -m steelyard_server.observing.names > deploy/monitoring/METRICS.md
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

from steelyard_server.runs.figures import SAMPLE

Kind = Literal["gauge", "counter", "histogram"]

RPC_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Seconds: of calls and of commits."""
LOSS_QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class Name:
    """A family as it is scraped; a counter's name ends in _total."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    always: bool = True
    """Whether any server has a sample of it. Otherwise there is one where there is something to tell: of a run, of a
    backup, of a certificate, of a label's value that has come up."""


SERVER = (
    Name(
        "steelyard_build_info",
        "gauge",
        "Always 1: the version, and the format that it writes.",
        ("version", "format"),
    ),
    Name(
        "steelyard_ready",
        "gauge",
        "Whether the server takes work: as /readyz and the health name steelyard.readiness.",
    ),
    Name(
        "steelyard_alive",
        "gauge",
        "Whether the event loop and the writer go round: as /healthz and the health name steelyard.liveness.",
    ),
    Name(
        "steelyard_event_loop_lag_seconds",
        "gauge",
        "How long the event loop of the gRPC edge has not come round.",
    ),
    Name("steelyard_runs", "gauge", "Runs that there are."),
    Name(
        "steelyard_runs_loaded",
        "gauge",
        "Runs in memory: those asked for since the server started. Only they have figures.",
    ),
    Name("steelyard_datasets", "gauge", "Datasets that there are."),
)

RPC = (
    Name("steelyard_rpc_in_flight", "gauge", "Calls under way, streams included.", ("method",), False),
    Name(
        "steelyard_rpc_handled_total",
        "counter",
        "Calls that ended, by status. Methods that the server does not have are counted as 'unknown'.",
        ("method", "code"),
        False,
    ),
    Name("steelyard_rpc_duration_seconds", "histogram", "Duration of unary calls.", ("method",), False),
    Name("steelyard_streams_open", "gauge", "Trainers' streams that are open."),
)

STORE = (
    Name(
        "steelyard_store_healthy",
        "gauge",
        "Whether writes succeed: 0 from a failed commit to the next that succeeds.",
    ),
    Name("steelyard_store_map_bytes", "gauge", "Size of the memory map now."),
    Name(
        "steelyard_store_map_limit_bytes",
        "gauge",
        "Size at which the map grows no more (max_map_size_bytes).",
    ),
    Name("steelyard_store_used_bytes", "gauge", "High-water mark of the data file, freed pages included."),
    Name(
        "steelyard_store_live_bytes", "gauge", "Pages in use: without the freed ones, which are used again."
    ),
    Name("steelyard_store_queue_bytes", "gauge", "Bytes of writes that wait to be committed."),
    Name("steelyard_store_queue_records", "gauge", "Writes that wait to be committed."),
    Name(
        "steelyard_store_commit_seconds",
        "histogram",
        "Duration of commits, from the begin of the transaction to its fsync.",
    ),
    Name("steelyard_store_failures_total", "counter", "Commits that failed, retries included."),
    Name(
        "steelyard_store_writer_busy_seconds",
        "gauge",
        "How long the writer has been at one commit; 0 where it is not.",
    ),
    Name(
        "steelyard_disk_free_bytes", "gauge", "Free for the server on the file system of the data directory."
    ),
    Name("steelyard_disk_size_bytes", "gauge", "Size of the file system of the data directory."),
    Name(
        "steelyard_disk_age_seconds",
        "gauge",
        "Age of the figures of store and disk: they are read beside the scrape.",
    ),
)

_RUN: tuple[tuple[str, Kind, str, tuple[str, ...]], ...] = (
    ("step", "gauge", "The next step to draw.", ()),
    ("closed_steps", "gauge", "Steps of which all is reported, or given up: those below this one.", ()),
    ("folded_steps", "gauge", "Steps whose reports are folded into what draws know.", ()),
    ("ranks", "gauge", "Trainers' streams that have a seat.", ()),
    ("drawable", "gauge", "Examples that may be drawn.", ()),
    (
        "effective_sample_ratio",
        "gauge",
        (
            "(sum p)^2 / (N sum p^2) of the next draw over its N drawable examples: 1 is uniform. Of all of them where"
            f" the method keeps the sums or there are at most {SAMPLE}, else of so many, evenly spaced. Of a mix"
            " of many groups, each as at one of the last scrapes. Not of candidate_pool, which has others at each step."
        ),
        (),
    ),
    (
        "largest_weight_share",
        "gauge",
        (
            "The greatest probability that an example has in the next draw. Exact from 1/4096 on and for datasets of at"
            f" most {SAMPLE}; below, the greatest among so many, evenly spaced."
        ),
        (),
    ),
    (
        "batch_weights_effective_ratio",
        "gauge",
        "(sum w)^2 / (B sum w^2) of the weights w of the newest closed step that was reported.",
        (),
    ),
    ("batch_weights_largest_share", "gauge", "max w / sum w of the weights w of that batch.", ()),
    (
        "never_reported_share",
        "gauge",
        (
            "Share without a score yet of the examples that are not retired, where the draw keeps scores; looked at as"
            " for effective_sample_ratio."
        ),
        (),
    ),
    (
        "loss",
        "gauge",
        (
            "Quantiles of the finite losses of the newest closed step that was reported; 0 and 1 are the least and the"
            " greatest."
        ),
        ("quantile",),
    ),
    (
        "staleness_steps",
        "histogram",
        "Of each batch drawn: earlier steps whose reports it did not know.",
        (),
    ),
    (
        "loss_age_steps",
        "histogram",
        "Of each loss taken: batches drawn after its own when it came.",
        (),
    ),
    ("batches_total", "counter", "Batches drawn.", ()),
    ("reported_losses_total", "counter", "Losses taken, those that are not finite included.", ()),
    ("duplicate_reports_total", "counter", "Reports that were there already; acknowledged again.", ()),
    ("late_reports_total", "counter", "Reports of steps closed before; acknowledged, and not used.", ()),
    (
        "rejected_reports_total",
        "counter",
        (
            "Reports refused: digest (losses of another batch), conflict (other values than before), step (not drawn or"
            " no longer retained), nonfinite, values (the policy cannot use them), shape (lengths, positions, names)."
        ),
        ("reason",),
    ),
    ("nonfinite_losses_total", "counter", "Losses taken that are NaN or infinite.", ()),
    ("timed_out_steps_total", "counter", "Steps closed because reports did not come in time.", ()),
    ("journal_lag_records", "gauge", "Journal records that no checkpoint holds: what a restart replays.", ()),
    (
        "checkpoint_timestamp_seconds",
        "gauge",
        "When the newest checkpoint was made, or the run was read from disk. A run that does not change needs none.",
        (),
    ),
    (
        "figures_age_seconds",
        "gauge",
        "Age of this run's figures: more than 0 where it was too busy to answer.",
        (),
    ),
)
RUN = tuple(
    Name(f"steelyard_run_{name}", kind, text, ("run", *labels), False) for name, kind, text, labels in _RUN
)

KEEPING = (
    Name("steelyard_backup_timestamp_seconds", "gauge", "When the newest whole backup was begun.", (), False),
    Name("steelyard_backup_failures_total", "counter", "Backups that failed."),
    Name(
        "steelyard_restore_verified_timestamp_seconds",
        "gauge",
        "When a backup was last restored and found whole.",
        (),
        False,
    ),
)

SECURITY = (
    Name(
        "steelyard_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the first certificate of a file ends.",
        ("file",),
        False,
    ),
    Name(
        "steelyard_file_not_reloaded",
        "gauge",
        "1 where what a file holds now could not be taken, and what it held before is in force.",
        ("file",),
        False,
    ),
    Name("steelyard_auth_failures_total", "counter", "Calls refused for who calls.", ("reason",), False),
    Name(
        "steelyard_quota_refused_total",
        "counter",
        "Calls refused for how much a principal has used.",
        ("principal", "reason"),
        False,
    ),
)

PARTS: tuple[tuple[str, tuple[Name, ...]], ...] = (
    ("The server", SERVER),
    ("Calls", RPC),
    ("The store and its disk", STORE),
    ("A run", RUN),
    ("Backups", KEEPING),
    ("Who calls", SECURITY),
)

BY_NAME = {one.name: one for _, part in PARTS for one in part}


def described() -> str:
    """The table, as Markdown."""
    lines = [
        "# Metrics",
        "",
        (
            "What `/metrics` exports (`--http`). Written by `make gen` from"
            " `observing/names.py`; a test compares it with what a server exports."
        ),
        "",
        (
            "Counters and histograms begin at 0 when the server starts: none of them is stored. Series of a run end"
            " when it is deleted. `process_*` are those of the Prometheus client library."
        ),
    ]
    for title, part in PARTS:
        lines += ["", f"## {title}", "", "| name | type | labels | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} |"
            f" {one.text.replace('|', chr(92) + '|')}{'' if one.always else ' *'} |"
            for one in part
        ]
    lines += ["", "\\* Only where there is something to tell.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(described())
