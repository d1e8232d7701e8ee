"""How many streams of a process share one connection."""

from __future__ import annotations

from pathlib import Path

import pytest

import steelyard
import steelyard.testing
from steelyard import stream
from steelyard.channel import SharedChannels
from steelyard_server.config import Settings

NOWHERE = "127.0.0.1:1"


def test_no_more_share_a_connection_than_was_said() -> None:
    channels = SharedChannels(most=2)
    first, second, third = (channels.take(NOWHERE, "asking") for _ in range(3))
    assert first is second
    assert third is not first
    # The one that was opened last is filled up first.
    channels.give_back(first, broken=False)
    assert channels.take(NOWHERE, "asking") is third
    channels.close()


def test_more_trainers_of_one_process_than_a_server_lets_onto_a_connection_are_all_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stream._CHANNELS._most is not None
    assert stream._CHANNELS._most < Settings(data_dir=tmp_path).max_concurrent_streams
    monkeypatch.setattr(stream, "_CHANNELS", SharedChannels(most=3))
    with steelyard.testing.server(tmp_path / "data", max_concurrent_streams=4) as client:
        client.create_dataset("d", size=100)
        run = client.create_run("r", dataset="d", batch_size=10)
        sessions = [run.join(rank=rank, world_size=10, attempt="a", timeout=30) for rank in range(10)]
        try:
            assert len({session.next(timeout=30).step for session in sessions}) == 1
        finally:
            for session in sessions:
                session.close()
