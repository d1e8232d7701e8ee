"""Backups to a server that speaks S3: moto's, which keeps objects in memory, behind s3fs.

Skipped where these are not installed; `make objects` installs them and plays this.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs", reason="make objects installs it")
moto = pytest.importorskip("moto.server", reason="make objects installs it")

import s3fs  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

import steelyard  # noqa: E402
from steelyard_server.cli.verbs import cli  # noqa: E402
from steelyard_server.keeping.errors import DiedError, KeepingError, NotWholeError  # noqa: E402
from steelyard_server.keeping.places import place_at  # noqa: E402
from steelyard_server.keeping.restoring import restore, whole_manifest  # noqa: E402
from steelyard_server.keeping.work import Task  # noqa: E402
from steelyard_server.keeping.writing import write_backup  # noqa: E402

BUCKET = "steelyard-backups"
PLACE = f"s3://{BUCKET}/training"


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An object store with one empty bucket, seen past anything that was remembered."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "who",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    # What another test put there is this process's still.
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"", timeout=30).close()
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(use_listings_cache=False)
    files.mkdir(BUCKET)
    yield files
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def held(objects: Any) -> set[str]:
    """The names of the backups of which there is anything."""
    objects.invalidate_cache()
    return {str(path).split("/")[2] for path in objects.find(BUCKET)}


def test_a_server_keeps_backups_there_and_they_are_listed_pruned_drilled_and_restored(
    store_dir: Path, tmp_path: Path, objects: Any
) -> None:
    with steelyard.local(store_dir, kernels="numpy", backup_to=PLACE, backup_keep=2) as client:
        made = [client.admin.backup() for _ in range(3)]
        kept = {one.name for one in made[1:]}
        assert {one.name for one in client.admin.backups()} == kept == held(objects)
        assert made[-1].place == PLACE
        done = CliRunner().invoke(cli, ["check", "--backup", PLACE, "--deep"])
        assert done.exit_code == 0, done.output
        assert held(objects) == kept | {"verified.json"}
        assert [one.verified is not None for one in client.admin.backups()] == [False, True]
    assert restore(PLACE, tmp_path / "target").name == made[-1].name


def test_what_was_changed_or_is_missing_there_is_refused(
    store_dir: Path, tmp_path: Path, objects: Any
) -> None:
    made = write_backup(store_dir, place_at(PLACE), shared=False, part_bytes=200_000)
    assert len(made.parts) > 1
    part = f"{BUCKET}/training/{made.name}/{made.parts[1].name}"
    whole = objects.cat_file(part)
    objects.pipe_file(part, whole[:-1] + bytes([whole[-1] ^ 1]))
    done = CliRunner().invoke(cli, ["check", "--backup", PLACE])
    assert done.exit_code == 1, done.output
    assert "is not what was written" in done.stdout
    objects.rm_file(part)
    with pytest.raises(NotWholeError, match=r"has no data\.00001"):
        restore(PLACE, tmp_path / "target")
    objects.rm_file(f"{BUCKET}/training/{made.name}/manifest.json")
    with pytest.raises(NotWholeError, match="holds no whole backup"):
        restore(PLACE, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_a_backup_that_is_broken_off_is_none_there(store_dir: Path, objects: Any) -> None:
    """Its child is killed between two parts."""
    place = place_at(PLACE)
    first = write_backup(store_dir, place, shared=False)
    slow: dict[str, Any] = {"shared": False, "rate": 100_000.0, "part_bytes": 1 << 16, "keep": 1}

    def begun() -> str:
        return "it has begun" if len(held(objects)) == 2 else ""

    with pytest.raises(DiedError, match="it has begun"):
        Task("backup", "the backup", directory=str(store_dir), to=PLACE, **slow).run(60, watch=begun)
    assert place.names() == [first.name]
    for name in place.names():
        whole_manifest(place, name)


def test_no_bucket_is_made(store_dir: Path, objects: Any) -> None:
    elsewhere = place_at("s3://nobodys/training")
    assert elsewhere.names() == []
    with pytest.raises((KeepingError, OSError)):
        write_backup(store_dir, elsewhere, shared=False)
    assert objects.ls("", refresh=True) == [BUCKET]
