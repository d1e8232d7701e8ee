"""The verbs that keep things, as an operator types them; each in this process, but for the server's own children."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import steelyard
from steelyard.testing import ServerProcess
from steelyard_server.cli.verbs import cli
from steelyard_server.history.ops import Put, Table, u64
from steelyard_server.history.store import Store
from steelyard_server.keeping.errors import NotWholeError, RefusedError
from steelyard_server.keeping.keeper import Keeper


def typed(*words: object, status: int = 0) -> Any:
    """What `steelyard WORDS --json` prints."""
    done = CliRunner().invoke(cli, [*map(str, words), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return json.loads(done.stdout) if done.stdout else None


def test_an_operator_backs_up_lists_drills_restores_checks_and_compacts(
    store_dir: Path, tmp_path: Path
) -> None:
    place = tmp_path / "backups"
    with steelyard.local(store_dir, backup_to=str(place), kernels="numpy") as client:
        made = typed("backup", "--address", client.address)
        assert made["runs"].keys() == {"branch", "plain", "scored"}
        with pytest.raises(RefusedError, match="to be empty or not there"):
            typed("restore", "--from", place, "--data-dir", store_dir)
        typed("check", "--data-dir", store_dir, status=2)
        assert typed("check", "--address", client.address)["damaged"] is False
        assert typed("restore", "--from", place, "--verify-only")["name"] == made["name"]
        [listed] = typed("backups", "--address", client.address)
        assert listed["verified"] > made["created"]
    assert typed("backups", "--from", place) == [listed]
    assert typed("restore", "--from", place, "--data-dir", tmp_path / "new")["runs"] == made["runs"]
    assert typed("check", "--data-dir", tmp_path / "new", "--deep")["findings"] == []
    sizes = typed("compact", "--data-dir", store_dir)
    assert sizes["after"] < sizes["before"]
    assert typed("check", "--data-dir", store_dir, "--deep")["damaged"] is False
    offline = typed("backup", "--data-dir", store_dir, "--to", tmp_path / "second")
    assert offline["runs"] == made["runs"]


def test_the_exit_status_tells_damage_from_what_could_not_be_checked(store_dir: Path, tmp_path: Path) -> None:
    store = Store.open(store_dir)
    store.commit([Put(Table.META, b"next-id", u64(1))])
    store.close()
    told = typed("check", "--data-dir", store_dir, status=1)
    assert [one["where"] for one in told["findings"]] == ["the counter of ids"]
    typed("check", "--data-dir", tmp_path / "nowhere", status=2)
    (tmp_path / "empty").mkdir()
    assert "none of what is there has a manifest" in str(
        typed("check", "--backup", tmp_path / "empty", status=1)["findings"]
    )


def test_a_backup_is_checked_as_deep_as_is_asked_for(astray: Path, tmp_path: Path) -> None:
    place = tmp_path / "backups"
    made = typed("backup", "--data-dir", astray, "--to", place)
    assert typed("check", "--backup", place)["report"]["name"] == made["name"]
    [found] = typed("check", "--backup", place, "--deep", status=1)["findings"]
    assert "replaying the journal up to it gives another state" in found["what"]


def test_a_check_that_is_not_given_the_time_says_so_and_nothing_of_damage(
    store_dir: Path, tmp_path: Path
) -> None:
    typed("backup", "--data-dir", store_dir, "--to", tmp_path / "backups")
    for what in ("--backup", tmp_path / "backups"), ("--data-dir", store_dir):
        done = CliRunner().invoke(cli, ["check", *map(str, what), "--timeout", "0.01"])
        assert done.exit_code == 2, done.output
        assert "was broken off" in done.stderr


def test_a_server_tells_of_its_backups_and_of_a_drill_by_somebody_else(
    tmp_path: Path, eventually: Any
) -> None:
    place = str(tmp_path / "backups")
    with ServerProcess(tmp_path, backup_to=place, kernels="numpy") as server:
        client = server.client()
        client.create_dataset("text", size=10)
        made = client.admin.backup()
        typed("restore", "--from", place, "--verify-only")
    told: list[Any] = []
    store = Store.open(tmp_path / "data")
    keeper = Keeper(store, tmp_path / "data", to=place, tell=told.append)
    keeper.start()
    status = eventually(lambda: told and told[-1])
    assert status.backup_unix_seconds == pytest.approx(made.created)
    assert status.verified_unix_seconds > made.created
    with pytest.raises(RefusedError):
        keeper.backup("/elsewhere")
    # What is refused was never begun.
    assert keeper.status().backup_failures == 0
    Path(place).rename(tmp_path / "gone")
    Path(place).write_text("no folder")
    with pytest.raises(Exception, match="folder|directory|exists"):
        keeper.backup()
    assert keeper.status().backup_failures == 1
    assert told[-1].backup_failures == 1
    keeper.stop()
    store.close()


def test_a_place_that_backups_cannot_go_to_is_refused_with_the_reason(
    store_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with steelyard.local(store_dir, backup_to=str(tmp_path / "file" / "below"), kernels="numpy") as client:
        with pytest.raises(
            steelyard.FailedPrecondition, match=r"file/below: Not a directory. Expected a folder"
        ):
            client.admin.backup()
        assert client.list_runs()
    with pytest.raises(steelyard.InvalidArgument, match="outside of the data folder"):
        steelyard.local(store_dir, backup_to=str(store_dir / "backups"), kernels="numpy")
    with pytest.raises(RefusedError, match="outside of the data folder"):
        typed("backup", "--data-dir", store_dir, "--to", store_dir / "backups")
    assert not (store_dir / "backups").exists()
    with (
        steelyard.local(store_dir, backup_to=str(store_dir.parent), kernels="numpy") as client,
        pytest.raises(steelyard.FailedPrecondition, match="outside of the data folder"),
    ):
        client.admin.backup(str(store_dir / "backups"))


def test_a_restore_from_nowhere_says_that_it_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotWholeError, match="nowhere does not exist"):
        typed("restore", "--from", tmp_path / "nowhere", "--data-dir", tmp_path / "new")
    assert not (tmp_path / "new").exists()
