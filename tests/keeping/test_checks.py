"""Damage is found wherever something lives, is told in words, and no server starts on what would kill it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import steelyard
from steelyard.errors import FailedPrecondition
from steelyard_server.history import creation
from steelyard_server.history.errors import StoreDamaged, StoreError, StoreFailed, StoreTooNew
from steelyard_server.history.ops import Delete, Put, Table, u64
from steelyard_server.history.registry import Registry
from steelyard_server.history.room import PIECE_BYTES
from steelyard_server.history.store import FORMAT_VERSION, Snapshot, Store, faults
from steelyard_server.keeping.checking import check_store
from steelyard_server.keeping.errors import DiedError
from steelyard_server.keeping.offline import check
from steelyard_server.keeping.places import place_at
from steelyard_server.keeping.work import Task, ended_by

EVERYTHING = os.environ.get("STEELYARD_KEEPING") == "all"


def checked(directory: Path, **how: Any) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """(report, findings), made in this process: for files that LMDB survives."""
    said: list[dict[str, Any]] = []
    report = check_store(directory, **{"shared": False, "deep": False, **how}, say=said.append)
    return report, [one["finding"] for one in said if "finding" in one]


def damages(findings: list[dict[str, str]]) -> list[dict[str, str]]:
    return [one for one in findings if one["severity"] == "damage"]


def change(directory: Path, ops: Callable[[Store], list[Any]]) -> None:
    store = Store.open(directory)
    store.commit(ops(store))
    store.close()


def run_id(store: Store, name: str) -> int:
    row = Registry(store).run(name)
    assert row is not None
    return row.run_id


def test_nothing_is_found_in_a_store_that_was_only_used(store_dir: Path) -> None:
    report, findings = checked(store_dir, deep=True)
    assert findings == []
    assert (report["datasets"], report["runs"], report["damages"]) == (1, 3, 0)
    assert report["replayed_checkpoints"] >= 3
    assert report["journal_records"] > 80


def test_a_check_beside_the_runs_says_the_same(store_dir: Path, train: Any) -> None:
    with steelyard.local(
        store_dir, kernels="numpy", durability="interval", durability_interval_seconds=3600
    ) as client:
        train(client.run("plain"), 3)
        said: list[str] = []
        report = client.admin.check(deep=True, on_progress=said.append)
    assert report.findings == ()
    assert not report.damaged
    assert report.figures["runs"] == 3
    assert "run 'plain'" in said


def _spots(directory: Path) -> Iterator[tuple[Table, bytes, bytes]]:
    snapshot = Snapshot(directory, shared=False)
    for table in Table:
        if table is not Table.META:
            # One in pieces is there as those.
            rows = ((table, key, value) for key, value in snapshot.walk(table))
            yield from (row for row in rows if len(row[2]) <= PIECE_BYTES)
    snapshot.close()


def test_a_flip_of_any_value_is_found(store_dir: Path, tmp_path: Path) -> None:
    """One bit of every third row, another one for each; with STEELYARD_KEEPING=all, eight of each row. The file is
    changed in place, as a disk would."""
    whole = (store_dir / "data.mdb").read_bytes()
    spots = list(_spots(store_dir))
    assert {table for table, _, _ in spots} >= {
        Table.JOURNAL, Table.STEPS, Table.CHECKPOINTS, Table.CHUNKS, Table.SEGMENTS, Table.RUNS, Table.DATASETS
    }  # fmt: skip
    missed, tried = [], 0
    for number, (table, key, value) in enumerate(spots):
        node = key + value
        places = _all_of(whole, node) if len(node) < 2000 else _all_of(whole, value)
        assert places, (table, key)
        start = places[-1] + (len(key) if len(node) < 2000 else 0)
        steps = {(number * 7919 + 613 * turn) % len(value) for turn in range(8 if EVERYTHING else 1)}
        if not EVERYTHING and number % 3:
            continue
        for at in steps:
            spoilt = bytearray(whole)
            for place in places:  # LMDB keeps older copies of a page, which are free
                spoilt[place + (start - places[-1]) + at] ^= 1 << (at + number) % 8
            (store_dir / "data.mdb").write_bytes(spoilt)
            tried += 1
            try:
                found = damages(checked(store_dir)[1])
            except StoreError:
                continue
            if not found:
                missed.append((table, key.hex(), at))
    assert tried > 40
    assert missed == []


def _all_of(data: bytes, piece: bytes) -> list[int]:
    places, at = [], data.find(piece)
    while at >= 0:
        places.append(at)
        at = data.find(piece, at + 1)
    return places


def test_a_record_that_is_missing_or_from_elsewhere_is_found(store_dir: Path) -> None:
    def lose(store: Store) -> list[Any]:
        return [Delete(Table.JOURNAL, u64(run_id(store, "plain"), 7))]

    change(store_dir, lose)
    _, findings = checked(store_dir)
    [found] = damages(findings)
    assert found["where"].startswith("run 'plain', journal record 7")
    assert "cannot be replayed past it" in found["what"]
    assert "steelyard" in found["do"]


def test_damage_is_told_with_the_run_and_what_to_do(store_dir: Path) -> None:
    def spoil(store: Store) -> list[Any]:
        key = u64(run_id(store, "plain"), 9)
        value = bytearray(store.get(Table.JOURNAL, key) or b"")
        value[-1] ^= 1
        return [Put(Table.JOURNAL, key, bytes(value))]

    change(store_dir, spoil)
    findings, report = check(store_dir, False, 60)
    [found] = damages(findings)
    assert "run 'plain', journal record 9" in found["where"]
    assert "rewind plain --step" in found["remedy"]
    assert report["damages"] == 1


def test_what_the_index_the_counter_and_the_owners_say_is_compared(store_dir: Path) -> None:
    def spoil(store: Store) -> list[Any]:
        return [
            Put(Table.STEPS, u64(run_id(store, "plain"), 4), u64(1)),
            Put(Table.META, b"next-id", u64(2)),
            Put(Table.CHUNKS, u64(99) + b"x\0\0\0\0\0" + u64(1), b"12345"),
        ]

    change(store_dir, spoil)
    _, findings = checked(store_dir)
    told = " ".join(one["where"] + one["what"] for one in findings)
    assert "the index of steps does not agree with the journal at 1 of them" in told
    assert "a new run would get an id twice" in told
    assert "belong to nothing there is (owners [99])" in told


def test_a_state_that_the_journal_does_not_lead_to_is_found_by_a_deep_check(astray: Path) -> None:
    assert damages(checked(astray)[1]) == []
    [found] = damages(checked(astray, deep=True)[1])
    assert "replaying the journal up to it gives another state: counters" in found["what"]


def test_a_file_cut_at_any_page_is_found_and_no_server_starts_on_it(store_dir: Path) -> None:
    """Where what is cut off was free, the store is whole: then it is served."""
    whole = (store_dir / "data.mdb").read_bytes()
    served = 0
    for size in range(0, len(whole), 4096 if EVERYTHING else 5 * 4096):
        (store_dir / "data.mdb").write_bytes(whole[:size])
        try:
            found = damages(checked(store_dir)[1])
        except StoreDamaged:
            found = [{}]
        if found:
            with pytest.raises(StoreDamaged, match="steelyard restore"):
                Store.open(store_dir)
        else:
            served += 1
            Store.open(store_dir).close()
    assert served < 4


def test_a_file_that_is_damaged_or_no_store_at_all_is_refused_with_the_way_out(store_dir: Path) -> None:
    whole = (store_dir / "data.mdb").read_bytes()
    for data in (b"", b"x" * 8192, whole[:4096] + bytes(4096) + whole[8192:]):
        (store_dir / "data.mdb").write_bytes(data)
        with pytest.raises(FailedPrecondition, match=r"is damaged: .* `steelyard restore --from BACKUPS"):
            steelyard.local(store_dir, kernels="numpy")
        assert (store_dir / "data.mdb").read_bytes() == data


def test_a_reader_that_a_truncated_file_kills_is_told_of_in_words(store_dir: Path, tmp_path: Path) -> None:
    """As of a backup that goes to disk while somebody cuts the file: not the server dies."""
    program = (
        "import os, sys; from pathlib import Path; from steelyard_server.history.store import Snapshot, Table\n"
        "d = Path(sys.argv[1]); s = Snapshot(d, shared=False); os.truncate(d / 'data.mdb', 8192)\n"
        "print(sum(len(v) for t in Table for _, v in s.walk(t)))"
    )
    died = subprocess.run(
        [sys.executable, "-c", program, str(store_dir)], capture_output=True, timeout=60, check=False
    )
    assert died.returncode < 0, "LMDB survives it by now: then there is no need for child processes"
    assert ended_by(died.returncode) == "was killed by SIGBUS: the file is shorter than what is in it"


def test_work_that_takes_too_long_is_broken_off(store_dir: Path, tmp_path: Path) -> None:
    task = Task(
        "backup",
        "the backup",
        directory=str(store_dir),
        to=str(tmp_path / "b"),
        shared=False,
        rate=1000,
        part_bytes=4096,
        keep=0,
    )
    with pytest.raises(DiedError, match="the backup did not end within 2 s"):
        task.run(2)
    assert place_at(str(tmp_path / "b")).names() == []


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import time; time.sleep(60)", "did not end within 2 s"),
        (
            "print('{\"done\": [1, 2', end='', flush=True); import os; os.kill(os.getpid(), 9)",
            "killed by SIGKILL",
        ),
    ],
)
def test_a_child_that_reads_nothing_or_dies_within_a_word_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, says: str
) -> None:
    """Its task is longer than a pipe holds."""
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DiedError, match=says):
        Task("check", "the check", padding="x" * (1 << 20)).run(2)


def test_pages_are_checked_also_where_lmdb_changed_its_insides(
    store_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is private to it says more: where the last page in use is. The newest release still has it."""
    # Of several pages, and so many that the last lie at the end of the file.
    change(store_dir, lambda _: [Put(Table.META, b"large%d" % at, b"x" * 16_000) for at in range(30)])
    assert faults(store_dir) == []
    path = store_dir / "data.mdb"
    whole = path.read_bytes()
    end = whole.rindex(b"x" * 4000) + 4000
    for private in (True, False):
        if not private:
            monkeypatch.delattr("lmdb.verify._Verifier")
            monkeypatch.setattr("lmdb.verify.verify", lambda directory: [])
        path.write_bytes(whole[: end - 9000])
        [fault] = faults(store_dir)
        assert "are in use, and the file ends at byte" in fault
        path.write_bytes(whole)
        assert faults(store_dir) == []


def _folder(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.iterdir()
        if path.is_file()
    }


def test_a_newer_format_is_refused_and_not_a_byte_of_the_folder_changes(store_dir: Path) -> None:
    change(store_dir, lambda _: [Put(Table.META, b"format", u64(FORMAT_VERSION + 1))])
    for leftover in ("LOCK", "lock.mdb", "tail"):
        (store_dir / leftover).unlink(missing_ok=True)
    before = _folder(store_dir)
    assert list(before) == ["data.mdb"]
    for _ in range(2):
        with pytest.raises(
            StoreTooNew, match=f"has format {FORMAT_VERSION + 1}; this program knows {FORMAT_VERSION}"
        ):
            Store.open(store_dir)
        with pytest.raises(StoreTooNew):
            Snapshot(store_dir, shared=False)
    assert _folder(store_dir) == before


def test_an_older_format_is_marked_by_one_commit_and_nothing_else_changes(store_dir: Path) -> None:
    change(store_dir, lambda _: [Put(Table.META, b"format", u64(1))])
    _, findings = checked(store_dir)
    assert ["its format is 1" in one["what"] for one in findings] == [True]

    def rows() -> dict[tuple[str, bytes], bytes]:
        return {(table, key): value for table, key, value in _spots(store_dir)}

    before = rows()
    Store.open(store_dir).close()
    snapshot = Snapshot(store_dir, shared=False)
    assert snapshot.format == FORMAT_VERSION
    snapshot.close()
    assert rows() == before


def test_no_store_is_begun_where_a_restore_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "data" / creation.RESTORING).mkdir(parents=True)
    with pytest.raises(StoreFailed, match="a restore into .* was begun and did not end"):
        Store.open(tmp_path / "data")
    assert not (tmp_path / "data" / "data.mdb").exists()


def test_a_snapshot_stays_as_it_was_and_takes_no_writes(store_dir: Path) -> None:
    snapshot = Snapshot(store_dir, shared=False)
    with pytest.raises(StoreError, match="opened to be read"):
        snapshot.commit([])
    with pytest.raises(StoreError, match="opened to be read"):
        snapshot.write([], lambda _: None)
    snapshot.close()
