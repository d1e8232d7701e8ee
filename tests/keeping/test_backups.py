"""What was backed up comes back, and nothing else is taken for a backup."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import steelyard
from steelyard.errors import FailedPrecondition
from steelyard.testing import ServerProcess
from steelyard_server.history.errors import StoreBusy
from steelyard_server.history.lockfile import LockFile
from steelyard_server.history.ops import Put, Table, u64
from steelyard_server.history.store import Snapshot, Store
from steelyard_server.keeping import manifest, offline
from steelyard_server.keeping.errors import KeepingError, NotWholeError, RefusedError
from steelyard_server.keeping.keeper import Keeper
from steelyard_server.keeping.manifest import Manifest
from steelyard_server.keeping.places import Remote, backup_at, place_at, shown, within
from steelyard_server.keeping.restoring import restore, verify
from steelyard_server.keeping.retention import prune, superseded
from steelyard_server.keeping.writing import write_backup


@pytest.mark.parametrize("durability", ["sync", "interval"])
def test_a_run_goes_on_from_a_backup_with_the_ids_that_followed(
    tmp_path: Path, train: Any, durability: str
) -> None:
    """A server is killed after the backup and its folder is lost; under interval the backup is of its tail as well."""
    with ServerProcess(
        tmp_path / "first", backup_to=str(tmp_path / "backups"), durability=durability,
        durability_interval_seconds=3600, kernels="numpy",
    ) as server:  # fmt: skip
        client = server.client()
        client.create_dataset("text", size=500)
        run = client.create_run(
            "a",
            dataset="text",
            batch_size=16,
            history_size=3,
            draw={"method": "scored", "score": "last_loss"},
        )
        train(run, 10)
        made = client.admin.backup()
        followed = train(run, 10)
        server.kill()
    assert made.runs["a"] >= 10
    assert made.verified is None
    restore(f"{made.place}/{made.name}", tmp_path / "second" / "data")
    with steelyard.local(tmp_path / "second" / "data", kernels="numpy") as client:
        assert train(client.run("a"), 10) == followed


def test_a_backup_beside_training_is_of_one_moment_and_of_all_that_was_acknowledged(
    tmp_path: Path, train: Any
) -> None:
    with steelyard.local(tmp_path / "data", backup_to=str(tmp_path / "backups"), kernels="numpy") as client:
        client.create_dataset("text", size=500)
        run = client.create_run("a", dataset="text", batch_size=8)
        with run.join(rank=0, world_size=1) as session:
            for _ in range(40):
                batch = session.next()
                session.report(batch, np.ones(8, np.float32))
            session.flush()
            made = client.admin.backup()
            for _ in range(40):
                session.report(session.next(), np.ones(8, np.float32))
        later = client.admin.backup()
        assert [one.name for one in client.admin.backups()] == [made.name, later.name]
    assert 40 <= made.runs["a"] < later.runs["a"]
    kept = restore(str(tmp_path / "backups" / made.name), tmp_path / "restored")
    assert kept.runs[0].next_step == made.runs["a"]
    with steelyard.local(tmp_path / "restored", kernels="numpy") as client:
        assert client.run("a").info().closed_steps >= 40


def test_the_server_writes_backups_to_its_own_place_alone(tmp_path: Path) -> None:
    own = tmp_path / "backups"
    own.mkdir()
    (own / "link").symlink_to(tmp_path / "elsewhere")
    with steelyard.local(tmp_path / "data", backup_to=str(own), kernels="numpy") as client:
        for to in (
            str(tmp_path / "elsewhere"),
            f"{own}/../elsewhere",
            f"{own}/link",
            f"{own}2",
            f"{own}/\0",
            "memory://x",
            "/",
        ):
            with pytest.raises(FailedPrecondition, match="backup_to"):
                client.admin.backup(to)
        assert client.admin.backup(str(own / "before-the-upgrade")).place == str(own / "before-the-upgrade")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backups", "data"]
    with (
        steelyard.local(tmp_path / "data", kernels="numpy") as client,
        pytest.raises(FailedPrecondition, match="no backup_to"),
    ):
        client.admin.backup(str(own))


@pytest.mark.parametrize(
    ("where", "inside"),
    [
        ("s3://bucket/a", True),
        ("s3://bucket/a/b", True),
        ("s3://bucket/ab", False),
        ("s3://bucket/a/../b", False),
        ("s3://other/a", False),
        ("s3://bucket", False),
        ("/bucket/a", False),
        ("gs://bucket/a", False),
        ("s3://bucket/a/x::file:///elsewhere", False),
        ("s3://bucket/a/%2e%2e/b", False),
        ("s3://bucket/a/b?c", False),
        ("s3://bucket/a/..\\b", False),
    ],
)
def test_what_lies_below_a_url_is_told_from_what_does_not(where: str, inside: bool) -> None:
    assert within(where, "s3://bucket/a") is inside


def test_what_is_no_path_at_all_lies_nowhere(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for where in (f"{tmp_path}/a\0b", f"{tmp_path}/{'x' * 5000}", f"{tmp_path}/circle/x", "file://host/a"):
        assert not within(where, str(tmp_path / "circle" / "x"))
    with pytest.raises(RefusedError, match="three slashes"):
        place_at("file://backups")
    assert within(f"FILE://{tmp_path}/a", f"local://{tmp_path}")


class Cached(MemoryFileSystem):  # type: ignore[misc]
    """Remembers what it has listed, as the object stores' do."""

    protocol = "cached"
    cachable = False

    def ls(self, path: str, detail: bool = True, **how: Any) -> Any:
        if path not in self.dircache:
            self.dircache[path] = super().ls(path, detail=True, **how)
        found = self.dircache[path]
        return found if detail else [one["name"] for one in found]

    def invalidate_cache(self, path: str | None = None) -> None:
        self.dircache.clear()


def test_a_backup_by_another_process_is_seen_where_listings_are_remembered(store_dir: Path) -> None:
    fsspec.register_implementation("cached", Cached, clobber=True)
    seeing = Remote("cached://steelyard/b")
    assert seeing.names() == []
    made = []
    for _ in range(3):
        made.append(write_backup(store_dir, Remote("cached://steelyard/b"), shared=False).name)
        assert seeing.names() == sorted(made)
    assert prune(seeing, 1, made[-1]) == made[:2]
    assert backup_at("cached://steelyard/b")[1] == made[-1]
    MemoryFileSystem.store.clear()


def test_servers_that_share_a_place_remove_their_own_backups_alone(tmp_path: Path) -> None:
    place = tmp_path / "backups"
    with steelyard.local(tmp_path / "lost", backup_to=str(place), backup_keep=1, kernels="numpy") as client:
        client.create_dataset("lost", size=10)
        lost = client.admin.backup()
    with steelyard.local(tmp_path / "other", backup_to=str(place), backup_keep=1, kernels="numpy") as client:
        others = [client.admin.backup().name for _ in range(2)]
    assert place_at(str(place)).names() == [lost.name, others[1]]
    with pytest.raises(RefusedError, match=f"backups of 2 stores; say which: .*{lost.name}"):
        restore(str(place), tmp_path / "restored")
    restore(f"{place}/{lost.name}", tmp_path / "restored")
    with steelyard.local(
        tmp_path / "restored", backup_to=str(place), backup_keep=1, kernels="numpy"
    ) as client:
        # It is the store that was lost, and goes on where that one was.
        made = client.admin.backup()
    assert place_at(str(place)).names() == [others[1], made.name]


def test_a_backup_takes_no_room_from_the_runs(tmp_path: Path) -> None:
    """A map that may hardly grow, and a slow backup of it, beside writes that free as much as they take."""
    data = tmp_path / "data"
    store = Store.open(data, map_size=1 << 20, max_map_size=8 << 20)
    keeper = Keeper(store, data, to=str(tmp_path / "backups"), rate=20_000)
    store.commit([Put(Table.META, b"k%d" % n, bytes(50_000)) for n in range(20)])
    failed: list[Exception] = []

    def back_up() -> None:
        try:
            keeper.backup()
        except KeepingError as error:
            failed.append(error)

    thread = threading.Thread(target=back_up)
    thread.start()
    turn = 0
    while thread.is_alive():
        turn += 1
        store.commit([Put(Table.META, b"k%d" % (turn % 20), bytes(50_000))])  # StoreFull: the test fails
        time.sleep(0.01)
    assert "was broken off: the store's file has grown by" in str(failed)
    store.commit([Put(Table.META, b"k1", bytes(50_000))])
    store.close()


def test_a_backup_to_a_disk_that_is_full_fails_at_once_and_in_words(
    store_dir: Path, tmp_path: Path, mount: Any
) -> None:
    """More than a pipe holds is still to be copied when the first part finds no room."""
    assert (store_dir / "data.mdb").stat().st_size > 300_000
    disk = mount("disk", "-t", "tmpfs", "-o", "size=64k", "tmpfs")
    with pytest.raises(KeepingError, match="No space left on device"):
        offline.backup(store_dir, str(disk / "backups"), 20)
    assert list((disk / "backups").iterdir()) == []


def test_a_backup_of_a_folder_of_an_older_format_is_of_that_and_leaves_it_so(
    store_dir: Path, tmp_path: Path
) -> None:
    """It is made before an upgrade, to be the way back: for a program that refuses what is newer."""
    store = Store.open(store_dir)
    store.commit([Put(Table.META, b"format", u64(3))])
    store.close()
    before = (store_dir / "data.mdb").read_bytes()
    made = offline.backup(store_dir, str(tmp_path / "backups"), 60)
    assert (store_dir / "data.mdb").read_bytes() == before
    restore(f"{made['place']}/{made['name']}", tmp_path / "back")
    for folder in (store_dir, tmp_path / "back"):
        snapshot = Snapshot(folder, shared=False)
        assert snapshot.format == 3
        snapshot.close()


def test_a_place_is_shown_without_its_credentials() -> None:
    assert shown("s3://user:secret@host/bucket/a?token=x") == "s3://host/bucket/a"


def test_backups_go_to_a_url_and_come_back(store_dir: Path, tmp_path: Path) -> None:
    for url in ("memory://steelyard/backups", f"file://{tmp_path}/of-a-url"):
        place = Remote(url)
        made = write_backup(store_dir, place, shared=False, part_bytes=1 << 16)
        assert len(made.parts) > 2
        assert place.names() == [made.name]
        restored = tmp_path / f"restored-{url[:4]}"
        restore(url, restored)
        assert verify(f"{url}/{made.name}").name == made.name
        assert place.read(made.name, "verified.json") is not None
        place.remove(made.name)
        assert place.names() == []
        assert (restored / "data.mdb").stat().st_size == made.bytes
    fsspec.filesystem("memory").store.clear()


def test_a_backup_without_a_manifest_or_with_half_a_one_is_none(
    backed_up: tuple[Path, Manifest], tmp_path: Path
) -> None:
    place, made = backed_up
    path = place / made.name / manifest.FILE
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(NotWholeError):
            restore(str(place), tmp_path / "restored")
    path.unlink()
    with pytest.raises(NotWholeError, match="no whole backup"):
        restore(str(place), tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_an_edited_manifest_is_refused_at_every_byte(backed_up: tuple[Path, Manifest]) -> None:
    place, made = backed_up
    whole = (place / made.name / manifest.FILE).read_bytes()
    accepted = []
    for at in range(len(whole)):
        edited = bytearray(whole)
        edited[at] ^= 1
        try:
            found = manifest.from_bytes(bytes(edited), "here")
        except NotWholeError:
            continue
        if found != made:
            accepted.append(at)
    assert accepted == []


def test_a_part_that_is_cut_at_any_page_changed_or_missing_is_refused(
    backed_up: tuple[Path, Manifest], tmp_path: Path
) -> None:
    place, made = backed_up
    for part in made.parts:
        path = place / made.name / part.name
        whole = path.read_bytes()
        spoilt = [whole[:size] for size in range(0, len(whole), 4096)]
        spoilt += [whole + b"\0", whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]]
        for data in spoilt:
            path.write_bytes(data)
            with pytest.raises(NotWholeError, match=part.name):
                restore(str(place), tmp_path / "restored")
        path.unlink()
        with pytest.raises(NotWholeError, match=part.name):
            restore(str(place), tmp_path / "restored")
        path.write_bytes(whole)
    assert not (tmp_path / "restored").exists()


def test_a_backup_whose_hashes_hold_over_damage_is_refused_by_its_verification(
    backed_up: tuple[Path, Manifest], tmp_path: Path
) -> None:
    """Of a store that was damaged when it was backed up, say: LMDB copies what it does not look at."""
    place, made = backed_up
    folder = place / made.name
    data = bytearray(b"".join((folder / part.name).read_bytes() for part in made.parts))
    at = data.rindex(b'"shuffle"')
    data[at + 1] ^= 1
    for part in made.parts[1:]:
        (folder / part.name).unlink()
    (folder / "data.00000").write_bytes(data)
    one = manifest.Part(name="data.00000", bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / manifest.FILE).write_bytes(manifest.to_bytes(made.model_copy(update={"parts": (one,)})))
    with pytest.raises(NotWholeError, match="is damaged and was not used"):
        restore(str(place), tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_a_backup_of_another_moment_than_its_manifest_is_refused(
    backed_up: tuple[Path, Manifest], tmp_path: Path
) -> None:
    place, made = backed_up
    runs = (made.runs[0].model_copy(update={"next_step": 99}), *made.runs[1:])
    forged = made.model_copy(update={"runs": runs})
    (place / made.name / manifest.FILE).write_bytes(manifest.to_bytes(forged))
    with pytest.raises(NotWholeError, match="expected next step"):
        restore(str(place), tmp_path / "restored")


def test_a_restore_overwrites_nothing(
    backed_up: tuple[Path, Manifest], store_dir: Path, tmp_path: Path
) -> None:
    place, _ = backed_up
    before = {path.name: path.read_bytes() for path in store_dir.iterdir()}
    with pytest.raises(RefusedError, match=r"to be empty or not there, found data\.mdb"):
        restore(str(place), store_dir)
    assert {path.name: path.read_bytes() for path in store_dir.iterdir()} == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(RefusedError, match=r"found notes\.txt"):
        restore(str(place), other)
    assert [path.name for path in other.iterdir()] == ["notes.txt"]


def test_a_folder_that_is_held_is_not_restored_to(backed_up: tuple[Path, Manifest], tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    lock = LockFile(held)
    with pytest.raises(StoreBusy, match=str(os.getpid())):
        restore(str(backed_up[0]), held)
    lock.release()


def test_a_new_file_system_counts_as_empty(backed_up: tuple[Path, Manifest], tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "lost+found").mkdir(parents=True)
    restore(str(backed_up[0]), volume)
    assert (volume / "data.mdb").exists()


def test_a_backup_of_a_newer_program_is_refused(backed_up: tuple[Path, Manifest], tmp_path: Path) -> None:
    place, made = backed_up
    path = place / made.name / manifest.FILE
    path.write_bytes(manifest.to_bytes(made.model_copy(update={"store_format": 99})))
    with pytest.raises(RefusedError, match="store format 99; this program knows"):
        restore(str(place), tmp_path / "restored")
    outer = json.loads(path.read_bytes())
    outer["manifest"]["version"] = 2
    path.write_text(json.dumps(outer))
    with pytest.raises(NotWholeError, match="manifest version 2; this program knows 1"):
        restore(str(place), tmp_path / "restored")
    assert not (tmp_path / "restored").exists()


def test_the_newest_of_several_is_taken_and_a_partial_one_is_not_seen(
    backed_up: tuple[Path, Manifest], store_dir: Path
) -> None:
    place, made = backed_up
    newer = write_backup(store_dir, place_at(str(place)), shared=False)
    shutil.copytree(place / newer.name, place / ".partial-backup-99990101T000000.000Z-aaaaaa")
    (place / "backup-99990101T000000.000Z-bbbbbb").mkdir()
    assert backup_at(str(place))[1] == newer.name
    assert backup_at(f"{place}/{made.name}")[1] == made.name


@pytest.mark.parametrize(
    ("names", "keep", "newest", "gone"),
    [
        ("abcd", 2, "d", "ab"),
        ("abcd", 1, "d", "abc"),
        ("abcd", 9, "d", ""),
        ("a", 1, "a", ""),
        # The clock went back: the one just made sorts first.
        ("abcd", 2, "a", "bc"),
        ("abcd", 0, "d", "abc"),
    ],
)
def test_retention_keeps_the_last_ones_and_always_the_one_just_made(
    names: str, keep: int, newest: str, gone: str
) -> None:
    assert superseded(list(names), keep, newest) == list(gone)


def test_scheduled_backups_are_made_and_the_older_ones_removed(tmp_path: Path, eventually: Any) -> None:
    place = place_at(str(tmp_path / "backups"))
    with steelyard.local(
        tmp_path / "data", backup_to=str(tmp_path / "backups"), backup_interval_seconds=0.1, backup_keep=2,
        kernels="numpy",
    ) as client:  # fmt: skip
        client.create_dataset("text", size=10)
        first = eventually(place.names)[0]
        eventually(lambda: place.names() and first not in place.names())
        assert 1 <= len(place.names()) <= 3
    assert 1 <= len(place.names()) <= 3
    assert restore(str(tmp_path / "backups"), tmp_path / "restored").datasets[0].name == "text"


def test_other_calls_do_not_wait_for_a_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under_way, go_on = threading.Event(), threading.Event()

    def backup(self: Keeper, to: str = "") -> None:
        under_way.set()
        go_on.wait(30)
        raise RefusedError("tried")

    monkeypatch.setattr(Keeper, "backup", backup)
    local = steelyard.local(tmp_path / "data", kernels="numpy", call_threads=1)
    with local as client, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.admin.backup, timeout=30)
        assert under_way.wait(20)
        assert client.list_datasets() == []
        go_on.set()
        with pytest.raises(steelyard.FailedPrecondition, match="tried"):
            asked.result(30)
