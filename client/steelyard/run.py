"""A handle on one run: asking, telling, moving it, and joining it as a trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from steelyard import wire
from steelyard.arguments import float_array, id_array, pack_ids, whole
from steelyard.batch import Batch
from steelyard.errors import Internal, InvalidArgument
from steelyard.events import Event, read
from steelyard.info import Retention, RunInfo, Stats, asks_for_mix, check_mix, retention, run_info, stats
from steelyard.missing import warn_of_all
from steelyard.options import SessionOptions
from steelyard.session import Session
from steelyard.structs import to_struct
from steelyard.transport import Transport
from steelyard.v1 import arrays_pb2, events_pb2, runs_pb2

if TYPE_CHECKING:
    from steelyard.client import Client

# Ids of one request; the server takes 2^20.
_CHUNK = 1 << 20
# Bytes of one message: well under the 16 MiB that a server takes and a client reads by default.
_MESSAGE = 8 << 20
# Above this many examples a whole column is asked for in parts, to stay under the message limit.
_WHOLE = 1 << 22


class Run:
    """One run of one server. Holds only names: cheap, picklable, and never out of date.

    Client.run checks that there is such a run; it may be deleted at any time, and then every call is NotFound. The
    errors of every call are those of Client.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name

    @property
    def client(self) -> Client:
        return self._client

    @property
    def name(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"steelyard.Run({self._client.address!r}, {self._name!r})"

    def __reduce__(self) -> tuple[Callable[[Client, str], Run], tuple[Client, str]]:
        return Run, (self._client, self._name)

    # -- asking ----------------------------------------------------------------------------------------------------

    def info(self) -> RunInfo:
        """How the run was made, and where it stands."""
        request = runs_pb2.GetRunRequest(name=self._name)
        return run_info(
            self._transport.call(lambda to: to.runs.GetRun, request, self._purpose("asking for")).run
        )

    def stats(self) -> Stats:
        """What the run has done since it was created, as of its last event."""
        request = runs_pb2.GetStatsRequest(name=self._name)
        answer = self._transport.call(
            lambda to: to.runs.GetStats, request, self._purpose("asking for stats of")
        )
        return stats(answer, self.info().staleness)

    def history(self, ids: npt.ArrayLike) -> list[list[tuple[int, float]]]:
        """The last (step, loss) of each id, oldest first. InvalidArgument names the first id out of range.

        Many ids are asked for in parts, which are not of one moment where the run goes on.
        """
        values = id_array(ids)
        found: list[list[tuple[int, float]]] = []
        count = _history_part(self.info().history_size)
        for first in range(0, len(values), count):
            request = runs_pb2.GetHistoryRequest(name=self._name, ids=pack_ids(values[first : first + count]))
            purpose = self._purpose("asking for the history of")
            found += _histories(self._transport.call(lambda to: to.runs.GetHistory, request, purpose))
        return found

    def column(self, name: str, ids: npt.ArrayLike | None = None) -> npt.NDArray[np.float32]:
        """A derived or static column at `ids`, or at all of them: float32[n], NaN where nothing is known.

        NotFound: the run keeps no such column. A column of more than four million examples is read in parts, which are
        not of one moment where the run goes on.
        """
        if ids is None:
            size = self.info().dataset_size
            if size <= _WHOLE:
                return self._column(name, None)
            values = np.arange(size)
        else:
            values = id_array(ids)
        parts = [
            self._column(name, values[first : first + _CHUNK]) for first in range(0, len(values), _CHUNK)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def batch(self, step: int) -> Batch:
        """The whole global batch that was served at `step`, with what each position counted.

        Under a rule that reads losses the weights are those of the reports that the run took, as the trainers were told
        them: 0 where a position was not reported. While the step is not closed they are not known, and each is 1.

        NotFound: not drawn yet, no longer retained, or a step of the run's parent.
        """
        request = runs_pb2.GetBatchRequest(name=self._name, step=whole("step", step))
        answer = self._transport.call(
            lambda to: to.runs.GetBatch, request, self._purpose(f"asking for batch {step} of")
        )
        try:
            ids = wire.unpack_ids(answer.ids)
            probability = wire.unpack(answer.probability, np.float64, count=len(ids), name="probability")
            weight = np.ones(len(ids), np.float32)
            if answer.HasField("weight"):
                weight = wire.unpack(answer.weight, np.float32, count=len(ids), name="weight")
        except ValueError as error:
            raise Internal(f"batch {step} of run {self._name!r}: {error}") from error
        return Batch(
            step=answer.step,
            ids=ids,
            probability=probability,
            weight=weight,
            state_version=answer.state_version,
            offset=0,
            batch_size=len(ids),
            digest=answer.digest,
        )

    def events(self, from_step: int | None = None, to_step: int | None = None) -> Iterator[Event]:
        """What changed the run, in order (steelyard.events): from the draw of `from_step` on, by default from the
        oldest record kept, up to the draw of `to_step` or the last event that is durable when the first is asked for.

        A generator, which holds a message at a time; closing it ends the call. Each message may take as long as a call
        of this client. InvalidArgument: from_step is above to_step. FailedPrecondition: from_step is not drawn yet, or
        one of them no longer retained. DataLoss: a record is damaged; the events before it came, and were right.
        Aborted: the run went back, or its journal was pruned, while it was read; ask again.
        """
        request = events_pb2.StreamEventsRequest(name=self._name)
        if from_step is not None:
            request.from_step = whole("from_step", from_step)
        if to_step is not None:
            request.to_step = whole("to_step", to_step)
        if from_step is not None and to_step is not None and from_step > to_step:
            raise InvalidArgument(f"from_step: expected at most to_step, {to_step}; got {from_step}")
        if not self._transport.proven:
            self.info()  # a call that tells why there is no connection, where there is none
        return read(self._transport, request, self._purpose("reading the events of"))

    def retention(self) -> Retention:
        """What is kept of the run's past, what for, and what it costs."""
        request = runs_pb2.GetRetentionRequest(name=self._name)
        purpose = self._purpose("asking what is retained of")
        return retention(self._transport.call(lambda to: to.runs.GetRetention, request, purpose))

    # -- telling ---------------------------------------------------------------------------------------------------

    def observe(
        self,
        ids: npt.ArrayLike,
        signals: Mapping[str, npt.ArrayLike] | npt.ArrayLike,
        *,
        step: int | None = None,
    ) -> None:
        """Signals of ids that were not drawn: a scoring pass, an evaluation.

        The next draw knows them (step None), or they are folded with the reports of a step that was drawn, under the
        run's staleness. `signals` are losses, one for each id, or several named signals. Counts twice when it is
        repeated, so after an Unavailable (the server was killed meanwhile, or is of an older version and the connection
        ended) it is the caller's to decide. InvalidArgument: ids out of range, counts that
        differ, losses that the policy cannot use. FailedPrecondition: the step is not drawn yet.

        Many ids travel in parts of at most 2^20, in order, each durable by itself and the whole not atomic: after an
        error the parts before the one that failed stay, and a draw meanwhile may know some and not others. An error of
        the connection names the part. At most 2^20 ids with one signal are always one part.
        """
        values = id_array(ids)
        named = signals if isinstance(signals, Mapping) else {"loss": signals}
        if not named:
            raise InvalidArgument("signals: expected at least one, got none")
        step = None if step is None else whole("step", step)
        floats = {name: float_array(f"signal {name!r}", numbers) for name, numbers in named.items()}
        for name, one in floats.items():
            if len(one) != len(values):
                raise InvalidArgument(
                    f"signal {name!r}: expected {len(values)} values, one for each id; got {len(one)}"
                )
        count = _observed_part(len(floats))
        for first in range(0, max(len(values), 1), count):
            part = slice(first, first + count)
            self._observe(
                values[part], {name: one[part] for name, one in floats.items()}, step, first, len(values)
            )

    def close_step(self, step: int) -> None:
        """Closes a step whose reports stopped coming: what was reported is folded, later reports of it come late.

        FailedPrecondition: the step is not drawn yet.
        """
        request = runs_pb2.CloseStepRequest(name=self._name, step=whole("step", step))
        self._transport.call(lambda to: to.runs.CloseStep, request, self._purpose(f"closing step {step} of"))

    # -- moving ----------------------------------------------------------------------------------------------------

    def bookmark(self, name: str, step: int | None = None) -> int:
        """Names a step that can be returned to, the first that is not closed by default. Returns the step.

        AlreadyExists: the name is another step's. FailedPrecondition: a step that is ahead of the run or no longer
        retained.
        """
        request = runs_pb2.CreateBookmarkRequest(name=self._name, bookmark=name)
        if step is not None:
            request.step = whole("step", step)
        purpose = self._purpose(f"making bookmark {name!r} in")
        return int(self._transport.call(lambda to: to.runs.CreateBookmark, request, purpose).bookmark.step)

    def delete_bookmark(self, name: str) -> None:
        """Takes a bookmark away, if it is there."""
        request = runs_pb2.DeleteBookmarkRequest(name=self._name, bookmark=name)
        purpose = self._purpose(f"deleting bookmark {name!r} of")
        self._transport.call(lambda to: to.runs.DeleteBookmark, request, purpose)

    def rewind(self, to: int | str) -> RunInfo:
        """Takes the run back to a step or a bookmark: what was drawn or reported from there on is undone, and the
        bookmarks of later steps go with what they named. To keep all that, fork instead. Changes of the policy since
        then are undone too; one that was made while the step was the next to be drawn stays, as it is the step's own.

        Its sessions end with Aborted. FailedPrecondition: a step that is ahead of the run or no longer retained.
        """
        request = runs_pb2.RewindRequest(name=self._name)
        if isinstance(to, str):
            request.bookmark = to
        else:
            request.step = whole("step", to)
        purpose = self._purpose(f"rewinding to {to!r}")
        return run_info(self._transport.call(lambda to: to.runs.Rewind, request, purpose).run)

    def fork(
        self,
        new_name: str,
        *,
        step: int | str | None = None,
        draw: Mapping[str, Any] | None = None,
        mix: Mapping[str, Any] | None = None,
        weigh: Mapping[str, Any] | None = None,
    ) -> Run:
        """A new run that begins at a step or a bookmark with this run's state of that moment, and serves it first.

        By default at the first step that is not closed, under this run's policy. AlreadyExists: the name is taken.
        FailedPrecondition: a step that is ahead of the run or no longer retained.
        """
        request = runs_pb2.ForkRequest(name=self._name, new_name=new_name, policy=_policy(draw, weigh, mix))
        if isinstance(step, str):
            request.bookmark = step
        else:
            request.step = self.info().closed_steps if step is None else whole("step", step)
        purpose = self._purpose(f"forking {new_name!r} from")
        if asks_for_mix(mix):
            self._transport.require("mix", f"mix {dict(mix)!r}", purpose)
        answer = self._transport.call(lambda to: to.runs.Fork, request, purpose, once=True)
        check_mix(mix, answer.run, purpose)
        warn_of_all(new_name, answer.run.missing_inputs)
        return Run(self._client, new_name)

    def change_policy(
        self,
        draw: Mapping[str, Any] | None = None,
        weigh: Mapping[str, Any] | None = None,
        mix: Mapping[str, Any] | None = None,
    ) -> RunInfo:
        """Replaces the policy, or a part of it, from the next draw on; steps drawn already keep theirs.

        Trainers that go back behind the change (a state from before it is loaded) do not undo it: the steps that they
        train again are drawn by the new policy. A part that is not given stays as it is.
        """
        request = runs_pb2.ChangePolicyRequest(name=self._name, policy=_policy(draw, weigh, mix))
        purpose = self._purpose("changing the policy of")
        if asks_for_mix(mix):
            self._transport.require("mix", f"mix {dict(mix)!r}", purpose)
        answer = self._transport.call(lambda to: to.runs.ChangePolicy, request, purpose)
        check_mix(mix, answer.run, purpose)
        warn_of_all(self._name, answer.run.missing_inputs)
        return run_info(answer.run)

    # -- training --------------------------------------------------------------------------------------------------

    def join(
        self,
        rank: int = 0,
        world_size: int = 1,
        start_step: int | None = None,
        attempt: str | None = None,
        *,
        replica: int = 0,
        reports: bool | None = None,
        prefetch: int | None = None,
        timeout: float = 300.0,
        reconnect_timeout: float = 600.0,
        fingerprint: str = "",
    ) -> Session:
        """Joins the run as rank `rank` of `world_size` trainers, to be served its slice of every batch.

        `start_step`: the step to go on from, the first that is not closed by default; what the run has from there on is
        undone, as rewind() does. `attempt`: the token that all
        ranks of this launch share; steelyard.attempt says where it comes from by default. `replica`: tells processes
        apart that share one rank's slice; all of them are served the same. `reports`: whether this process makes the
        slice's reports, by default replica 0 does. One that does not, is not told when a draw needs them; it waits for
        the one that does. A report that several make counts once.

        `prefetch`: batches held ahead; by default the run's staleness, 16 at most. `timeout`: seconds that this and
        every later wait may take unless it says otherwise; a server that is not there yet is waited for.
        `reconnect_timeout`: seconds after which a session whose connection broke gives up.
        `fingerprint`: compared with the dataset's where both are given.

        AlreadyExists: another live session holds the rank, and held it for 30 s, in which a connection would have been
        found dead. FailedPrecondition: another world size or fingerprint than
        the run's, or a start step that is ahead of the run or no longer retained. Aborted: a newer attempt has begun.
        """
        options = SessionOptions(
            address=self._client.address,
            credentials=self._client.credentials,
            run=self._name,
            rank=rank,
            world_size=world_size,
            replica=replica,
            reports=reports,
            start_step=start_step,
            attempt=attempt,
            prefetch=prefetch,
            timeout=timeout,
            reconnect_timeout=reconnect_timeout,
            fingerprint=fingerprint,
        )
        return Session(options)

    # -- inside ----------------------------------------------------------------------------------------------------

    @property
    def _transport(self) -> Transport:
        return self._client._transport

    def _purpose(self, words: str) -> str:
        return f"{words} run {self._name!r}"

    def _observe(
        self,
        ids: npt.NDArray[np.int64],
        signals: Mapping[str, npt.NDArray[np.float32]],
        step: int | None,
        first: int,
        total: int,
    ) -> None:
        """One part of an observation of `total` ids, from position `first` on."""
        request = runs_pb2.ObserveRequest(name=self._name, ids=pack_ids(ids), step=step)
        for name, values in signals.items():
            request.signals.append(arrays_pb2.Signal(name=name, values=wire.pack(values, np.float32)))
        which = "" if len(ids) == total else f"[{first}:{first + len(ids)}] of {total}"
        self._transport.call(
            lambda to: to.runs.Observe,
            request,
            self._purpose(f"observing signals{which} of"),
            once=True,
        )

    def _column(self, name: str, ids: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float32]:
        request = runs_pb2.GetColumnRequest(name=self._name, column=name)
        if ids is not None:
            request.ids.CopyFrom(pack_ids(ids))
        purpose = self._purpose(f"asking for column {name!r} of")
        answer = self._transport.call(lambda to: to.runs.GetColumn, request, purpose)
        try:
            return wire.unpack(
                answer.values, np.float32, count=None if ids is None else len(ids), name=name
            ).copy()
        except ValueError as error:
            raise Internal(f"column {name!r} of run {self._name!r}: {error}") from error


def _history_part(history_size: int) -> int:
    """Ids of one question for histories: an answer has 4 bytes for each id and 12 for each of its entries."""
    return max(min(_CHUNK, _MESSAGE // (12 * history_size + 4)), 1)


def _observed_part(signals: int) -> int:
    """Ids of one part of an observation: 4 bytes for each id and for each of its signals."""
    return max(min(_CHUNK, _MESSAGE // (4 + 4 * signals)), 1)


def _policy(
    draw: Mapping[str, Any] | None, weigh: Mapping[str, Any] | None, mix: Mapping[str, Any] | None
) -> runs_pb2.Policy:
    policy = runs_pb2.Policy()
    if draw is not None:
        policy.draw.CopyFrom(to_struct(draw, "draw"))
    if weigh is not None:
        policy.weigh.CopyFrom(to_struct(weigh, "weigh"))
    if mix is not None:
        policy.mix.CopyFrom(to_struct(mix, "mix"))
    return policy


def _histories(answer: runs_pb2.GetHistoryResponse) -> list[list[tuple[int, float]]]:
    try:
        counts = wire.unpack(answer.counts, name="counts").astype(np.int64)
        total = int(counts.sum())
        steps = wire.unpack(answer.steps, np.uint64, count=total, name="steps").tolist()
        losses = wire.unpack(answer.losses, np.float32, count=total, name="losses").tolist()
    except ValueError as error:
        raise Internal(f"history: {error}") from error
    entries = list(zip(steps, losses, strict=True))
    ends = np.cumsum(counts).tolist()
    return [entries[end - count : end] for end, count in zip(ends, counts.tolist(), strict=True)]
