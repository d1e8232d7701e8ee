"""The trainers' stream: credit, slices, order, takeover, attempts, weights."""

import asyncio
import threading
import time

import numpy as np
import pytest

import steelyard
from steelyard import weigh, wire
from steelyard.v1 import trainer_pb2
from steelyard_server.service.trainer import MAX_UNANSWERED, ReportWindow

SCORED = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}


def loss(ids, step):
    return np.asarray(1.0 + ids % 7 + step / 8, np.float32)


def train(run, steps, *, world_size=1, attempt="a", start_step=None, order=None):
    """Trains `steps` steps with `world_size` ranks in one thread; the ids of each whole batch."""
    ranks = list(range(world_size)) if order is None else order
    with_rank = {
        rank: run.join(rank, world_size, start_step, attempt, prefetch=2, timeout=20) for rank in ranks
    }
    served = []
    try:
        for _ in range(steps):
            batches = {rank: with_rank[rank].next() for rank in ranks}
            for rank in reversed(ranks):
                with_rank[rank].report(batches[rank], loss(batches[rank].ids, batches[rank].step))
            served.append(np.concatenate([batches[rank].ids for rank in sorted(ranks)]).tolist())
        for session in with_rank.values():
            session.flush(20)
    finally:
        for session in with_rank.values():
            session.close()
    return served


def test_a_trainer_without_credit_gets_nothing(client, raw):
    client.create_dataset("d", 64)
    run = client.create_run("r", dataset="d", batch_size=8)
    trainer = raw.trainer()
    trainer.join("r", credit=0)
    assert trainer.nothing_comes()
    assert run.stats().next_step == 0
    trainer.send(credit=trainer_pb2.Credit(batches=3))
    assert [trainer.expect("batch").step for _ in range(3)] == [0, 1, 2]
    assert trainer.nothing_comes()
    assert run.stats().next_step == 3


def test_a_rank_with_much_credit_does_not_keep_the_others_waiting(client, raw):
    client.create_dataset("d", 4096)
    client.create_run("r", dataset="d", batch_size=512)
    greedy = raw.trainer()
    greedy.join("r", world_size=2, credit=256)
    modest = raw.trainer()
    modest.join("r", world_size=2, rank=1, credit=1)
    assert modest.expect("batch").step == 0
    assert greedy.expect("batch").step == 0


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("draw", [{"method": "shuffle"}, SCORED])
def test_the_slices_of_any_world_are_the_batch_of_one(client, world_size, draw):
    client.create_dataset("d", 101)
    common = {"dataset": "d", "batch_size": 10, "seed": 3, "staleness": 2, "draw": draw}
    alone = train(client.create_run("alone", **common), 12)
    order = list(np.random.default_rng(world_size).permutation(world_size))
    run = client.create_run("many", **common)
    assert train(run, 12, world_size=world_size, order=[int(rank) for rank in order]) == alone
    assert run.stats().closed_steps == 12


def test_every_id_comes_once_an_epoch_across_worlds_and_epochs(client):
    client.create_dataset("d", 101)
    run = client.create_run("r", dataset="d", batch_size=13)
    stream = []
    for part, world_size in enumerate((1, 3, 2, 7, 1)):
        for batch in train(run, 7, world_size=world_size, attempt=f"a{part}"):
            stream += batch
    for epoch in range(len(stream) // 101):
        assert sorted(stream[epoch * 101 : (epoch + 1) * 101]) == list(range(101))


def test_the_same_session_takes_over_and_is_served_from_where_it_says(client, raw):
    client.create_dataset("d", 64)
    client.create_run("r", dataset="d", batch_size=8)
    first = raw.trainer()
    first.join("r", credit=4)
    steps = [first.expect("batch") for _ in range(4)]
    second = raw.trainer()
    joined = second.join("r", credit=3, resume_step=2)
    assert joined.start_step == 2
    again = [second.expect("batch") for _ in range(3)]
    assert [batch.step for batch in again] == [2, 3, 4]
    assert [batch.digest for batch in again[:2]] == [batch.digest for batch in steps[2:]]
    assert first.end().code == "ABORTED"
    second.report(again[0], np.ones(8))
    assert second.expect("acknowledgement").step == 2


def test_a_rank_that_died_goes_on_at_its_first_step_that_is_not_reported(client, raw):
    """Also long after the attempt began, when the steps before are no longer in memory."""
    client.create_dataset("d", 64)
    run = client.create_run("r", dataset="d", batch_size=2, history_size=1)
    trainer = raw.trainer()
    trainer.join("r", credit=1)
    trainer.train(300, loss)
    trainer.send(leave=trainer_pb2.Leave())
    assert trainer.end() is None
    assert run.info().closed_steps == 300
    again = raw.trainer()
    assert again.join("r", session="another").start_step == 300
    assert again.expect("batch").step == 300


def test_a_rank_whose_slice_is_empty_starts_where_the_others_are(client, raw):
    client.create_dataset("d", 64)
    client.create_run("r", dataset="d", batch_size=2)
    busy = raw.trainer()
    busy.join("r", world_size=3, credit=5)
    for _ in range(5):
        busy.expect("batch")
    idle = raw.trainer()
    assert idle.join("r", world_size=3, rank=2).start_step == 0
    assert idle.expect("batch").ids.count == 0


def test_leaving_comes_after_the_acknowledgements(client, raw):
    client.create_dataset("d", 64)
    client.create_run("r", dataset="d", batch_size=8)
    for attempt in range(20):
        trainer = raw.trainer()
        trainer.join("r", attempt=f"a{attempt}")
        trainer.report(trainer.expect("batch"), np.ones(8))
        trainer.send(leave=trainer_pb2.Leave())
        trainer.expect("acknowledgement")
        assert trainer.next() is None


def test_a_rank_that_leaves_holds_nobody_up_longer_than_the_timeout(client, raw, eventually):
    client.create_dataset("d", 64)
    run = client.create_run("r", dataset="d", batch_size=8, staleness=0, draw=SCORED, report_timeout=0.5)
    ranks = [raw.trainer(), raw.trainer()]
    for rank, trainer in enumerate(ranks):
        trainer.join("r", rank=rank, world_size=2)
    batches = [trainer.expect("batch") for trainer in ranks]
    ranks[0].report(batches[0], np.ones(4))
    ranks[0].expect("acknowledgement")
    ranks[0].send(credit=trainer_pb2.Credit(batches=2))
    # While both are there, an evaluation may take as long as it likes.
    assert ranks[0].nothing_comes(1.2)
    ranks[1].send(leave=trainer_pb2.Leave())
    assert ranks[1].end() is None
    assert ranks[0].expect("batch").step == 1
    assert run.stats().closed_by_timeout == 1
    # Its owner need not wait at all.
    run.close_step(1)
    assert ranks[0].expect("batch", timeout=0.45).step == 2
    # What comes now is late.
    late = raw.trainer()
    late.join("r", rank=1, world_size=2, session="again", credit=0)
    late.report(batches[1], np.ones(4))
    assert late.expect("acknowledgement").disposition == trainer_pb2.DISPOSITION_LATE


def test_weights_are_waited_for_no_longer_than_the_timeout_when_a_rank_is_gone(client, raw):
    """Also where no draw waits for the reports: the step is closed, and weighed over what was reported."""
    client.create_dataset("d", 64)
    rule = {"method": "linupper", "r": 0.5, "where": "server"}
    run = client.create_run("r", dataset="d", batch_size=8, weigh=rule, report_timeout=0.5)
    ranks = [raw.trainer(), raw.trainer()]
    for rank, trainer in enumerate(ranks):
        trainer.join("r", rank=rank, world_size=2)
    batches = [trainer.expect("batch") for trainer in ranks]
    ranks[1].send(leave=trainer_pb2.Leave())
    assert ranks[1].end() is None
    losses = np.array([1, 2, 3, 4], np.float32)
    ranks[0].report(batches[0], losses, want_weights=True)
    answers = [ranks[0].next(), ranks[0].next()]
    weights = next(answer.weights for answer in answers if answer.HasField("weights"))
    got = wire.unpack(weights.weights, np.float32)
    whole = np.concatenate([losses, np.zeros(4, np.float32)])
    mask = np.arange(8) < 4
    expected = weigh.weights(whole, {"method": "linupper", "r": 0.5}, step=0, mask=mask)
    np.testing.assert_array_equal(got, np.asarray(expected)[:4])
    assert run.stats().closed_by_timeout == 1


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_weights_of_the_server_are_those_of_the_rule_on_the_whole_batch(client, world_size):
    rule = {"method": "linupper", "r": 0.4, "warmup_steps": 2}
    client.create_dataset("d", 64)
    run = client.create_run("r", dataset="d", batch_size=10, seed=1, weigh={**rule, "where": "server"})
    sessions = [run.join(rank, world_size, attempt="a", timeout=20) for rank in range(world_size)]
    for step in range(6):
        losses = np.random.default_rng(step).exponential(size=10).astype(np.float32)
        batches = [session.next() for session in sessions]
        answers = [
            session.report_async(batch, losses[batch.offset : batch.offset + len(batch)])
            for session, batch in zip(sessions, batches, strict=True)
        ]
        got = np.concatenate([answer.result(20) for answer in answers])
        np.testing.assert_array_equal(got, np.asarray(weigh.weights(losses, rule, step=step)))
    for session in sessions:
        session.close()


def test_a_new_attempt_rewinds_once_and_ends_the_old_one(client, raw):
    client.create_dataset("d", 64)
    run = client.create_run("r", dataset="d", batch_size=8, staleness=1, draw=SCORED)
    served = train(run, 8, world_size=2, attempt="one")
    zombie = raw.trainer()
    zombie.join("r", attempt="one", world_size=2, session="z", credit=0)
    ranks = [raw.trainer() for _ in range(3)]
    assert ranks[0].join("r", rank=0, world_size=3, attempt="two", start_step=4).start_step == 4
    assert zombie.end().code == "ABORTED"
    first = ranks[0].expect("batch")
    ranks[0].report(first, loss(wire.unpack_ids(first.ids), 4))
    ranks[0].expect("acknowledgement")
    for rank in (1, 2):
        joined = ranks[rank].join("r", rank=rank, world_size=3, attempt="two", start_step=4)
        assert joined.start_step == 4
    assert run.stats().reported_losses == 4 * 8 + 3, "the second rank must find the rewind done"
    slices = [first, *(ranks[rank].expect("batch") for rank in (1, 2))]
    assert np.concatenate([wire.unpack_ids(part.ids) for part in slices]).tolist() == served[4]
    again = raw.trainer()
    again.send(join=trainer_pb2.Join(run="r", world_size=2, attempt="one", session="z2"))
    ended = again.end()
    assert (ended.code, "'two'" in ended.message) == ("ABORTED", True)


def test_a_policy_change_outlives_a_new_attempt(client):
    """The owner's order was acknowledged: a restart of the job, which goes back some steps, does not undo it."""
    client.create_dataset("d", 64)
    run = client.create_run("r", dataset="d", batch_size=8, staleness=0)
    train(run, 6, attempt="one")
    run.change_policy(draw=SCORED)
    train(run, 2, attempt="two", start_step=6)
    train(run, 1, attempt="three", start_step=4)
    assert run.info().draw["method"] == "scored"
    assert run.info().next_step >= 5
    seen = {int(one) for step in range(5) for one in run.batch(step).ids}
    known = np.flatnonzero(np.isfinite(run.column("last_loss")))
    assert set(known.tolist()) == seen, "the column is folded from the history of then and the step since"


def test_after_a_rewind_the_trainers_of_before_cannot_come_back(client, raw):
    client.create_dataset("d", 64)
    run = client.create_run("r", dataset="d", batch_size=8)
    trainer = raw.trainer()
    trainer.join("r")
    trainer.train(6, loss)
    run.rewind(3)
    assert trainer.end().code == "ABORTED"
    again = raw.trainer()
    again.send(
        join=trainer_pb2.Join(run="r", world_size=1, attempt="a", session="s0", credit=1, resume_step=3)
    )
    ended = again.end()
    assert (ended.code, "rewound" in ended.message) == ("ABORTED", True)
    assert run.info().attempt == ""
    fresh = raw.trainer()
    assert fresh.join("r", attempt="b").start_step == 3
    assert fresh.expect("batch").step == 3


def test_streams_end_with_not_found_when_their_run_is_deleted(client, raw):
    client.create_dataset("d", 64)
    client.create_run("r", dataset="d", batch_size=8)
    trainer = raw.trainer()
    trainer.join("r")
    trainer.expect("batch")
    client.delete_run("r")
    ended = trainer.end()
    assert (ended.code, "deleted" in ended.message) == ("NOT_FOUND", True)
    with pytest.raises(steelyard.NotFound):
        client.run("r")
    client.create_run("r", dataset="d", batch_size=4)
    assert client.run("r").info().next_step == 0


def test_staleness_any_never_waits(client, raw):
    client.create_dataset("d", 64)
    run = client.create_run("r", dataset="d", batch_size=8, staleness="any", draw=SCORED)
    trainer = raw.trainer()
    trainer.join("r", credit=50)
    batches = [trainer.expect("batch") for _ in range(50)]
    for batch in batches[::-1]:
        trainer.report(batch, np.ones(8))
    for _ in range(50):
        trainer.expect("acknowledgement")
    assert run.stats().closed_steps == 50


def test_many_ranks_at_once_get_each_slice_once(client):
    client.create_dataset("d", 1000)
    run = client.create_run("r", dataset="d", batch_size=64, staleness=1, draw=SCORED)
    slices: dict[tuple[int, int], list[int]] = {}
    failures: list[BaseException] = []

    def work(rank):
        try:
            with run.join(rank, 8, attempt="a", timeout=30) as session:
                for _ in range(20):
                    batch = session.next()
                    time.sleep(0.001 * (rank % 3))
                    session.report(batch, loss(batch.ids, batch.step))
                    slices[batch.step, rank] = batch.ids.tolist()
                session.flush(30)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    alone = client.create_run("alone", dataset="d", batch_size=64, staleness=1, draw=SCORED)
    whole = [[one for rank in range(8) for one in slices[step, rank]] for step in range(20)]
    assert whole == train(alone, 20)


def test_a_flood_of_reports_is_answered_in_full(client, raw):
    client.create_dataset("d", 64)
    run = client.create_run("r", dataset="d", batch_size=64)
    flood = raw.trainer()
    flood.join("r")
    batch = flood.expect("batch")
    for _ in range(3 * MAX_UNANSWERED):
        flood.report(batch, np.ones(64))
    for _ in range(3 * MAX_UNANSWERED):
        flood.expect("acknowledgement")
    assert run.stats().duplicate_reports == 3 * MAX_UNANSWERED - 1


def test_what_is_read_and_not_answered_is_bounded_in_number_and_bytes():
    async def scenario():
        window = ReportWindow(max_bytes=100)
        await window.enter(1000)  # one is always let in
        waiting = asyncio.create_task(window.enter(1))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        window.answered(1)
        await asyncio.wait_for(waiting, 5)
        for _ in range(MAX_UNANSWERED - 1):
            await window.enter(0)
        waiting = asyncio.create_task(window.enter(0))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        window.answered(2)
        await asyncio.wait_for(waiting, 5)

    asyncio.run(scenario())
