"""Where a restore goes to: a volume, a link, a disk that is full or read-only. It works, or says why not and leaves
nothing that a server would take for data.

The file systems are real ones, mounted for the test; where nothing can be mounted, it is skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from steelyard_server.history.creation import RESTORING
from steelyard_server.history.errors import StoreBusy
from steelyard_server.history.lockfile import LockFile
from steelyard_server.history.store import Snapshot, Store
from steelyard_server.keeping import offline
from steelyard_server.keeping.errors import KeepingError, NotWholeError, RefusedError
from steelyard_server.keeping.manifest import Manifest
from steelyard_server.keeping.restoring import restore
from steelyard_server.keeping.writing import facts
from tests.keeping.conftest import ran

BackedUp = tuple[Path, Manifest]
Mount = Callable[..., Path]


def _tmpfs(bytes_: int) -> tuple[str, ...]:
    return ("-t", "tmpfs", "-o", f"size={bytes_}", "tmpfs")


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def _check_restored(directory: Path, made: Manifest) -> None:
    """As a server opens it."""
    snapshot = Snapshot(directory, shared=False)
    assert facts(snapshot) == (made.datasets, made.runs)
    snapshot.close()
    Store.open(directory).close()
    assert RESTORING not in _names(directory)


def test_a_volume_that_is_mounted_where_the_data_go_is_restored_to(
    backed_up: BackedUp, mount: Mount, tmp_path: Path
) -> None:
    """An ext4 of its own, as a cluster mounts it: nothing can be renamed over it, and lost+found is in it."""
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 16 << 20)
    ran("mkfs.ext4", "-q", str(image))
    volume = mount("volume", "-o", "loop", str(image))
    assert _names(volume) == {"lost+found"}
    restore(str(backed_up[0]), volume)
    assert volume.is_mount()
    _check_restored(volume, backed_up[1])
    with pytest.raises(RefusedError, match=r"found data\.mdb.*; move all that is in it elsewhere first"):
        restore(str(backed_up[0]), volume)


def test_what_is_made_on_a_volume_is_its_owners(backed_up: BackedUp, mount: Mount) -> None:
    """Root restores for a server that runs as another user, to a folder that is not there yet."""
    volume = mount("volume", *_tmpfs(16 << 20))
    os.chown(volume, 65532, 65532)
    restore(str(backed_up[0]), volume / "steelyard" / "data")
    made = [volume / "steelyard", *(volume / "steelyard").rglob("*")]
    assert {path.name for path in made} == {"steelyard", "data", "data.mdb", "LOCK"}
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(65532, 65532)}


@pytest.mark.parametrize("filled", ["before", "fetching", "verifying"])
def test_a_disk_that_is_full_or_gets_full_takes_nothing(
    backed_up: BackedUp, mount: Mount, filled: str
) -> None:
    """Another file takes the room: before the restore begins, or meanwhile."""
    disk = mount("disk", *_tmpfs(4 << 20))
    data, ballast = disk / "steelyard" / "data", disk / "ballast"

    def fill(said: str) -> None:
        if said.startswith(filled):
            with contextlib.suppress(OSError), ballast.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()

    fill("before")
    if filled == "verifying":
        # It writes nothing any more: what is left is a rename.
        restore(str(backed_up[0]), data, say=fill)
    else:
        why = (
            "bytes free; the backup takes"
            if filled == "before"
            else "nothing was restored to .*No space left"
        )
        with pytest.raises(KeepingError, match=why):
            restore(str(backed_up[0]), data, say=fill)
        assert _names(disk) == {"ballast"}
        ballast.unlink()
        restore(str(backed_up[0]), data)
    ballast.unlink(missing_ok=True)
    _check_restored(data, backed_up[1])


def test_a_lock_is_had_on_a_full_disk_too(mount: Mount) -> None:
    disk = mount("disk", *_tmpfs(4096))
    (disk / "ballast").write_bytes(bytes(4096))
    lock = LockFile(disk)
    with pytest.raises(StoreBusy, match="is held by process unknown"):
        LockFile(disk)
    lock.release()


def test_a_place_that_cannot_be_written_to_is_refused_in_words(
    backed_up: BackedUp, mount: Mount, tmp_path: Path
) -> None:
    sealed = mount("sealed", "-o", "ro", *_tmpfs(1 << 20))
    for directory in (sealed, sealed / "below"):
        with pytest.raises(
            KeepingError, match=f"nothing was restored to {directory}: .*Read-only file system"
        ):
            restore(str(backed_up[0]), directory)
    (tmp_path / "file").touch()
    with pytest.raises(RefusedError, match="file is no folder"):
        restore(str(backed_up[0]), tmp_path / "file")
    with pytest.raises(KeepingError, match="nothing was restored to .*Not a directory"):
        restore(str(backed_up[0]), tmp_path / "file" / "below")


def test_a_store_on_a_disk_that_became_read_only_is_checked_and_backed_up(
    store_dir: Path, mount: Mount, tmp_path: Path
) -> None:
    """As an ext4 that met an error makes itself: what is there is to be saved."""
    disk = mount("disk", *_tmpfs(4 << 20))
    store = Path(shutil.copytree(store_dir, disk / "data"))
    ran("mount", "-o", "remount,ro", str(disk))
    assert offline.check(store, False, 60)[0] == []
    made = offline.backup(store, str(tmp_path / "backups"), 60)
    assert restore(str(tmp_path / "backups"), tmp_path / "target").name == made["name"]
    ran("mount", "-o", "remount,rw", str(disk))
    (store / "tail").write_bytes(b"acknowledged")
    ran("mount", "-o", "remount,ro", str(disk))
    with pytest.raises(RefusedError, match="acknowledged writes are in .*tail alone: copy the folder"):
        offline.backup(store, str(tmp_path / "backups"), 60)


def test_a_folder_on_a_read_only_disk_is_read_by_one_at_a_time_too(mount: Mount) -> None:
    disk = mount("disk", *_tmpfs(4096))
    ran("mount", "-o", "remount,ro", str(disk))
    lock = LockFile(disk, to_read=True)
    with pytest.raises(StoreBusy, match="is held by process unknown"):
        LockFile(disk, to_read=True)
    lock.release()
    with pytest.raises(OSError, match="Read-only file system"):
        LockFile(disk)


def test_a_link_is_followed_to_a_folder_and_no_further(backed_up: BackedUp, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    restore(str(backed_up[0]), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    _check_restored(tmp_path / "there", backed_up[1])
    # What it means may be a disk that is not mounted: it is not made.
    (tmp_path / "dangling").symlink_to("elsewhere")
    with pytest.raises(RefusedError, match="dangling is a link to elsewhere, and there is no folder there"):
        restore(str(backed_up[0]), tmp_path / "dangling")
    assert not (tmp_path / "elsewhere").exists()


def test_folders_on_the_way_go_again_where_nothing_is_restored(backed_up: BackedUp, tmp_path: Path) -> None:
    place, made = backed_up
    (place / made.name / made.parts[0].name).write_bytes(b"")
    with pytest.raises(NotWholeError):
        restore(str(place), tmp_path / "some" / "where" / "data")
    assert not (tmp_path / "some").exists()


def test_a_restore_that_fails_after_one_that_was_killed_keeps_servers_away(
    backed_up: BackedUp, tmp_path: Path
) -> None:
    place, made = backed_up
    draft = tmp_path / "target" / RESTORING
    draft.mkdir(parents=True)
    (draft / "data.mdb").write_bytes(b"half")
    whole = (place / made.name / made.parts[0].name).read_bytes()
    (place / made.name / made.parts[0].name).write_bytes(b"")
    with pytest.raises(NotWholeError):
        restore(str(place), tmp_path / "target")
    assert _names(draft) == set()
    (place / made.name / made.parts[0].name).write_bytes(whole)
    restore(str(place), tmp_path / "target")
    _check_restored(tmp_path / "target", made)
