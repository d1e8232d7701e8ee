"""A policy that reads a column which the run has not kept: it is folded from the last losses of each example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import steelyard
from steelyard.testing import server

IDS = range(4)


def shuffled(client: steelyard.Client, **fields: Any) -> steelyard.Run:
    """Four ids in batches of four, so that every step has them all."""
    client.create_dataset("d", len(IDS))
    return client.create_run("r", dataset="d", batch_size=len(IDS), staleness=1, **fields)


def train(run: steelyard.Run, *losses: float) -> None:
    with run.join(prefetch=1) as session:
        for loss in losses:
            session.report_raw(session.next(), [loss] * len(IDS))
            session.flush()


def test_a_mean_in_place_of_a_count_is_that_of_the_losses_in_the_history(tmp_path: Path) -> None:
    with server(tmp_path) as client:
        run = shuffled(client, history_size=0, draw={"method": "scored", "score": "count_loss"})
        train(run, 5.0, 5.0, 5.0)
        run.change_policy(draw={"method": "scored", "score": "mean_loss"})
        assert np.isnan(run.column("count_loss")).all(), "a count of losses that the mean does not know"
        train(run, 5.0, 5.0, 5.0)
        np.testing.assert_array_equal(run.column("mean_loss"), [5.0] * len(IDS))


def test_a_column_of_the_history_does_not_depend_on_when_checkpoints_were_made(tmp_path: Path) -> None:
    """The last two losses of each id count, in the order in which they were folded."""
    rebuilt = {}
    for checkpoint in (False, True):
        for score in ("last_loss", "count_loss", "mean_loss"):
            rebuilt[score, checkpoint] = column_of_the_history(
                tmp_path / f"{score}{checkpoint}", score, checkpoint
            )
    expected = {"last_loss": 1.0, "count_loss": 2.0, "mean_loss": 5.0}
    assert rebuilt == {(score, made): expected[score] for score, made in rebuilt}


def column_of_the_history(directory: Path, score: str, checkpoint: bool) -> float:
    with server(directory) as client:
        run = shuffled(client, history_size=2)
        train(run, 7.0)
        with run.join(prefetch=1) as session:
            batch = session.next()
            session.next()
            run.observe(IDS, [9.0] * len(IDS))  # as of a later step than the report below
            session.report_raw(batch, [1.0] * len(IDS))
        if not checkpoint:
            run.change_policy(draw={"method": "scored", "score": score})
            return float(run.column(score)[0])
    with server(directory) as client:  # the one before made a checkpoint when it was closed
        client.run("r").change_policy(draw={"method": "scored", "score": score})
        return float(client.run("r").column(score)[0])


def test_a_new_attempt_that_goes_back_knows_what_was_reported_of_steps_left_open(tmp_path: Path) -> None:
    with server(tmp_path) as client:
        run = shuffled(client)
        with run.join(prefetch=1) as session:
            batch = session.next()
            session.report_raw(batch, [2.0, 3.0], offset=0)
            session.next()
        run.change_policy(draw={"method": "scored"})
        with run.join(start_step=1, prefetch=1) as session:
            session.next()
        assert sorted(one[0][1] for one in run.history(IDS) if one) == [2.0, 3.0]
        column = run.column("last_loss")
        assert sorted(column[~np.isnan(column)].tolist()) == [2.0, 3.0]
