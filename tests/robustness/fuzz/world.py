"""The handlers on a real catalog and a real store: plays inputs, and judges what they leave behind.

What must hold of every input: no handler raises what is in no row of the table of statuses; no stream ends so; nothing
takes longer than `SECONDS`; every run is the fold of its journal; and a run that the input does not name draws what the
twin draws (tests/twin, which shares no code with it).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError, Message
from twin import operations as op
from twin.run import Run as Twin

from steelyard.v1 import trainer_pb2
from steelyard_server.history.journal import Journal
from steelyard_server.history.registry import Registry
from steelyard_server.history.store import Store
from steelyard_server.keeping.errors import KeepingError
from steelyard_server.keeping.keeper import Keeper
from steelyard_server.runs.catalog import Catalog
from steelyard_server.runs.errors import Missing, Unavailable
from steelyard_server.runs.journaled import CheckpointRule
from steelyard_server.runs.limits import Limits
from steelyard_server.runs.messages import Acknowledgement, Join, Report, Slice
from steelyard_server.runs.run import Run
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import RunState
from steelyard_server.service.about import ServerService
from steelyard_server.service.admin import AdminService
from steelyard_server.service.datasets import DatasetService
from steelyard_server.service.errors import status_of
from steelyard_server.service.events import EventService
from steelyard_server.service.runs import RunService
from steelyard_server.service.trainer import TrainerService
from tests.robustness.fuzz.inputs import CALLS, PLACE, Item, unpacked
from tests.robustness.fuzz.seeds import BATCH, COLUMNS, SIZE
from tests.robustness.power.inspector import check_is_fold

SECONDS = 20.0
BYSTANDER = "left-alone-5f1c"
BYSTANDER_STEPS = 60
"""After which it is made anew: the twin grows slower with each."""
_QUIET_SECONDS = 0.001
"""What a stream's message is given to be handled before the next comes: how much is handled together is part of what
is tried, so it need not be exact."""
_MOST_ANSWERS = 1000
_CHANGES_DATASETS = frozenset({"DeleteDataset", "AppendExamples", "RetireIds", "SetColumn"})
_STREAMS_ANSWERS = frozenset({"StreamEvents", "Check"})
_STARTS_A_PROCESS = frozenset({"Backup", "Check"})
_INPUTS_A_PROCESS = 300
"""Between two inputs whose backups and checks are made: each takes as long as a hundred other calls."""
_ALLOWED = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)


class FindingError(Exception):
    """What the fuzzer looks for. The message says what broke and which message did it."""


class _Ended(Exception):  # noqa: N818 -- how gRPC's own abort leaves a handler
    pass


class Context:
    """What a stream's handler sees of gRPC: what comes, where answers go, and how it ends."""

    def __init__(self) -> None:
        self.coming: asyncio.Queue[Any] = asyncio.Queue()
        self.answers = 0
        self.code = grpc.StatusCode.OK
        self.words = ""

    async def read(self) -> Any:
        return await self.coming.get()

    async def write(self, response: Message) -> None:
        response.SerializeToString()
        self.answers += 1

    async def abort(
        self, code: grpc.StatusCode, words: str, trailers: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.code, self.words = code, words
        raise _Ended


class World:
    """`play` an input, as often as you like; `judge` what it left. `counts` are the statuses by call."""

    def __init__(self, folder: Path) -> None:
        self._store = Store.open(folder, durability="interval", interval=0.5)
        limits = Limits(max_runs=12, max_datasets=12, max_examples=20_000)
        self.catalog = Catalog(self._store, CheckpointRule(), 1 << 20, limits)
        self._place = folder.with_name(f"{folder.name}-backups")
        self._keeper = Keeper(self._store, folder, to=str(self._place), keep=2)
        services = (
            DatasetService(self.catalog),
            RunService(self.catalog),
            EventService(self.catalog),
            ServerService("one"),
            AdminService(self._keeper),
        )
        self._methods: dict[str, Callable[[Any], Any]] = {
            name: getattr(service, name)
            for name, _ in CALLS
            for service in services
            if hasattr(service, name)
        }
        self._train = TrainerService(self.catalog).Train
        self._loop = asyncio.new_event_loop()
        self._raised: list[str] = []
        self._hook, threading.excepthook = threading.excepthook, self._thread_raised
        self.counts: Counter[tuple[str, str]] = Counter()
        self._played = 0
        self._may_start: set[str] = set()
        self._touched = True
        """Whether "d" is not, or may not be, what an input begins with."""
        self._bystander: Iterator[None] = iter(())

    def _thread_raised(self, one: threading.ExceptHookArgs) -> None:
        self._raised.append(f"thread {one.thread}: {one.exc_value!r}")

    def close(self) -> None:
        threading.excepthook = self._hook
        self._loop.close()
        self._keeper.stop()
        self.catalog.close(time.monotonic() + SECONDS)
        self._store.close(SECONDS)

    # ---- one input ----

    def play(self, data: bytes) -> None:
        """FindingError where one of the promises does not hold."""
        items = [item for item in unpacked(data) if BYSTANDER.encode() not in item.data]
        if self._played % _INPUTS_A_PROCESS == 0:
            self._may_start = set(_STARTS_A_PROCESS)
        self._played += 1
        self._clear()
        self._prepare()
        began = time.monotonic()
        self._loop.run_until_complete(self._play(items))
        took = time.monotonic() - began
        if took > SECONDS:
            raise FindingError(f"took {took:.1f} s, expected at most {SECONDS:g}")
        self.judge()

    async def _play(self, items: list[Item]) -> None:
        open_streams: dict[int, tuple[Context, asyncio.Task[None]]] = {}
        runs: dict[int, str] = {}
        for item in items:
            try:
                message = item.type.FromString(item.data)
            except DecodeError:
                # What bytes that are no message are answered is the edge's part.
                self.counts[item.name, "no message"] += 1
                continue
            if item.stream is None:
                self._call(item.name, message)
                continue
            number = item.stream
            if number in open_streams and open_streams[number][1].done():
                self._end_of(*open_streams.pop(number))
            if number not in open_streams:
                context = Context()
                task = asyncio.ensure_future(self._train(None, context))  # type: ignore[arg-type]
                open_streams[number] = context, task
            self._fill_in(message, runs, number)
            open_streams[number][0].coming.put_nowait(message)
            await asyncio.sleep(_QUIET_SECONDS)
        for context, _ in open_streams.values():
            context.coming.put_nowait(grpc.aio.EOF)
        for context, task in open_streams.values():
            done, _ = await asyncio.wait([task], timeout=SECONDS)
            if not done:
                raise FindingError(f"a stream did not end within {SECONDS:g} s of its last message")
            self._end_of(context, task)

    def _call(self, name: str, request: Message) -> None:
        self._touched |= name in _CHANGES_DATASETS
        to = getattr(request, "to", "")
        if to.startswith(PLACE):
            request.to = f"{self._place}{to[len(PLACE) :]}"  # type: ignore[attr-defined]
        if name in _STARTS_A_PROCESS:
            if name not in self._may_start:
                self.counts[name, "spared"] += 1
                return
            self._may_start.discard(name)
        try:
            answer = self._methods[name](request)
            if name in _STREAMS_ANSWERS:
                answer = list(itertools.islice(answer, _MOST_ANSWERS))
            code, words = grpc.StatusCode.OK, ""
        except Exception as error:
            code, words = status_of(error)
            # That a place cannot be written to is said in words (admin.proto).
            if not isinstance(error, KeepingError):
                self._check(name, code, f"{words}: {error!r} of {request}", error)
        self.counts[name, code.name] += 1

    def _end_of(self, context: Context, task: asyncio.Task[None]) -> None:
        error = task.exception()
        if error is not None and not isinstance(error, _Ended):
            raise FindingError(f"a stream's handler raised {error!r}") from error
        self._check("Train", context.code, context.words, None)
        self.counts["Train", context.code.name] += 1

    def _check(self, name: str, code: grpc.StatusCode, words: str, error: Exception | None) -> None:
        if code not in _ALLOWED:
            raise FindingError(f"{name} was answered {code.name}: {words}") from error

    def _fill_in(self, request: Message, runs: dict[int, str], stream: int) -> None:
        """A report without a digest is given that of what was drawn: no change of bytes would find it."""
        assert isinstance(request, trainer_pb2.TrainRequest)
        for message in request.messages:
            if message.HasField("join"):
                runs[stream] = message.join.run
            elif message.HasField("report") and not message.report.digest and stream in runs:
                message.report.digest = self._digest_of(runs[stream], message.report.step)

    def _digest_of(self, name: str, step: int) -> int:
        def digest(state: RunState) -> int:
            record = state.steps.get(step)
            return 0 if record is None else record.drawn.digest

        with contextlib.suppress(Exception):
            return self.catalog.run(name).ask(digest)
        return 0

    # ---- what an input begins with ----

    def _clear(self) -> None:
        for info, _ in self.catalog.list_runs():
            if info.spec.name != BYSTANDER:
                self.catalog.delete_run(info.spec.name)
        for dataset in self.catalog.list_datasets():
            if dataset.name != BYSTANDER and (dataset.name != "d" or self._touched):
                self.catalog.delete_dataset(dataset.name)

    def _prepare(self) -> None:
        if self._touched:
            self.catalog.create_dataset("d", SIZE, fingerprint="f", exist_ok=False)
            for number, column in enumerate(COLUMNS):
                values = (np.arange(SIZE, dtype=np.float32) * 7 + number) % (3 if column == "group" else 11)
                self.catalog.set_column("d", column, values, ids=None, start=0)
            self._touched = False
        spec = {"name": "r", "dataset": "d", "batch_size": BATCH, "seed": 5, "staleness": 2}
        draw = {"method": "scored", "score": "last_loss", "floor": 0.1}
        self.catalog.create_run(parse_spec({**spec, "draw": draw, "weigh": {}}), exist_ok=False)

    # ---- what it left ----

    def judge(self) -> None:
        if self._raised:
            raise FindingError("; ".join(self._raised))
        for row in Registry(self._store).runs():
            if row.name != BYSTANDER:
                self._judge_run(row.name, row.run_id, forked=bool(self.catalog.parent_of(row.name)[0]))
        if next(self._bystander, self) is self:
            self._bystander = self._life_of_bystander()
            next(self._bystander)

    def _judge_run(self, name: str, run_id: int, *, forked: bool) -> None:
        try:
            run = self.catalog.run(name)
        except Missing:
            return
        for last in (False, True):
            run.info()  # everything is durable then

            def judge(state: RunState) -> None:
                state.check()
                if not forked:
                    check_is_fold(state, [event for _, event in Journal(self._store, run_id).read(0)])

            try:
                run.ask(judge)
                return
            except AssertionError as error:
                # A step may have been closed meanwhile, by a timeout of the input's own.
                if last:
                    raise FindingError(f"run {name!r} is not the fold of its journal: {error}") from error

    def _life_of_bystander(self) -> Iterator[None]:
        """One step at each turn, beside the twin."""
        with contextlib.suppress(Missing):
            self.catalog.delete_run(BYSTANDER)
        self.catalog.create_dataset(BYSTANDER, 24, fingerprint="", exist_ok=True)
        spec = {
            "name": BYSTANDER,
            "dataset": BYSTANDER,
            "batch_size": 4,
            "seed": 9,
            "staleness": 1,
            "draw": {"method": "scored", "floor": 0.1},
            "weigh": {"method": "uniform"},
            "mix": {"method": "none"},
            "history_size": 4,
            "on_nonfinite": "skip",
        }
        self.catalog.create_run(parse_spec(spec), exist_ok=False)
        twin = Twin(spec, 24)
        twin.begin_attempt("a", 1, None)
        trainer = _Bystander(self.catalog.run(BYSTANDER))
        for step in range(BYSTANDER_STEPS):
            batch = trainer.batch()
            twin.do(op.Draw(step))
            expected = twin.state.steps[step]
            if (batch.step, batch.digest) != (step, expected.digest):
                raise FindingError(f"step {step} of a run that nobody named differs from the twin's")
            losses = ((batch.ids * 7 + step) % 11 / 4 + 0.1).astype(np.float32)
            trainer.report(batch.step, batch.digest, losses)
            twin.do(op.Report(step, 0, {"loss": [float(value) for value in losses]}))
            yield


class _Bystander:
    """The one trainer of a run; what is sent to it waits in order."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._answers: SimpleQueue[Any] = SimpleQueue()
        run.join(Join(0, 1, 0, "a", "s", None, None, 1), self)

    def send(self, message: Any) -> None:
        self._answers.put(message)

    def end(self, error: Exception | None) -> None:
        self._answers.put(error or Unavailable("ended"))

    def _await(self, kind: type[Any]) -> Any:
        while True:
            try:
                answer = self._answers.get(timeout=SECONDS)
            except Empty:
                raise FindingError(f"a run that nobody named did not answer within {SECONDS:g} s") from None
            if isinstance(answer, kind):
                return answer
            if isinstance(answer, Exception):
                raise FindingError(f"a run that nobody named ended its stream: {answer!r}") from answer

    def batch(self) -> Any:
        return self._await(Slice).drawn

    def report(self, step: int, digest: int, losses: Any) -> None:
        self._run.report(self, Report(step, 0, digest, {"loss": losses}, False))
        self._await(Acknowledgement)
        self._run.credit(self, 1)
