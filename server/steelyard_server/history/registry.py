"""What there is: datasets and runs by name, and what belongs to a dataset itself (retired ids, static
columns).

Ids of runs and datasets come from one counter and are never used again, so that rows under a deleted id can
never be taken for those of a later one. Functions return ops; whoever writes them orders them (one writer at
a time a name).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from steelyard_server.core.events import Float32s, Ids
from steelyard_server.disk.v1 import registry_pb2

from .arrays import from_json, to_json
from .chunks import CHUNK, Chunks, row_prefix
from .errors import RecordDamaged
from .ops import Delete, DeleteRange, Op, Put, Table, prefix_range, u64
from .ranges import deletes
from .sealed import seal, unseal
from .store import Store

_NEXT_ID = b"next-id"
_RETIRED = "retired"
_STATIC = "static/"
_EVERYTHING = (b"\0", b"\xff" * 256)
_RUN_TABLES = (
    Table.JOURNAL,
    Table.STEPS,
    Table.HOLES,
    Table.CHECKPOINTS,
    Table.CHUNKS,
    Table.HISTORY,
    Table.SEGMENTS,
)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A row of DATASETS. `size` counts every id ever given out; `columns` are the static ones, sorted."""

    name: str
    dataset_id: int
    size: int
    fingerprint: str = ""
    retired: int = 0
    columns: tuple[str, ...] = ()
    created_unix_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """A row of RUNS. `parent` is empty for a run that is no fork."""

    name: str
    run_id: int
    dataset: str
    spec: Mapping[str, Any]
    parent: str = ""
    parent_step: int = 0
    created_unix_seconds: float = 0.0


class Registry:
    """Datasets and runs of one store. For any thread; what it reads is durable."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()

    def allocate_id(self) -> int:
        """A new id, 1 or more, for a run or a dataset. Durable before it returns (one commit), so never given
        twice.

        StoreError: it could not be made durable; the next call goes on after it.
        """
        with self._lock:
            value = self._store.get(Table.META, _NEXT_ID)
            free = 1 if value is None else int.from_bytes(value, "big")
            self._store.commit([Put(Table.META, _NEXT_ID, u64(free + 1))])
            return free

    def dataset(self, name: str) -> Dataset | None:
        """RecordDamaged: its row is."""
        key = _name_key(name)
        value = self._store.get(Table.DATASETS, key)
        return None if value is None else _parse_dataset(key, value)

    def datasets(self) -> list[Dataset]:
        """Sorted by name."""
        return [_parse_dataset(*row) for row in self._store.scan(Table.DATASETS, *_EVERYTHING)]

    def put_dataset(self, dataset: Dataset) -> list[Op]:
        """Ops that store the row, new or changed. A created time of 0 becomes now."""
        row = registry_pb2.DatasetRow(
            name=dataset.name,
            dataset_id=dataset.dataset_id,
            size=dataset.size,
            retired=dataset.retired,
            fingerprint=dataset.fingerprint,
            columns=sorted(dataset.columns),
            created_unix_seconds=dataset.created_unix_seconds or time.time(),
        )
        return [seal(Table.DATASETS, _name_key(dataset.name), row.SerializeToString(deterministic=True))]

    def delete_dataset(self, dataset: Dataset) -> list[Op]:
        """Ops that delete the row, the retired ids and the static columns. Runs are the caller's to check."""
        chunks = DeleteRange(Table.CHUNKS, *prefix_range(u64(dataset.dataset_id)))
        return [Delete(Table.DATASETS, _name_key(dataset.name)), chunks]

    def retire(self, dataset: Dataset, ids: Ids) -> tuple[Dataset, list[Op]]:
        """The dataset with `ids` retired (repeats and retired ones count once), and the ops that make it so.

        Earlier changes of the dataset must be durable. ValueError: an id out of range.
        """
        _check_ids(dataset, ids)
        ids = np.unique(ids)
        chunks = _chunks(self._store, dataset)
        fresh, ops = 0, list[Op]()
        for index in np.unique(ids // CHUNK).tolist():
            flags = _sparse_chunk(chunks, _RETIRED, index, np.uint8(0))
            fresh -= int(flags.sum())
            flags[ids[ids // CHUNK == index] % CHUNK] = 1
            fresh += int(flags.sum())
            ops.append(chunks.put(_RETIRED, index, 0, flags))
        changed = replace(dataset, retired=dataset.retired + fresh)
        return changed, [*ops, *self.put_dataset(changed)]

    def retired(self, dataset: Dataset) -> Ids:
        """The retired ids, ascending. RecordDamaged names the chunk."""
        fill = np.zeros((), np.uint8)
        flags = _chunks(self._store, dataset).read_sparse(_RETIRED, dataset.size, fill)
        return np.flatnonzero(flags).astype(np.int64)

    def set_column(self, dataset: Dataset, name: str, ids: Ids, values: Float32s) -> tuple[Dataset, list[Op]]:
        """The dataset with values (float32[n]) at `ids` of a static column, new or not, and the ops.

        Only the chunks of these ids are written. Earlier changes of the dataset must be durable. ValueError:
        an id out of range, or counts that differ; where an id repeats, the last value holds.
        """
        if values.shape != ids.shape or ids.ndim != 1:
            raise ValueError(f"expected one value for each of {ids.shape} ids, got {values.shape}")
        _check_ids(dataset, ids)
        chunks, ops = _chunks(self._store, dataset), list[Op]()
        for index in np.unique(ids // CHUNK).tolist():
            column = _sparse_chunk(chunks, _STATIC + name, index, np.float32(np.nan))
            here = ids // CHUNK == index
            column[ids[here] % CHUNK] = values[here]
            ops.append(chunks.put(_STATIC + name, index, 0, column))
        row_prefix(_STATIC + name)
        changed = replace(dataset, columns=tuple(sorted({*dataset.columns, name})))
        return changed, [*ops, *self.put_dataset(changed)]

    def column(self, dataset: Dataset, name: str) -> Float32s:
        """float32[size] of a static column, NaN where it was never set. KeyError: the dataset has no such
        column.
        """
        if name not in dataset.columns:
            raise KeyError(name)
        fill = np.full((), np.nan, np.float32)
        return _chunks(self._store, dataset).read_sparse(_STATIC + name, dataset.size, fill)

    def run(self, name: str) -> Run | None:
        """RecordDamaged: its row is."""
        key = _name_key(name)
        value = self._store.get(Table.RUNS, key)
        return None if value is None else _parse_run(key, value)

    def runs(self) -> list[Run]:
        """Sorted by name."""
        return [_parse_run(*row) for row in self._store.scan(Table.RUNS, *_EVERYTHING)]

    def put_run(self, run: Run) -> list[Op]:
        """Ops that store the row, new or changed. A created time of 0 becomes now."""
        row = registry_pb2.RunRow(
            name=run.name,
            run_id=run.run_id,
            dataset=run.dataset,
            spec_json=to_json(run.spec),
            parent=run.parent,
            parent_step=run.parent_step,
            created_unix_seconds=run.created_unix_seconds or time.time(),
        )
        return [seal(Table.RUNS, _name_key(run.name), row.SerializeToString(deterministic=True))]

    def delete_run(self, run: Run) -> list[Op]:
        """Ops that delete the row: what is under the run's id belongs to nobody then. Its writers must have stopped."""
        return [Delete(Table.RUNS, _name_key(run.name))]

    def owned(self, run: Run) -> Iterator[Op]:
        """Ops that delete everything under the run's id, one by one."""
        for table in _RUN_TABLES:
            yield from deletes(self._store, table, *prefix_range(u64(run.run_id)))

    def remains(self, datasets: Sequence[Dataset], runs: Sequence[Run]) -> Iterator[Op]:
        """Ops that delete what belongs to nobody, one by one: what a fork had copied when it was killed, what was left
        of a run that was being deleted, or a run whose creation was given up and yet became durable. `datasets` and
        `runs` are all that there are, and nobody is creating more. Reads one key for each owner.
        """
        owners = {*(dataset.dataset_id for dataset in datasets), *(run.run_id for run in runs)}
        for table in _RUN_TABLES:
            for owner in self._owners(table):
                if owner not in owners:
                    yield from deletes(self._store, table, *prefix_range(u64(owner)))

    def _owners(self, table: Table) -> Iterator[int]:
        start = _EVERYTHING[0]
        while keys := self._store.keys(table, start, _EVERYTHING[1], limit=1):
            owner = int.from_bytes(keys[0][:8], "big")
            yield owner
            start = prefix_range(u64(owner))[1]


def _chunks(store: Store, dataset: Dataset) -> Chunks:
    return Chunks(store, dataset.dataset_id, f"dataset {dataset.name!r}")


def _sparse_chunk(chunks: Chunks, name: str, index: int, fill: np.generic) -> npt.NDArray[Any]:
    """A whole chunk, writable, `fill` where nothing was set."""
    out = np.full(CHUNK, fill)
    found = chunks.chunk(name, index)
    if found is not None:
        out[: found.size] = found
    return out


def _check_ids(dataset: Dataset, ids: Ids) -> None:
    wrong = (ids < 0) | (ids >= dataset.size)
    if wrong.any():
        first = int(ids[np.argmax(wrong)])
        raise ValueError(f"dataset {dataset.name!r} has ids 0..{dataset.size - 1}; got {first}")


def _name_key(name: str) -> bytes:
    key = name.encode()
    if not 1 <= len(key) <= 255:
        raise ValueError(f"a name must have 1..255 bytes, not {len(key)}: {name[:40]!r}")
    return key


def _parse_dataset(key: bytes, value: bytes) -> Dataset:
    place = f"the row of dataset {key.decode()!r}"
    try:
        row = registry_pb2.DatasetRow.FromString(unseal(place, key, value))
    except DecodeError as error:
        raise RecordDamaged(place, str(error)) from error
    return Dataset(
        name=row.name,
        dataset_id=row.dataset_id,
        size=row.size,
        fingerprint=row.fingerprint,
        retired=row.retired,
        columns=tuple(row.columns),
        created_unix_seconds=row.created_unix_seconds,
    )


def _parse_run(key: bytes, value: bytes) -> Run:
    place = f"the row of run {key.decode()!r}"
    try:
        row = registry_pb2.RunRow.FromString(unseal(place, key, value))
        spec = from_json(row.spec_json)
    except (DecodeError, ValueError) as error:
        raise RecordDamaged(place, str(error)) from error
    return Run(
        name=row.name,
        run_id=row.run_id,
        dataset=row.dataset,
        spec=spec,
        parent=row.parent,
        parent_step=row.parent_step,
        created_unix_seconds=row.created_unix_seconds,
    )
