"""Runs whose past is no longer all there are whole: a check finds nothing, and their backups are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import steelyard
from steelyard_server.keeping.checking import check_store
from steelyard_server.keeping.places import place_at
from steelyard_server.keeping.restoring import verify
from steelyard_server.keeping.writing import write_backup

BATCH = 8


def found_in(directory: Path) -> list[Any]:
    said: list[dict[str, Any]] = []
    check_store(directory, shared=False, deep=True, say=said.append)
    return [one["finding"] for one in said if "finding" in one]


def test_what_was_pruned_or_gone_back_from_is_not_damage(tmp_path: Path, train: Any) -> None:
    data = tmp_path / "data"
    for life in range(4):  # the end of each saves a checkpoint, by which the next one's prunes
        with steelyard.local(data, kernels="numpy") as client:
            client.create_dataset("text", size=300, exist_ok=True)
            runs = [
                client.create_run(name, dataset="text", batch_size=BATCH, retain_steps=3, exist_ok=True)
                for name in ("pruned", "kept")
            ]
            for run in runs:
                train(run, 12)
            if life == 0:
                runs[1].bookmark("here", 9)
                runs[0].fork("back", step=12)
            train(client.run("back"), 12)
    with steelyard.local(data, kernels="numpy") as client:
        oldest = [client.run(name).retention().oldest_step for name in ("pruned", "kept", "back")]
        assert min(oldest[0], oldest[2]) > 20
        client.run("back").rewind(oldest[2])
    assert found_in(data) == []
    made = write_backup(data, place_at(str(tmp_path / "backups")), shared=False)
    assert {run.name: run.next_step for run in made.runs}["back"] == oldest[2]
    assert verify(str(tmp_path / "backups")).runs == made.runs
