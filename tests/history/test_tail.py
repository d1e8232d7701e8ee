"""The tail file: what it gives back, and what it leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from steelyard_server.history.ops import Put, Table
from steelyard_server.history.tail import Tail

WRITES = [[Put(table, b"key %d" % i, bytes([i]) * i) for i in range(3)] for table in Table]


def test_a_tail_gives_back_what_was_appended_in_order(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "tail")
    for write in WRITES:
        tail.append(4, [write])
    tail.close()
    assert Tail(tmp_path / "tail").read(4) == [put for write in WRITES for put in write]


def test_records_of_another_epoch_are_left_out(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "tail")
    tail.append(4, [WRITES[0]])
    tail.append(5, [WRITES[1]])
    assert tail.read(5) == WRITES[1]
    assert tail.read(6) == []


def test_a_record_behind_one_that_never_reached_the_disk_is_left_out(tmp_path: Path) -> None:
    """A power cut: emptying the file and the first write behind that are lost, the second write is not."""
    path = tmp_path / "tail"
    tail = Tail(path)
    tail.append(4, [WRITES[0]])
    old = path.read_bytes()
    tail.append(4, [WRITES[0]])
    tail.clear()
    tail.append(5, [WRITES[0]])
    tail.append(5, [WRITES[1]])
    new = path.read_bytes()
    path.write_bytes(old + new[len(old) :])
    assert Tail(path).read(5) == []


@pytest.mark.parametrize("cut", [1, 5, 9, 30])
def test_a_torn_end_loses_only_the_record_that_it_tears(tmp_path: Path, cut: int) -> None:
    tail = Tail(tmp_path / "tail")
    tail.append(4, WRITES[:2])
    whole = (tmp_path / "tail").read_bytes()
    tail.append(4, WRITES[2:3])
    (tmp_path / "tail").write_bytes((tmp_path / "tail").read_bytes()[: len(whole) + cut])
    assert Tail(tmp_path / "tail").read(4) == [*WRITES[0], *WRITES[1]]


def test_nothing_after_a_damaged_byte_is_given_back(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "tail")
    tail.append(4, WRITES[:1])
    good = len((tmp_path / "tail").read_bytes())
    tail.append(4, WRITES[1:])
    data = bytearray((tmp_path / "tail").read_bytes())
    for place in range(good, good + 40):
        damaged = data.copy()
        damaged[place] ^= 0x10
        (tmp_path / "tail").write_bytes(damaged)
        assert Tail(tmp_path / "tail").read(4) == WRITES[0], place
