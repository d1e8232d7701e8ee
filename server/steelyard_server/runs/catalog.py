"""The datasets and runs of a server."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from typing import Any

import numpy as np

from steelyard_server.core.events import Event, Float32s, Ids, RunCreated
from steelyard_server.history import registry
from steelyard_server.history.errors import RecordDamaged, StoreError, StoreFull
from steelyard_server.history.ops import Op, Put, Table
from steelyard_server.history.store import Store
from steelyard_server.log import logger
from steelyard_server.policies.columns import parse_derived
from steelyard_server.policies.inputs import nearest
from steelyard_server.policies.policy import Policy
from steelyard_server.runs.changes import changed_policy, policy_events
from steelyard_server.runs.datasets import MAX_SIZE, Dataset, DatasetInfo, news_for
from steelyard_server.runs.errors import Exists, Invalid, Missing, NotNow, Unavailable, Unknown, Unready
from steelyard_server.runs.journaled import CheckpointRule
from steelyard_server.runs.limits import Admission, Limits, Use
from steelyard_server.runs.locks import NamedLocks
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.ownership import RunInfo
from steelyard_server.runs.run import Run
from steelyard_server.runs.saving import parts
from steelyard_server.runs.spec import NAME, RunSpec, parse_spec
from steelyard_server.runs.state import Attempts, RunState

_COPIED_BYTES = 1 << 20
"""Of a fork's history and columns, in one commit."""
_DELETED_BYTES = 1 << 20
"""Some 8000 rows, in one commit."""
_DERIVED = ("last_loss", "mean_loss", "ema_loss", "count_loss")
_TELL_SECONDS = 60.0
"""How long a dataset's change waits for its runs to know it."""

_log = logger(__name__)


class Catalog:
    """Thread-safe. Each change is durable when its call returns.

    Changes of one dataset, and of runs on it, are made one at a time; what they wait for (the disk, a run that loads)
    holds up nobody else. A dataset's change is committed first and then told to its runs; one that a crash left untold
    is found when the run is loaded.
    """

    def __init__(
        self, store: Store, rule: CheckpointRule, max_message_bytes: int, limits: Limits | None = None
    ) -> None:
        self.max_message_bytes = max_message_bytes
        limits = limits or Limits()
        self._max_draws = limits.max_draws_per_call
        self._admission = Admission(limits, self._use)
        self._store = store
        self._rule = rule
        self._registry = registry.Registry(store)
        # Guards the dictionaries; never held while anything is waited for.
        self._lock = threading.Lock()
        # Held through a change; taken by names in sorted order, so that no two wait for each other.
        self._changes = NamedLocks()
        self._datasets: dict[str, Dataset] = {}
        self._rows: dict[str, registry.Run] = {}
        self._runs: dict[str, Run] = {}
        self._closing = False
        for dataset in self._registry.datasets():
            self._datasets[dataset.name] = Dataset(dataset, self._registry.retired(dataset))
        for run in self._registry.runs():
            self._rows[run.name] = run
        self._sweep()

    # ---- datasets ----

    def dataset(self, name: str) -> DatasetInfo:
        return self._dataset(name).info

    def list_datasets(self) -> list[DatasetInfo]:
        with self._lock:
            return [self._datasets[name].info for name in sorted(self._datasets)]

    def create_dataset(self, name: str, size: int, *, fingerprint: str, exist_ok: bool) -> DatasetInfo:
        _check_name("dataset", name)
        _check_size(size)
        with self._changes.of(("dataset", name)):
            known = self._datasets.get(name)
            if known is not None:
                return _same_dataset(known, size, fingerprint, exist_ok).info
            with self._admission.dataset(name, size):
                self._check_room(f"dataset {name!r}", [])
                row = registry.Dataset(name, self._registry.allocate_id(), size, fingerprint)
                dataset = Dataset(row, np.empty(0, np.int64))
                return self._change(dataset, self._registry.put_dataset(row)).info

    def delete_dataset(self, name: str) -> None:
        with self._changes.of(("dataset", name)):
            dataset = self._dataset(name)
            users = [row.name for row in self._rows_on(name)]
            if users:
                raise Unready(
                    f"dataset {name!r} is used by {len(users)} runs, {users[0]!r} among them; delete them first"
                )
            self._store.commit(self._registry.delete_dataset(dataset.row))
            with self._lock:
                del self._datasets[name]

    def append_examples(self, name: str, count: int, expected_size: int) -> DatasetInfo:
        with self._changes.of(("dataset", name)):
            dataset = self._dataset(name)
            if count < 1:
                raise Invalid(f"expected a count of at least 1; got {count}")
            if dataset.size == expected_size + count:
                return dataset.info
            if dataset.size != expected_size:
                raise Unready(
                    f"dataset {name!r} has {dataset.size} examples; expected_size was {expected_size}: someone else "
                    "changed it"
                )
            size = dataset.size + count
            _check_size(size)
            with self._admission.dataset(name, size):
                row = replace(dataset.row, size=size)
                ops = self._registry.put_dataset(row)
                self._check_room(f"{count} more examples of dataset {name!r}", ops)
                return self._change(replace(dataset, row=row), ops).info

    def retire_ids(self, name: str, ids: Ids) -> DatasetInfo:
        with self._changes.of(("dataset", name)):
            dataset = self._dataset(name)
            _check_ids(ids, dataset.size)
            retired = np.union1d(dataset.retired, ids)
            if len(retired) == dataset.size:
                raise Invalid(
                    f"expected ids that leave an example to draw; got all {dataset.size} of {name!r}"
                )
            row, ops = self._registry.retire(dataset.row, ids)
            return self._change(Dataset(row, retired), ops).info

    def set_column(
        self, name: str, column: str, values: Float32s, *, ids: Ids | None, start: int
    ) -> DatasetInfo:
        _check_name("column", column)
        with self._changes.of(("dataset", name)):
            dataset = self._dataset(name)
            if ids is None and len(values) and start >= dataset.row.size:
                # Before it is a number that an array cannot hold.
                raise Invalid(f"expected ids 0..{dataset.row.size - 1}; got {start} at position 0")
            at = np.arange(start, start + len(values), dtype=np.int64) if ids is None else ids
            self._check_values(dataset, column, at, values)
            row, ops = self._registry.set_column(dataset.row, column, at, values)
            self._check_room(f"{len(values)} values of column {column!r} of dataset {name!r}", ops)
            return self._change(replace(dataset, row=row), ops).info

    # ---- runs ----

    def list_runs(self) -> list[tuple[RunInfo, tuple[str, int]]]:
        """Every run by name, each with where it was forked from. One whose records are damaged, or whose method is not
        installed any more, is listed as it was created; asked for alone, it says what is wrong."""
        with self._lock:
            names = sorted(self._rows)
        runs: list[tuple[registry.Run, Run]] = []
        for name in names:
            # Started before the first is asked, so that they load side by side.
            with contextlib.suppress(Missing):
                runs.append((self._row(name), self.run(name)))
        found = []
        for row, run in runs:
            with contextlib.suppress(Missing):
                found.append((self._info(row, run), (row.parent, row.parent_step)))
        return found

    def _info(self, row: registry.Run, run: Run) -> RunInfo:
        try:
            return run.info()
        except (RecordDamaged, Unknown):
            size = self._dataset(row.dataset).size
            return RunInfo(RunSpec.model_validate(row.spec), 0, 0, 0, size, "", {})

    def run(self, name: str) -> Run:
        """The run, started if it was not. Never waits: it loads on its own thread, and calls to it wait for that."""
        with self._lock:
            if self._closing:
                raise Unavailable("the server drains; try again later")
            row = self._row(name)
            run = self._runs.get(name)
            if run is None:
                run = self._runs[name] = self._start(row)
            return run

    def started(self) -> dict[str, Run]:
        """The runs that somebody has asked for since the server started, by name. Never waits."""
        with self._lock:
            return {name: self._runs[name] for name in sorted(self._runs)}

    def counts(self) -> tuple[int, int]:
        """How many datasets and runs there are. Never waits."""
        with self._lock:
            return len(self._datasets), len(self._rows)

    def run_to_join(self, name: str, fingerprint: str) -> Run:
        """The run, for trainers whose dataset has `fingerprint`, where they give one."""
        run = self.run(name)
        full = self._store.full
        if full is not None:
            # Before it is loaded in vain: its first draw would be refused.
            raise Unavailable(str(full))
        row = self._dataset(self._row(name).dataset).row
        if fingerprint and row.fingerprint and fingerprint != row.fingerprint:
            raise Unready(
                f"dataset {row.name!r} has fingerprint {row.fingerprint!r}; the trainer's is {fingerprint!r}"
            )
        return run

    def parent_of(self, name: str) -> tuple[str, int]:
        """Where the run was forked from: run and step; ("", 0) where it was not."""
        row = self._rows.get(name)
        return (row.parent, row.parent_step) if row is not None else ("", 0)

    def dataset_of(self, name: str) -> str | None:
        """The dataset of a run; None where there is no such run."""
        row = self._rows.get(name)
        return None if row is None else row.dataset

    def create_run(self, spec: RunSpec, *, exist_ok: bool) -> None:
        with self._changes.of(("run", spec.name), ("dataset", spec.dataset)):
            known = self._rows.get(spec.name)
            if known is not None:
                _check_same_run(known, spec, exist_ok)
                return
            dataset = self._dataset(spec.dataset)
            self._check_policy(spec.policy, dataset, spec.batch_size)
            with self._admission.run(spec.name, spec.dataset):
                self._check_room(f"run {spec.name!r}", [])
                self._create(spec, dataset)
        _log.info("run_created", run=spec.name, dataset=spec.dataset, batch_size=spec.batch_size)

    def _create(self, spec: RunSpec, dataset: Dataset) -> None:
        row = registry.Run(
            spec.name, self._registry.allocate_id(), spec.dataset, spec.model_dump(mode="json")
        )
        log = self._open_log(row)
        state, created = log.create(RunCreated(spec.model_dump(mode="json"), dataset.size))
        news = news_for(state, dataset, lambda column: self._column(dataset, column))
        ops = [*self._registry.put_run(row), *created, *log.append(news)]
        self._check_room(f"run {spec.name!r}", ops)
        self._store.commit(ops)
        with self._lock:
            self._rows[spec.name] = row

    def delete_run(self, name: str) -> None:
        with self._changes.of(("run", name)):
            row = self._row(name)
            with self._lock:
                run = self._runs.get(name)
            if run is not None and not run.remove():
                raise NotNow(f"run {name!r} is busy and was not deleted; try again")
            with self._admission.leaving(name, row.dataset):
                with self._lock:
                    # From here on nobody finds it, so nobody starts it again while its records go.
                    del self._rows[name]
                    self._runs.pop(name, None)
                try:
                    self._store.commit(self._registry.delete_run(row), frees=True)
                except StoreError:
                    with self._lock:
                        self._rows[name] = row
                    raise
                self._delete(self._registry.owned(row))
        _log.info("run_deleted", run=name)

    def observe(self, name: str, step: int | None, ids: Ids, signals: Mapping[str, Float32s]) -> None:
        run = self.run(name)
        size = ids.nbytes + sum(values.nbytes for values in signals.values())
        self._check_room(f"an observation of run {name!r}", [Put(Table.JOURNAL, b"", bytes(size))])
        run.observe(step, ids, signals)

    def change_policy(
        self,
        name: str,
        draw: Mapping[str, Any] | None,
        weigher: Mapping[str, Any] | None,
        mix: Mapping[str, Any] | None = None,
    ) -> None:
        with self._changes.of(("dataset", self._row(name).dataset)):
            run = self.run(name)
            dataset = self._dataset(self._row(name).dataset)
            policy = run.ask(lambda state: changed_policy(state, draw, weigher, mix))
            self._check_policy(policy, dataset, run.info().spec.batch_size, mixed_anew=mix is not None)
            run.change_policy(draw, weigher, mix)

    def fork_run(
        self,
        name: str,
        new_name: str,
        at: int | str,
        draw: Mapping[str, Any] | None,
        weigher: Mapping[str, Any] | None,
        mix: Mapping[str, Any] | None = None,
    ) -> None:
        _check_name("run", new_name)
        of = self._row(name).dataset
        with self._changes.of(("run", name), ("run", new_name), ("dataset", of)):
            if new_name in self._rows:
                raise Exists(f"run {new_name!r} exists already")
            dataset = self._dataset(of)

            def adopt(state: RunState, parent: RunLog, seq: int) -> None:
                policy = changed_policy(state, draw, weigher, mix)
                self._check_policy(policy, dataset, state.spec.batch_size, mixed_anew=mix is not None)
                self._adopt(state, parent, seq, new_name, policy)

            with self._admission.run(new_name, of):
                self._check_room(f"run {new_name!r}", [])
                self.run(name).fork(at, adopt)

    def _adopt(self, state: RunState, parent: RunLog, seq: int, new_name: str, policy: Policy) -> None:
        """Writes the run `new_name`, which begins with `state`, a past of its parent."""
        step, parent_name = state.next_step, state.spec.name
        if policy.canonical() != state.policy.canonical():
            for event in policy_events(state, policy, parent, seq):
                state.apply(event)
        state.spec = state.spec.model_copy(update={"name": new_name})
        state.attempts = Attempts()
        state.bookmarks = {}
        state.close_below(step)
        row = registry.Run(
            name=new_name,
            run_id=self._registry.allocate_id(),
            dataset=state.spec.dataset,
            spec=state.spec.model_dump(mode="json"),
            parent=parent_name,
            parent_step=step,
        )
        created = RunCreated(state.spec.model_dump(mode="json"), state.examples.size)
        log = self._open_log(row)
        try:
            loose, began = log.adopt(created, state)
            for ops in (parent.copy_history(log, seq), loose):
                for part in parts(ops, _COPIED_BYTES):
                    self._check_room(f"the history and columns of run {new_name!r}", part)
                    self._store.commit(part)
            began = [*self._registry.put_run(row), *began]
            self._check_room(f"run {new_name!r}", began)
            self._store.commit(began)
        except StoreFull:
            self._delete(self._registry.owned(row))
            raise
        with self._lock:
            self._rows[new_name] = row
        _log.info("run_forked", run=parent_name, new_run=new_name, step=step)

    # ---- life ----

    def close(self, deadline: float) -> bool:
        """Drains and closes every run; False where one was still busy at `deadline` (of time.monotonic)."""
        with self._lock:
            self._closing = True
            runs = dict(self._runs)
        for run in runs.values():
            run.drain()
        busy = [name for name, run in runs.items() if not run.close(max(0.1, deadline - time.monotonic()))]
        for name in busy:
            _log.error("run_still_busy", run=name)
        return not busy

    # ---- inside ----

    def _sweep(self) -> None:
        """Deletes what a crash left without an owner."""
        datasets = [one.row for one in self._datasets.values()]
        ranges = self._delete(self._registry.remains(datasets, list(self._rows.values())))
        if ranges:
            _log.info("remains_deleted", ranges=ranges)

    def _delete(self, ops: Iterable[Op]) -> int:
        """How many of `ops` were done; they delete what belongs to nobody. Where that fails it only takes room, until
        the next start."""
        done = 0
        try:
            for part in parts(ops, _DELETED_BYTES):
                self._store.commit(part, frees=True)
                done += len(part)
        except StoreError as error:
            _log.warning("remains_kept", error=str(error))
        return done

    def _use(self) -> Use:
        with self._lock:
            sizes = {name: dataset.size for name, dataset in self._datasets.items()}
            return Use(sizes, {name: row.dataset for name, row in self._rows.items()})

    def _check_room(self, what: str, ops: Sequence[Op]) -> None:
        """StoreFull where `ops`, which make something new, would take what is kept for the runs that there are."""
        self._store.check_headroom(what, ops)

    def _row(self, name: str) -> registry.Run:
        row = self._rows.get(name)
        if row is None:
            raise Missing(f"no run {name!r}")
        return row

    def _rows_on(self, dataset: str) -> list[registry.Run]:
        """The runs that use a dataset, by name."""
        with self._lock:
            return sorted(
                (row for row in self._rows.values() if row.dataset == dataset), key=lambda row: row.name
            )

    def _dataset(self, name: str) -> Dataset:
        dataset = self._datasets.get(name)
        if dataset is None:
            raise Missing(f"no dataset {name!r}")
        return dataset

    def _start(self, row: registry.Run) -> Run:
        def news(state: RunState) -> list[Event]:
            dataset = self._dataset(row.dataset)
            return list(news_for(state, dataset, lambda column: self._column(dataset, column)))

        return Run(
            self._store,
            lambda: self._open_log(row),
            row.name,
            rule=self._rule,
            reconcile=news,
            max_draws=self._max_draws,
        )

    def _open_log(self, row: registry.Run) -> RunLog:
        history_size = int(row.spec["history_size"])
        return RunLog(self._store, row.run_id, history_size, forked=bool(row.parent))

    def _column(self, dataset: Dataset, column: str) -> Float32s:
        """float32[size], NaN where the column was not set. KeyError: the dataset has no such column."""
        return self._registry.column(dataset.row, column)

    def _change(self, dataset: Dataset, ops: Sequence[Op]) -> Dataset:
        """Makes `dataset` what it is from now on, and tells its runs."""
        self._store.commit(ops)
        with self._lock:
            self._datasets[dataset.row.name] = dataset
        told: dict[str, Future[None]] = {}
        for row in self._rows_on(dataset.row.name):
            run = self._runs.get(row.name)
            if run is not None:
                with contextlib.suppress(Unavailable):  # it is being deleted
                    told[row.name] = run.reconcile()
        deadline = time.monotonic() + _TELL_SECONDS
        for name, future in told.items():
            try:
                future.result(max(0.0, deadline - time.monotonic()))
            except FutureTimeout:
                raise Unavailable(
                    f"dataset {dataset.row.name!r} has changed, but run {name!r} is busy and does not know it yet: "
                    "it will before it draws from then on; the call may be repeated"
                ) from None
            except StoreError as error:
                # The run reads the disk again before it goes on, and finds the change there.
                _log.warning("run_told_later", run=name, error=str(error))
        return dataset

    def _check_policy(
        self, policy: Policy, dataset: Dataset, batch_size: int, *, mixed_anew: bool = True
    ) -> None:
        """Invalid where the policy cannot serve the dataset. A mix that is in force already goes on with whatever
        groups there are by now."""
        obstacle = policy.too_small(dataset.drawable, batch_size)
        if obstacle is not None:
            raise Invalid(obstacle)
        for column in policy.static:
            if column not in dataset.row.columns:
                known = ", ".join(dataset.row.columns) or "none"
                field, may_be_derived = policy.field_of(column)
                derived = (
                    "a derived column (last_loss, mean_loss, ema_loss, count_loss, ...) or "
                    if may_be_derived
                    else ""
                )
                near = nearest(column, [*dataset.row.columns, *(_DERIVED if may_be_derived else ())])
                hint = "" if near is None else f" (did you mean {near!r}?)"
                raise Invalid(
                    f"{field}: expected {column!r} to be {derived}a column of dataset {dataset.row.name!r}, which has: "
                    f"{known}{hint}"
                )
            values = self._column(dataset, column)
            objection = policy.objection(column, np.nan_to_num(values))
            if objection is not None:
                raise Invalid(objection)
        if mixed_anew:
            misfit = policy.misfit(lambda name: self._column(dataset, name), dataset.retired, batch_size)
            if misfit is not None:
                raise Invalid(misfit)

    def _check_values(self, dataset: Dataset, column: str, ids: Ids, values: Float32s) -> None:
        if parse_derived(column) is not None:
            raise Invalid(f"expected a name that is no derived column's; {column!r} is folded from reports")
        if len(ids) != len(values):
            raise Invalid(f"expected one value an id; got {len(ids)} ids and {len(values)} values")
        _check_ids(ids, dataset.size)
        if len(np.unique(ids)) != len(ids):
            raise Invalid("expected every id once; got one twice")
        if np.isinf(values).any():
            raise Invalid(
                f"expected no infinite value; got one at position {int(np.flatnonzero(np.isinf(values))[0])}"
            )
        for row in self._rows_on(dataset.row.name):
            try:
                objection = self.run(row.name).ask(
                    lambda state: state.policy.objection(column, np.nan_to_num(values))
                )
            except (RecordDamaged, Missing):
                continue  # Nothing will draw from it.
            if objection is not None:
                raise Invalid(f"run {row.name!r} reads {column!r}: {objection}")


def _check_name(what: str, name: str) -> None:
    if not re.fullmatch(NAME, name):
        raise Invalid(
            f"expected a {what} name of 1..128 of the characters A-Z a-z 0-9 . _ -; got {name[:200]!r}"
        )


def _check_size(size: int) -> None:
    if not 1 <= size <= MAX_SIZE:
        raise Invalid(f"expected a dataset size of 1..{MAX_SIZE}; got {size}")


def _check_ids(ids: Ids, size: int) -> None:
    bad = np.flatnonzero((ids < 0) | (ids >= size))
    if len(bad):
        raise Invalid(f"expected ids 0..{size - 1}; got {ids[bad[0]]} at position {bad[0]}")


def _same_dataset(known: Dataset, size: int, fingerprint: str, exist_ok: bool) -> Dataset:
    row = known.row
    if not exist_ok:
        raise Exists(f"dataset {row.name!r} exists already")
    if row.size != size or row.fingerprint != fingerprint:
        raise Exists(
            f"dataset {row.name!r} exists with size {row.size} and fingerprint {row.fingerprint!r}; "
            f"got {size} and {fingerprint!r}"
        )
    return known


def _check_same_run(known: registry.Run, spec: RunSpec, exist_ok: bool) -> None:
    if not exist_ok:
        raise Exists(f"run {spec.name!r} exists already")
    difference = parse_spec(known.spec).first_difference(spec)
    if difference is not None:
        raise Exists(f"run {spec.name!r} exists with another specification: {difference}")
