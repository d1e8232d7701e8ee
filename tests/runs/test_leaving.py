"""Every stream ends, whatever becomes of what was reported on it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from steelyard_server.core.events import RunCreated
from steelyard_server.history.errors import StoreFailed
from steelyard_server.history.store import Store
from steelyard_server.runs.errors import Unavailable
from steelyard_server.runs.journaled import CheckpointRule
from steelyard_server.runs.log import RunLog
from steelyard_server.runs.messages import Join, Outgoing
from steelyard_server.runs.run import Run
from steelyard_server.runs.state import RunState

LONG = 30.0


class Stream:
    """What a trainer has got, and how its stream ended."""

    def __init__(self) -> None:
        self.got, self.over = list[Outgoing](), threading.Event()
        self.error: Exception | None = None

    def send(self, message: Outgoing) -> None:
        self.got.append(message)

    def end(self, error: Exception | None) -> None:
        if not self.over.is_set():
            self.error = error
            self.over.set()


@pytest.fixture
def run(tmp_path: Path, make_run: Callable[..., RunState]) -> Iterator[Run]:
    store = Store.open(tmp_path)
    created = RunCreated(make_run(40, draw={"method": "shuffle"}).spec.model_dump(mode="json"), 40)
    store.commit(RunLog(store, 1, 8).create(created)[1])
    one = Run(store, lambda: RunLog(store, 1, 8), "r", rule=CheckpointRule(), reconcile=lambda state: [])
    yield one
    assert one.close(LONG)
    store.close()


@pytest.mark.parametrize("lost", [False, True])
def test_a_stream_that_was_left_ends_also_where_what_it_reported_is_lost(
    run: Run, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    stream = Stream()
    run.join(Join(0, 1, 0, "a", "s", None, None, 0), stream)
    run.info()
    assert stream.got, stream.error

    def fail(store: Store, ops: Any, on_durable: Callable[[BaseException | None], None], **_: object) -> None:
        on_durable(StoreFailed("planted"))

    if lost:
        monkeypatch.setattr(Store, "write", fail)
    run.leave(stream)
    assert stream.over.wait(LONG)
    assert isinstance(stream.error, Unavailable) == lost
    monkeypatch.undo()
    assert run.info().next_step == 0
