"""The whole consistency report: every page, row, record, chain, checkpoint and history of a store, as of one moment.

For a process of its own: what LMDB does with damaged pages is not known. Nothing is written.

Found by a checksum: journal records, checkpoints and their chunks, histories and segments of losses, datasets, runs,
holes. By what they must agree with: the index of steps (the journal's batches), the counter of ids (the ids in use),
keys and their order (LMDB's tree, and that all of it belongs to something). Pages, where nobody writes to the file:
their heads, how they hang together, which are free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from steelyard_server.core.events import BatchDrawn
from steelyard_server.history import creation, tail
from steelyard_server.history.checkpoints import Checkpoints
from steelyard_server.history.errors import RecordDamaged, StoreBusy, StoreError
from steelyard_server.history.journal import Journal
from steelyard_server.history.lockfile import LockFile
from steelyard_server.history.losses import LossHistory
from steelyard_server.history.ops import Table, prefix_range, u64
from steelyard_server.history.registry import Dataset, Registry, Run
from steelyard_server.history.sealed import unseal
from steelyard_server.history.store import FORMAT_VERSION, Snapshot, check_format, faults
from steelyard_server.policies.policy import PolicyError
from steelyard_server.runs.log import RunLog

from .findings import Finding, Report
from .manifest import Manifest
from .replay import differences

Say = Callable[[Any], None]

_SEALED = (Table.CHECKPOINTS, Table.CHUNKS, Table.HISTORY, Table.HOLES, Table.SEGMENTS)
_OWNED = (*_SEALED, Table.JOURNAL, Table.STEPS)
_ROWS_A_WORD = 1 << 16
_MOST_OF_A_KIND = 20
"""Findings of one table or run: more say no more."""

_RESTORE = "restore a backup (`steelyard restore`)"


def check_store(
    directory: Path, *, shared: bool, deep: bool, expected: Manifest | None = None, say: Say = lambda _: None
) -> dict[str, Any]:
    """The report on `directory`; each finding is said as it is found. `shared`: a server may be writing to it, and its
    pages are not looked at. `deep`: runs are replayed from each checkpoint to the next. `expected`: what must be there.

    StoreError where it cannot even be opened.
    """
    return _Check(directory, say, deep=deep).run(shared=shared, expected=expected)


class _Check:
    def __init__(self, directory: Path, say: Say, *, deep: bool) -> None:
        self._directory = directory
        self._say = say
        self._deep = deep
        self._report = Report()

    def run(self, *, shared: bool, expected: Manifest | None) -> dict[str, Any]:
        report = self._report
        if not creation.exists(self._directory):
            raise StoreError(f"{self._directory} holds no store: it has no {creation.DATA}")
        check_format(self._directory)
        report.file_bytes = (self._directory / creation.DATA).stat().st_size
        if not shared and self._pages_are_damaged():
            # LMDB may die of them, and then nothing else would be said.
            return report.plain()
        self._tail(shared=shared)
        snapshot = Snapshot(self._directory, shared=shared)
        try:
            self._store(snapshot, expected)
        finally:
            snapshot.close()
        return report.plain()

    def _pages_are_damaged(self) -> bool:
        found = faults(self._directory)
        for fault in found[:_MOST_OF_A_KIND]:
            self._damage(f"{self._directory}/{creation.DATA}", f"LMDB's pages: {fault}", _RESTORE)
        return bool(found)

    def _tail(self, *, shared: bool) -> None:
        records, size, torn = tail.described(self._directory / "tail")
        self._report.tail_bytes = size + torn
        if shared:
            return  # a server is at it, and commits it in a moment
        if torn:
            self._note(
                f"{self._directory}/tail", f"{torn} bytes at its end are no whole record: never acknowledged"
            )
        if records:
            self._note(
                f"{self._directory}/tail",
                f"{records} acknowledged writes ({size} bytes) are not in the store yet",
                "nothing: the server takes them in when it starts",
            )

    def _store(self, snapshot: Snapshot, expected: Manifest | None) -> None:
        report = self._report
        report.store_format = snapshot.format
        page, used, live = snapshot.pages()
        report.live_bytes, report.free_bytes = page * live, page * max(0, used - 2 - live)
        if report.store_format < FORMAT_VERSION:
            self._note(
                "the store",
                f"its format is {report.store_format}; this program writes {FORMAT_VERSION}",
                "nothing: the next start marks it as such, in one transaction",
            )
        registry = Registry(snapshot)
        datasets = list(self._readable(snapshot, Table.DATASETS, "dataset", registry.dataset))
        runs = list(self._readable(snapshot, Table.RUNS, "run", registry.run))
        report.datasets, report.runs = len(datasets), len(runs)
        owners = {one.dataset_id: f"dataset {one.name!r}" for one in datasets}
        owners |= {one.run_id: f"run {one.name!r}" for one in runs}
        self._meta(snapshot, owners)
        for table in Table:
            self._rows(snapshot, table, owners)
        self._pieces(snapshot)
        for dataset in datasets:
            self._dataset(registry, dataset)
        names = {one.name for one in datasets}
        for run in runs:
            if run.dataset not in names:
                self._damage(f"run {run.name!r}", f"its dataset {run.dataset!r} is not there", _RESTORE)
            _RunCheck(self, snapshot, run, deep=self._deep).check(expected)
        if expected is not None:
            self._compare(expected, datasets, runs)

    # ---- rows ----

    def _readable(
        self, snapshot: Snapshot, table: Table, kind: str, read: Callable[[str], Any]
    ) -> Iterator[Any]:
        for key, _ in self._walked(snapshot, table):
            try:
                yield read(key.decode())
            except (RecordDamaged, UnicodeDecodeError) as damage:
                self._damage(
                    f"the row of {kind} {key.decode(errors='replace')!r}",
                    f"{damage}: the {kind} cannot be found, though all that is under it may be whole",
                    _RESTORE,
                )

    def _meta(self, snapshot: Snapshot, owners: dict[int, str]) -> None:
        value = snapshot.get(Table.META, b"next-id") or u64(1)
        if len(value) != 8 or int.from_bytes(value, "big") <= max(owners, default=0):
            self._damage(
                "the counter of ids",
                f"it stands at {value.hex()}, and {max(owners, default=0)} is in use: a new run would get an id twice",
                _RESTORE,
            )

    def _rows(self, snapshot: Snapshot, table: Table, owners: dict[int, str]) -> None:
        """Checksums, order, and that each row belongs to something."""
        seen, found, before = 0, 0, b""
        strangers: dict[int, int] = {}
        for key, value in self._walked(snapshot, table):
            seen += 1
            if seen % _ROWS_A_WORD == 0:
                self._say({"progress": f"table {table}: {seen} rows"})
            owner = int.from_bytes(key[:8], "big")
            if table in _OWNED and owner not in owners:
                strangers[owner] = strangers.get(owner, 0) + 1
            why = self._fault_of_row(table, key, value, before)
            before = key
            if why and (found := found + 1) <= _MOST_OF_A_KIND:
                self._damage(
                    f"{owners.get(owner, f'owner {owner}')}, table {table}, key {key.hex()}", why, _RESTORE
                )
        self._report.rows += seen
        counted = snapshot.entries(table)
        if counted != seen:
            self._damage(f"table {table}", f"LMDB counts {counted} rows, and there are {seen}", _RESTORE)
        if strangers:
            self._note(
                f"table {table}",
                f"{sum(strangers.values())} rows belong to nothing there is (owners {sorted(strangers)[:5]}): left by "
                "a "
                "deletion that was cut off, or their keys are damaged",
                "nothing: the next start removes them",
            )

    def _pieces(self, snapshot: Snapshot) -> None:
        """That each belongs to a value: the value itself tells of one that is missing."""
        try:
            wanted, found = snapshot.pieces(), snapshot.entries(Table.PIECES)
        except RecordDamaged:
            return  # told already: a table cannot be read to its end
        if wanted != found:
            self._damage(
                f"table {Table.PIECES}",
                f"the values want {wanted} of its rows, and there are {found}",
                _RESTORE,
            )

    @staticmethod
    def _fault_of_row(table: Table, key: bytes, value: bytes, before: bytes) -> str:
        if key <= before:
            return "its key is not above the one before it"
        if table in _SEALED:
            try:
                unseal("", key, value)
            except RecordDamaged as damage:
                return damage.why
        if table == Table.STEPS and (len(key) != 16 or len(value) != 8):
            return f"expected 16 bytes of key and 8 of value, found {len(key)} and {len(value)}"
        if table == Table.JOURNAL and len(key) != 16:
            return f"expected 16 bytes of key, found {len(key)}"
        return ""

    def _walked(self, snapshot: Snapshot, table: Table) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from snapshot.walk(table)
        except RecordDamaged as damage:
            self._damage(f"table {table}", f"it cannot be read to its end: {damage.why}", _RESTORE)

    # ---- datasets, and what was expected ----

    def _dataset(self, registry: Registry, dataset: Dataset) -> None:
        place = f"dataset {dataset.name!r}"
        with self._damage_at(place):
            retired = len(registry.retired(dataset))
            if retired != dataset.retired:
                self._damage(
                    place, f"{retired} ids are retired, and its row says {dataset.retired}", _RESTORE
                )
        for column in dataset.columns:
            with self._damage_at(f"{place}, column {column!r}"):
                registry.column(dataset, column)

    def _compare(self, expected: Manifest, datasets: list[Dataset], runs: list[Run]) -> None:
        wanted = {(one.name, one.size, one.retired, one.fingerprint) for one in expected.datasets}
        found = {(one.name, one.size, one.retired, one.fingerprint) for one in datasets}
        if wanted != found:
            self._damage("the datasets", f"expected {sorted(wanted)}, found {sorted(found)}", _RESTORE)
        names = sorted(one.name for one in runs)
        if names != sorted(one.name for one in expected.runs):
            self._damage(
                "the runs", f"expected {sorted(one.name for one in expected.runs)}, found {names}", _RESTORE
            )

    # ---- telling ----

    @contextlib.contextmanager
    def _damage_at(self, place: str, do: str = _RESTORE) -> Iterator[None]:
        try:
            yield
        except RecordDamaged as damage:
            self._damage(place, str(damage), do)

    def _damage(self, where: str, what: str, do: str = "") -> None:
        self._report.damages += 1
        self._say({"finding": Finding("damage", where, what, do).plain()})

    def _note(self, where: str, what: str, do: str = "") -> None:
        self._report.notes += 1
        self._say({"finding": Finding("note", where, what, do).plain()})


class _RunCheck:
    """One run: its journal and index, its checkpoints, the losses of its examples, and the state that all of it
    makes."""

    def __init__(self, check: _Check, snapshot: Snapshot, run: Run, *, deep: bool) -> None:
        self._check = check
        self._snapshot = snapshot
        self._run = run
        self._deep = deep
        self._place = f"run {run.name!r}"
        self._history_size = int(run.spec.get("history_size", 0))

    def check(self, expected: Manifest | None) -> None:
        self._check._say({"progress": self._place})
        try:
            journal = Journal(self._snapshot, self._run.run_id)
        except RecordDamaged as damage:
            self._damage(
                f"{self._place}, the end of its journal", f"{damage}: the run cannot be served", _RESTORE
            )
            return
        if not journal.next_seq:
            self._damage(
                f"{self._place}, its journal", "it is empty: not even its creation is there", _RESTORE
            )
            return
        whole = self._journal(journal)
        whole &= self._checkpoints(journal)
        self._losses(journal)
        if whole:
            self._state(expected)

    def _journal(self, journal: Journal) -> bool:
        """Whether every record that must be there is, in an unbroken chain; and the index agrees."""
        starts = [journal.lowest_seq(), *(stop for _, stop in journal.holes if stop > journal.lowest_seq())]
        drawn: dict[int, int] = {}
        whole = True
        for start in starts:
            whole &= self._piece(journal, start, drawn)
        rows = self._snapshot.walk_range(Table.STEPS, *prefix_range(u64(self._run.run_id)))
        indexed = {int.from_bytes(key[8:], "big"): int.from_bytes(value, "big") for key, value in rows}
        wrong = sorted(step for step in indexed.keys() | drawn.keys() if indexed.get(step) != drawn.get(step))
        if wrong and whole:
            self._damage(
                f"{self._place}, steps {wrong[0]}..{wrong[-1]}",
                f"the index of steps does not agree with the journal at {len(wrong)} of them: batches of these steps "
                "are "
                "not found, or rewinding there fails",
                _RESTORE,
            )
        return whole and not wrong

    def _piece(self, journal: Journal, start: int, drawn: dict[int, int]) -> bool:
        place, last, stop = start, None, journal.piece_end(start)
        try:
            for place, event in journal.read(start, stop):
                self._check._report.journal_records += 1
                if isinstance(event, BatchDrawn):
                    drawn[event.step], last = place, event.step
                place += 1
            return True
        except RecordDamaged as damage:
            behind = "" if last is None else f" behind step {last}"
            way = _RESTORE if last is None else (
                f"`steelyard rewind {self._run.name} --step {last}` goes back to what is whole, or {_RESTORE}"
            )  # fmt: skip
            self._damage(
                f"{self._place}, journal record {place}{behind}",
                f"{damage}: records {place}..{stop - 1} cannot be read in order, so the run cannot be replayed past it",
                way,
            )
            return False

    def _checkpoints(self, journal: Journal) -> bool:
        checkpoints = Checkpoints(self._snapshot, self._run.run_id)
        whole = True
        for seq, step in checkpoints.list():
            self._check._report.checkpoints += 1
            try:
                found = checkpoints.newest(seq)
                if found is None or (found.seq, found.step) != (seq, step):
                    raise RecordDamaged(f"checkpoint at record {seq}", "its row says that it is another one")
                if journal.keeps(seq - 1) and found.chain != journal.chain_at(seq):
                    raise RecordDamaged(
                        f"checkpoint at record {seq}", "it is of another journal than this one"
                    )
                checkpoints.load(found)
            except RecordDamaged as damage:
                whole = False
                self._damage(
                    f"{self._place}, checkpoint at step {step}",
                    f"{damage}: the run cannot be loaded from it, nor go back to the steps between it and the next",
                    f"an older or a newer checkpoint may serve; else {_RESTORE}",
                )
        return whole

    def _losses(self, journal: Journal) -> None:
        try:
            LossHistory(self._snapshot, self._run.run_id, self._history_size).check()
        except RecordDamaged as damage:
            self._damage(
                f"{self._place}, the last losses of its examples",
                f"{damage}: what was reported of these examples cannot be told",
                _RESTORE,
            )

    def _state(self, expected: Manifest | None) -> None:
        log = RunLog(self._snapshot, self._run.run_id, self._history_size, forked=bool(self._run.parent))
        try:
            state = log.load()
        except RecordDamaged as damage:
            self._damage(self._place, f"{damage}: the run cannot be loaded", _RESTORE)
            return
        except PolicyError as error:
            self._check._note(
                self._place,
                f"it has a policy that is not installed here ({error}), so it was not replayed",
                "install its methods to check it whole",
            )
            return
        except Exception as error:
            self._damage(self._place, f"its events cannot be folded: {error!r}", _RESTORE)
            return
        if self._deep:
            self._replay(log)
        if expected is not None:
            self._compare(expected, state.next_step, log.journal)

    def _replay(self, log: RunLog) -> None:
        for step, difference in differences(log):
            self._check._report.replayed_checkpoints += 1
            if difference:
                self._damage(
                    f"{self._place}, checkpoint at step {step}",
                    f"replaying the journal up to it gives another state: {difference}",
                    _RESTORE,
                )

    def _compare(self, expected: Manifest, next_step: int, journal: Journal) -> None:
        for one in expected.runs:
            if one.name == self._run.name:
                found = (next_step, journal.next_seq, journal.chain.hex())
                wanted = (one.next_step, one.journal_records, one.chain)
                if found != wanted:
                    self._damage(
                        self._place,
                        f"expected next step, journal records and chain {wanted}, found {found}",
                        "use another backup",
                    )

    def _damage(self, where: str, what: str, do: str) -> None:
        self._check._damage(where, what, do)


def held_by(directory: Path) -> str | None:
    """Who holds the directory, in words; None where nobody does."""
    if not (directory / "LOCK").exists():
        return None
    try:
        LockFile(directory).release()
    except StoreBusy as busy:
        return str(busy)
    except OSError:  # of a folder that cannot be written to, which nobody serves
        return None
    return None
