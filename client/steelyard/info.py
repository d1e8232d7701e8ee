"""What the server says of datasets and runs, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from steelyard.errors import FailedPrecondition
from steelyard.structs import from_struct
from steelyard.v1 import datasets_pb2, runs_pb2

Staleness = int | Literal["any"]

DEFAULT_STALENESS = 16
"""Steps of reports that a draw may lack where a run does not say."""


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """N examples with the ids 0..size-1."""

    name: str
    size: int
    """Ids ever given out, retired ones included."""
    retired: int
    fingerprint: str
    columns: tuple[str, ...]
    """Names of the static columns, sorted."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run: how it was made, and where it stands."""

    name: str
    dataset: str
    batch_size: int
    seed: int
    staleness: Staleness
    draw: Mapping[str, Any]
    mix: Mapping[str, Any]
    weigh: Mapping[str, Any]
    on_nonfinite: Literal["skip", "reject"]
    report_timeout: float
    """Seconds."""
    history_size: int
    """(step, loss) kept per example."""
    retain_steps: int
    next_step: int
    """The next step to draw."""
    closed_steps: int
    """Every step below this one is closed."""
    oldest_step: int
    """The oldest step to which the run can be rewound."""
    dataset_size: int
    attempt: str
    bookmarks: Mapping[str, int]
    parent: str | None
    """The run that this one was forked from, and the step where."""
    parent_step: int | None


@dataclass(frozen=True, slots=True)
class Stats:
    """What a run has done since it was created, as of its last event. The names are those of the wire.

    Counts are of the run's present timeline: what a rewind has undone is not in them. Those of duplicate, late and
    refused reports are of no timeline: they begin at 0 when the server starts, and no rewind changes them.
    """

    next_step: int
    closed_steps: int
    folded_steps: int
    """Steps whose reports the next draw has folded."""
    state_version: int
    """That of the next batch."""
    staleness: Staleness
    """Steps of reports that a draw may lack: with k, the draw of step t has folded those of the steps below t - k."""
    served_ids: int
    reported_losses: int
    """Losses acknowledged as new."""
    duplicate_reports: int
    """Since the server started, as are the next two. Acknowledged again, without effect."""
    late_reports: int
    refused_reports: int
    nonfinite_losses: int
    closed_by_timeout: int
    drawable: int
    """Examples that may be drawn."""
    never_reported: int | None
    """Those among them that were never reported; None where the policy keeps no column that tells."""
    effective_sample_ratio: float
    """(sum p)^2 / (N sum p^2) of the next draw, over what it may draw; of the probabilities alone, whatever the weights
    are. NaN where the draw has no masses."""
    mean_loss: float
    """Mean of the finite losses of the last closed step that has any, among the steps that the server holds in memory;
    NaN where there is none."""
    journal_records: int
    connected_ranks: int
    oldest_step: int
    journal_bytes: int
    ungrouped: int
    """Examples that are in no group of the mix, or not chosen from it, so that they are not drawn; 0 without a mix."""
    group_shares: tuple[float, ...]
    """The share that the mix gives each group as of the newest batch, by the ids of the groups, before any is capped by
    what it has; empty without a mix."""
    missing_inputs: tuple[str, ...]
    """Which method reads which signal or column that no report, observation or upload has had a value of."""


@dataclass(frozen=True, slots=True)
class BookmarkCost:
    """A bookmark and what it adds to what is kept."""

    step: int
    journal_bytes: int
    """Kept for bookmarks of this step and for none of an earlier one, so that those of all steps add up. 0 where all of
    that is kept anyway: the step is among the last retain_steps, or nothing was pruned yet."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept of a run's past, and what it costs. Bytes are those of keys and values in the store."""

    oldest_step: int
    """Every step from here to the next one to draw can be returned to, and besides only those of bookmarks."""
    journal_records: int
    """Of those steps, as is the next."""
    journal_bytes: int
    checkpoints: int
    checkpoint_bytes: int
    """What several checkpoints share counts once."""
    history_bytes: int
    """The last losses of each example, and the older versions that checkpoints need."""
    bookmarks: Mapping[str, BookmarkCost]
    """By name, sorted."""


def dataset_info(message: datasets_pb2.Dataset) -> DatasetInfo:
    return DatasetInfo(
        message.name, message.size, message.retired, message.fingerprint, tuple(message.columns)
    )


def staleness_of(spec: runs_pb2.RunSpec) -> Staleness:
    """The bound in force: the default where the spec leaves it open."""
    bound = spec.staleness.WhichOneof("bound")
    if bound == "any":
        return "any"
    return spec.staleness.steps if bound == "steps" else DEFAULT_STALENESS


def mix_of(policy: runs_pb2.Policy) -> dict[str, Any]:
    """The mix in force. A server that knows none does not tell of it."""
    return from_struct(policy.mix) if policy.HasField("mix") else {"method": "none"}


def asks_for_mix(asked: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    """Whether a server must know mixes to do what is asked for."""
    return asked is not None and asked.get("method") != "none"


def check_mix(asked: Mapping[str, Any] | None, run: runs_pb2.Run, purpose: str) -> None:
    """FailedPrecondition where a mix was asked for of a server that knows none: it passes over what it does not know,
    and the run draws without groups."""
    if not asks_for_mix(asked) or run.spec.policy.HasField("mix"):
        return
    raise FailedPrecondition(
        f"{purpose}: expected the mix {dict(asked)!r}, got a run that draws without groups: this server is of before "
        "there were mixes. Upgrade it, or go on with the run as it is, without `mix`"
    )


def run_info(message: runs_pb2.Run) -> RunInfo:
    spec = message.spec
    return RunInfo(
        name=spec.name,
        dataset=spec.dataset,
        batch_size=spec.batch_size,
        seed=spec.seed,
        staleness=staleness_of(spec),
        draw=from_struct(spec.policy.draw),
        mix=mix_of(spec.policy),
        weigh=from_struct(spec.policy.weigh),
        on_nonfinite="reject" if spec.on_nonfinite == runs_pb2.ON_NONFINITE_REJECT else "skip",
        report_timeout=spec.report_timeout_seconds,
        history_size=spec.history_size,
        retain_steps=spec.retain_steps,
        next_step=message.next_step,
        closed_steps=message.closed_steps,
        oldest_step=message.oldest_step,
        dataset_size=message.dataset_size,
        attempt=message.attempt,
        bookmarks={one.name: one.step for one in message.bookmarks},
        parent=message.parent or None,
        parent_step=message.parent_step if message.parent else None,
    )


def stats(message: runs_pb2.GetStatsResponse, staleness: Staleness) -> Stats:
    """`staleness` is the run's, which its counts do not repeat."""
    names = Stats.__dataclass_fields__.keys() - {"staleness"}
    values = {name: getattr(message, name) for name in names}
    values["group_shares"] = tuple(message.group_shares)
    values["missing_inputs"] = tuple(one.text for one in message.missing_inputs)
    if message.never_reported < 0:
        values["never_reported"] = None
    return Stats(**values, staleness=staleness)


def retention(message: runs_pb2.GetRetentionResponse) -> Retention:
    return Retention(
        oldest_step=message.oldest_step,
        journal_records=message.journal_records,
        journal_bytes=message.journal_bytes,
        checkpoints=message.checkpoints,
        checkpoint_bytes=message.checkpoint_bytes,
        history_bytes=message.history_bytes,
        bookmarks={
            one.bookmark.name: BookmarkCost(one.bookmark.step, one.journal_bytes) for one in message.bookmarks
        },
    )
