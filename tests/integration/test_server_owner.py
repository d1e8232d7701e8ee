"""What the owner of a run does while it runs: bookmarks, rewind, fork, policy, growth, columns, deletion."""

import threading
import time

import numpy as np
import pytest

import steelyard
from steelyard.testing import server

SCORED = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}
MEAN = {"method": "scored", "score": "mean_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}
QUALITY = {"method": "scored", "score": "quality", "transform": "identity"}


def loss(ids, step, salt=0):
    return np.asarray(1.0 + (ids + salt) % 7 + step / 8, np.float32)


def train(run, steps, salt=0, start_step=None):
    """Trains alone, in an attempt of its own; the ids of each batch."""
    with run.join(start_step=start_step, prefetch=1, timeout=20) as session:
        served = []
        for _ in range(steps):
            batch = session.next()
            session.report(batch, loss(batch.ids, batch.step, salt))
            served.append(batch.ids.tolist())
        session.flush(20)
    return served


def everything(run):
    """Columns and history, once the next step is drawn: a draw folds what it may read."""
    with run.join(prefetch=1, timeout=20):
        names = ["last_loss"] if "last_loss" in str(run.info().draw) else []
        columns = [np.nan_to_num(run.column(name), nan=-1).tolist() for name in names]
        return run.info().next_step, columns, run.history(range(60))


@pytest.fixture
def data(client):
    client.create_dataset("d", 60)
    return client


def scored(client, name, **fields):
    return client.create_run(
        name, **{"dataset": "d", "batch_size": 8, "seed": 2, "staleness": 2, "draw": SCORED, **fields}
    )


@pytest.mark.parametrize("draw", [SCORED, {"method": "shuffle"}])
@pytest.mark.parametrize("staleness", [0, 3])
def test_after_a_rewind_everything_is_as_it_was_then(data, draw, staleness):
    run = scored(data, "r", draw=draw, staleness=staleness)
    first = train(run, 6)
    then = everything(run)
    run.bookmark("six")
    after = train(run, 6)
    end = everything(run)
    assert run.rewind("six").next_step == 6
    assert everything(run) == then
    assert train(run, 6) == after
    run.rewind(2)
    assert train(run, 10) == [*first[2:], *after]
    assert everything(run) == end
    assert run.info().bookmarks == {}, "a bookmark above the step returned to is undone with it"


def test_other_losses_after_a_rewind_lead_elsewhere_and_only_from_where_they_are_read(data):
    run = scored(data, "r", staleness=1)
    first = train(run, 8)
    run.rewind(3)
    other = train(run, 5, salt=3)
    # Steps 3 and 4 are drawn from the reports of steps 0..2, which stand.
    assert other[:2] == first[3:5]
    assert other[2:] != first[5:]


def test_a_rewind_across_policy_changes_restores_the_columns_of_then(data):
    """Also a column that a later policy folded anew from later losses."""
    run, twin = scored(data, "r", staleness=0), scored(data, "twin", staleness=0)
    with run.join(prefetch=1, timeout=20) as session:
        for draw in (MEAN, SCORED, None):
            for _ in range(4):
                batch = session.next()
                session.report(batch, loss(batch.ids, batch.step))
            session.flush(20)
            if draw is not None:
                run.change_policy(draw=draw)
    run.rewind(3)
    train(twin, 3)
    assert everything(run) == everything(twin)
    assert train(run, 4) == train(twin, 4)


def test_growth_and_retirement_are_not_undone_by_a_rewind(data):
    run = scored(data, "r")
    train(run, 4)
    data.append_examples("d", 20)
    data.retire("d", [0, 1, 2])
    train(run, 2)
    run.rewind(2)
    assert run.info().dataset_size == 80
    served = {one for batch in train(run, 60) for one in batch}
    assert served.isdisjoint({0, 1, 2})
    assert any(one >= 60 for one in served)


def test_bookmarks_are_kept_moved_only_after_deletion_and_hold_their_step(data):
    run = scored(data, "r")
    train(run, 3)
    assert run.bookmark("now") == 3
    assert run.bookmark("now", 3) == 3
    with pytest.raises(steelyard.AlreadyExists, match="holds step 3; got step 1"):
        run.bookmark("now", 1)
    run.delete_bookmark("now")
    run.delete_bookmark("now")
    assert run.bookmark("now", 1) == 1
    assert run.info().bookmarks == {"now": 1}
    with pytest.raises(steelyard.NotFound, match="no bookmark 'then'; its bookmarks: now"):
        run.rewind("then")


def test_a_fork_with_the_same_policy_goes_on_as_its_parent_did(data):
    run = scored(data, "r")
    train(run, 10)
    parent = everything(run)
    closed = run.info().closed_steps
    for at in (0, 4, 10):
        fork = run.fork(f"fork-{at}", step=at)
        assert (fork.info().parent, fork.info().parent_step, fork.info().next_step) == ("r", at, at)
        later = train(fork, 12 - at)
        assert later[: 10 - at] == [run.batch(step).ids.tolist() for step in range(at, 10)]
    assert everything(run) == parent
    ends = [everything(data.run(f"fork-{at}")) for at in (0, 4)]
    assert ends[0] == ends[1]
    assert run.info().closed_steps == closed == 10


def test_a_fork_with_another_policy_differs_from_its_first_step_on_and_knows_the_history(data):
    run = data.create_run("r", dataset="d", batch_size=8, seed=2, staleness=2)
    train(run, 10)
    fork = run.fork("f", step=6, draw=SCORED)
    assert fork.history(range(60)) == [
        [(step, value) for step, value in row if step < 6] for row in run.history(range(60))
    ]
    known = np.isfinite(fork.column("last_loss"))
    assert known.sum() == 48
    assert train(fork, 4) != [run.batch(step).ids.tolist() for step in range(6, 10)]
    fork.rewind(6)
    with pytest.raises(steelyard.FailedPrecondition, match="6, the oldest"):
        fork.rewind(5)
    data.delete_run("r")
    assert len(train(fork, 2)) == 2


def test_a_fork_where_steps_are_open_does_not_wait_for_them(data, raw):
    scored(data, "r", staleness=2)
    trainer = raw.trainer()
    trainer.join("r", credit=3)
    for _ in range(3):
        trainer.expect("batch")
    fork = data.run("r").fork("f", step=3)
    assert len(train(fork, 5)) == 5


def test_a_policy_changed_while_running_uses_the_history(data):
    run = data.create_run("r", dataset="d", batch_size=8, seed=2, staleness=0)
    with run.join(prefetch=1, timeout=20) as session:
        for step in range(20):
            if step == 8:
                run.change_policy(draw=SCORED)
            batch = session.next()
            session.report(batch, loss(batch.ids, batch.step))
        session.flush(20)
    column = run.column("last_loss")
    last = {i: row[-1][1] for i, row in enumerate(run.history(range(60))) if row}
    assert {i: float(column[i]) for i in last} == last
    assert len(set(run.batch(7).probability)) == 1
    assert len(set(run.batch(12).probability)) > 1


def test_growth_retirement_and_columns_are_seen_by_the_next_draw(data):
    run = data.create_run("r", dataset="d", batch_size=60, staleness=0)
    data.set_column("d", "quality", np.ones(60))
    judged = data.create_run(
        "q", dataset="d", batch_size=40, draw={**QUALITY, "sampling": "distinct"}, staleness=0
    )
    with run.join(prefetch=1, timeout=20) as session, judged.join(prefetch=1, timeout=20) as other:
        session.next()
        other.next()
        data.append_examples("d", 4)
        data.retire("d", [5, 6])
        values = np.where(np.arange(64) % 2, 0.0, 1.0)
        data.set_column("d", "quality", values)
        # One batch was granted and may be drawn already when the change came.
        session.next(), other.next()
        seen, chosen = session.next(), other.next()
    assert not {5, 6} & set(seen.ids.tolist())
    assert (chosen.probability[chosen.ids % 2 == 1] < chosen.probability[chosen.ids % 2 == 0].min()).all()


def test_what_a_dataset_became_reaches_runs_that_are_not_loaded(tmp_path):
    with server(tmp_path) as client:
        client.create_dataset("d", 60)
        client.set_column("d", "quality", np.ones(60))
        train(client.create_run("r", dataset="d", batch_size=8, draw=QUALITY), 3)
    with server(tmp_path) as client:
        client.append_examples("d", 40)
        client.retire("d", np.arange(60))
        client.set_column("d", "quality", np.full(20, 8.0), start=60)
        client.set_column("d", "quality", np.full(20, 1.0), start=80)
    with server(tmp_path) as client:
        run = client.run("r")
        # Step 3 was drawn ahead, before all that.
        served = np.concatenate([np.array(one) for one in train(run, 40)[1:]])
        assert served.min() >= 60
        assert (served < 80).mean() > 0.7


def test_names_are_free_again_after_deletion(data):
    run = data.create_run("r", dataset="d", batch_size=8)
    train(run, 3)
    same = {"dataset": "d", "batch_size": 8}
    with pytest.raises(steelyard.AlreadyExists, match="'r'"):
        data.create_run("r", **same)
    assert data.create_run("r", **same, exist_ok=True).info().closed_steps == 3
    with pytest.raises(steelyard.AlreadyExists, match="batch_size"):
        data.create_run("r", dataset="d", batch_size=9, exist_ok=True)
    with pytest.raises(steelyard.FailedPrecondition, match="used by 1 run"):
        data.delete_dataset("d")
    data.delete_run("r")
    with pytest.raises(steelyard.NotFound):
        data.delete_run("r")
    again = data.create_run("r", **same)
    assert (again.info().next_step, again.history([0])) == (0, [[]])
    data.delete_run("r")
    data.delete_dataset("d")
    data.create_dataset("d", 5)
    assert data.create_run("r", dataset="d", batch_size=8).info().dataset_size == 5


def test_a_slow_call_on_one_run_holds_no_other_run_up(tmp_path):
    """Nor a join, nor a listing of datasets, nor a change of another dataset."""
    from steelyard_server.config import Settings
    from steelyard_server.server import Server

    instance = Server(Settings(data_dir=tmp_path, listen="127.0.0.1:0"))
    instance.start()
    try:
        client = steelyard.connect(instance.address)
        for name in ("slow", "quick"):
            client.create_dataset(name, 60)
            client.create_run(name, dataset=name, batch_size=8)
        release, held = threading.Event(), threading.Event()

        def block(state):
            held.set()
            release.wait(30)

        assert instance._catalog is not None
        waiting = [
            threading.Thread(target=instance._catalog.run("slow").ask, args=(block,), daemon=True),
            threading.Thread(target=client.append_examples, args=("slow", 5), daemon=True),
            threading.Thread(target=lambda: client.run("slow").fork("f", step=0), daemon=True),
        ]
        waiting[0].start()
        assert held.wait(10)
        for thread in waiting[1:]:
            thread.start()
        time.sleep(0.2)
        started = time.monotonic()
        train(client.run("quick"), 3)
        client.append_examples("quick", 5)
        client.create_run("third", dataset="quick", batch_size=8)
        client.delete_run("third")
        assert [one.name for one in client.list_datasets()] == ["quick", "slow"]
        assert time.monotonic() - started < 10
        assert waiting[1].is_alive(), "the change of the slow run's dataset waits until the run knows it"
        release.set()
        for thread in waiting:
            thread.join(30)
            assert not thread.is_alive()
        assert client.run("slow").info().dataset_size == 65
        assert client.run("f").info().parent == "slow"
    finally:
        release.set()
        instance.stop()
