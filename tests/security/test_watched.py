"""Files read again when they change."""

import os
import threading

import pytest

from steelyard_server.security.watched import Watched


def number(contents):
    return sum(int(data) for data in contents)


def test_the_first_load_raises_what_is_wrong(tmp_path):
    path = tmp_path / "f"
    with pytest.raises(FileNotFoundError):
        Watched("f", [path], number)
    path.write_text("x")
    with pytest.raises(ValueError, match="invalid literal"):
        Watched("f", [path], number)


@pytest.mark.parametrize("replace", [True, False])
def test_a_change_comes_into_force_at_the_next_look(tmp_path, replace):
    path = tmp_path / "f"
    path.write_text("1")
    watched = Watched("f", [path], number)
    for value in range(2, 30):  # Faster than the clock of the file system may tell.
        if replace:
            (tmp_path / "new").write_text(str(value))
            (tmp_path / "new").replace(path)
        else:
            path.write_text(str(value))
        assert watched.current() == value
    assert watched.generation == 28


def test_what_is_wrong_or_gone_leaves_the_last_good_and_is_told_once(tmp_path, caplog):
    path = tmp_path / "f"
    path.write_text("1")
    watched = Watched("f", [path], number)
    path.write_text("x")
    assert [watched.current() for _ in range(5)] == [1] * 5
    path.unlink()
    assert [watched.current() for _ in range(5)] == [1] * 5
    assert len([record for record in caplog.records if "file_not_reloaded" in str(record.msg)]) == 2
    assert "cannot read" in (watched.fault or "")
    path.write_text("7")
    assert watched.current() == 7
    assert watched.fault is None


def test_a_file_that_was_away_and_came_back_as_it_was_has_no_fault(tmp_path):
    path = tmp_path / "f"
    path.write_text("1")
    watched = Watched("f", [path], number)
    path.rename(tmp_path / "away")
    assert (watched.current(), "cannot read" in (watched.fault or "")) == (1, True)
    (tmp_path / "away").rename(path)
    assert (watched.current(), watched.fault, watched.generation) == (1, None, 0)


def test_a_secret_that_is_swapped_by_its_symlink_is_read_again(tmp_path):
    """As Kubernetes mounts one: the files are links through a link that is replaced."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "f").write_text(version)
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "f").symlink_to("data/f")
    watched = Watched("f", [tmp_path / "f"], number)
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").replace(tmp_path / "data")
    assert watched.current() == 2


def test_several_files_are_read_together(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_text("1")
    watched = Watched("f", paths, number)
    paths[1].write_text("20")
    assert watched.current() == 21


def test_an_old_file_is_not_read_again(tmp_path):
    path = tmp_path / "f"
    path.write_text("1")
    os.utime(path, (1, 1))
    reads = []
    watched = Watched("f", [path], lambda contents: reads.append(number(contents)))
    for _ in range(100):
        watched.current()
    assert len(reads) == 1


def test_many_threads_may_look(tmp_path):
    path = tmp_path / "f"
    path.write_text("1")
    watched = Watched("f", [path], number)
    seen, stop = set(), threading.Event()

    def look():
        while not stop.is_set():
            seen.add(watched.current())

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for value in range(2, 12):
        (tmp_path / "new").write_text(str(value))
        (tmp_path / "new").replace(path)
        watched.current()
    stop.set()
    for thread in threads:
        thread.join(10)
    assert seen <= set(range(1, 12))
    assert watched.current() == 11
