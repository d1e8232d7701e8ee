"""Any world size: the stream of a run is the same for every number of trainers, whatever they do to each other."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steelyard
from steelyard.testing import server

POLICIES: dict[str, dict[str, Any]] = {
    "shuffle": {"draw": {"method": "shuffle"}},
    "k=0": {"draw": {"method": "scored", "score": "last_loss", "floor": 0.1}, "staleness": 0},
    "k=3": {
        "draw": {"method": "scored", "score": "last_loss", "floor": 0.1},
        "weigh": {"method": "importance"},
        "staleness": 3,
    },
}
WORLDS = [1, 2, 3, 4, 7, 8]
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def ahead_of(policy):
    """Batches that a rank may take and not report, while the next can still be drawn."""
    return policy.get("staleness", 12)


# -- whoever asks ------------------------------------------------------------------------------------------------------


@every_policy
@pytest.mark.parametrize("batch_size", [5, 23])
def test_the_union_of_the_slices_is_the_same_for_every_world_size_and_order_of_joining(
    lab, policy, batch_size
):
    """5 positions leave ranks of 7 and 8 without any; 23 divide by none of them."""
    options = {**policy, "batch_size": batch_size}
    whole = lab.undisturbed(8, **options)
    orders = random.Random(1)
    for world_size in WORLDS:
        run = lab.run(**options)
        order = orders.sample(range(world_size), world_size)
        sessions = lab.ranks(run, world_size, order=order)
        for step in range(8):
            batches = {rank: sessions[rank].next() for rank in orders.sample(order, world_size)}
            served = [batches[rank] for rank in range(world_size)]
            assert np.concatenate([batch.ids for batch in served]).tolist() == whole[step].ids.tolist()
            assert {batch.digest for batch in served} == {whole[step].digest}
            for rank in orders.sample(order, world_size):
                lab.same(batches[rank], whole[step])
                sessions[rank].report(batches[rank], lab.losses(batches[rank]))
        lab.leave(sessions)


class Crowd:
    """The ranks of one attempt, each where chance has brought it. `check` compares what any of them is served."""

    def __init__(self, lab, run, whole, world_size, ahead, chance, **options):
        self.lab, self.run, self.whole, self.chance, self.ahead = lab, run, whole, chance, ahead
        self.world_size, self.options = world_size, {"timeout": 60.0, **options}
        self.sessions: dict[int, steelyard.Session] = {}
        self.owed: dict[int, dict[int, steelyard.Batch]] = {rank: {} for rank in range(world_size)}
        self.done: dict[int, list[steelyard.Batch]] = {rank: [] for rank in range(world_size)}
        for rank in chance.sample(range(world_size), world_size):
            self.join(rank)

    def join(self, rank):
        """A new process of the rank: it knows nothing of the one before."""
        self.owed[rank] = {}
        self.sessions[rank] = self.run.join(rank, self.world_size, **self.options)

    def first_owed(self):
        """The first step that some rank has not reported."""
        ranks = [rank for rank in range(self.world_size) if self.size(rank)]
        return min(min(self.owed[rank], default=self.sessions[rank].step) for rank in ranks)

    def size(self, rank):
        return len(self.whole[0].ids[rank :: self.world_size])

    def can_take(self, rank, until):
        step = self.sessions[rank].step
        return step < until and step <= self.first_owed() + self.ahead

    def take(self, rank):
        batch = self.sessions[rank].next()
        self.lab.same(batch, self.whole[batch.step])
        if len(batch):
            self.owed[rank][batch.step] = batch

    def report(self, rank):
        """Any of what it owes, in one part or two, the second first."""
        step = self.chance.choice(sorted(self.owed[rank]))
        batch = self.owed[rank].pop(step)
        losses = self.lab.losses(batch)
        cut = self.chance.randrange(len(batch)) if self.chance.random() < 0.3 else 0
        for first, last in ((cut, len(batch)), (0, cut)):
            if first < last:
                self.sessions[rank].report_raw(batch, losses[first:last], offset=first)
        self.done[rank].append(batch)

    def report_again(self, rank):
        batch = self.chance.choice(self.done[rank])
        if self.sessions[rank].start_step <= batch.step < self.sessions[rank].step:
            self.sessions[rank].report_raw(batch, self.lab.losses(batch))

    def die(self, rank):
        """Without a word; what was not acknowledged may or may not have arrived."""
        session = self.sessions[rank]
        first, known = min(self.owed[rank], default=session.step), session.unacknowledged == 0
        session.close()
        self.join(rank)
        if known and self.size(rank):
            # Later where the process before this one had reported more than it was told.
            assert self.sessions[rank].start_step >= first, "the first step that the rank has not reported"

    def lose_connection(self, rank):
        call = self.sessions[rank]._stream._call
        if call is not None:
            call.cancel()

    def act(self, until, deaths):
        """One thing that some rank may do now. Whether everything is done."""
        ranks = list(range(self.world_size))
        can = [(self.take, rank) for rank in ranks if self.can_take(rank, until)]
        can += [(self.report, rank) for rank in ranks if self.owed[rank]]
        if not can:
            return True
        if self.chance.random() < deaths:
            can = [(self.chance.choice([self.die, self.lose_connection]), rank) for rank in ranks]
        elif self.chance.random() < 0.2:
            can = [(self.report_again, rank) for rank in ranks if self.done[rank]] or can
        action, rank = self.chance.choice(can)
        action(rank)
        return False

    def go(self, until, deaths=0.0):
        """Until every rank has taken and reported every step below `until`."""
        while not self.act(until, deaths):
            pass

    def leave(self):
        for session in self.sessions.values():
            session.leave()


@every_policy
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1), world_size=st.sampled_from([2, 3, 7]))
def test_slow_ranks_and_reports_in_any_order_in_parts_and_twice_change_nothing(lab, policy, seed, world_size):
    options = {**policy, "batch_size": 5}
    run = lab.run(**options)
    crowd = Crowd(
        lab,
        run,
        lab.undisturbed(12, **options),
        world_size,
        ahead_of(policy),
        random.Random(seed),
        attempt="a",
    )
    crowd.go(12)
    crowd.leave()
    stats = run.stats()
    assert (stats.reported_losses, stats.served_ids - 5 * (stats.next_step - 12)) == (60, 60)
    assert (stats.refused_reports, stats.late_reports, stats.closed_steps) == (0, 0, 12)
    assert stats.duplicate_reports > 0


@every_policy
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1), world_size=st.sampled_from([2, 4, 8]))
def test_ranks_that_die_and_rejoin_and_connections_that_break_change_nothing(lab, policy, seed, world_size):
    options = {**policy, "batch_size": 5}
    run = lab.run(**options)
    crowd = Crowd(
        lab,
        run,
        lab.undisturbed(12, **options),
        world_size,
        ahead_of(policy),
        random.Random(seed),
        attempt="a",
    )
    crowd.go(12, deaths=0.1)
    crowd.leave()
    stats = run.stats()
    assert (stats.reported_losses, stats.closed_steps) == (60, 12)
    assert (stats.refused_reports, stats.late_reports) == (0, 0)


@every_policy
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_world_size_may_change_at_any_step_forward_and_back(lab, policy, seed):
    """Each attempt begins where trainers could have saved: at a step that everything before it is reported of."""
    options = {**policy, "batch_size": 5}
    chance = random.Random(seed)
    run, whole = lab.run(**options), lab.undisturbed(20, **options)
    saved = 0
    for attempt in range(6):
        start = None if chance.random() < 0.3 else chance.randint(0, saved)
        crowd = Crowd(
            lab,
            run,
            whole,
            chance.choice(WORLDS),
            ahead_of(policy),
            chance,
            attempt=f"{attempt}",
            start_step=start,
        )
        begins = saved if start is None else start
        assert {session.step for session in crowd.sessions.values()} == {begins}
        crowd.go(min(20, begins + chance.randint(0, 8)))
        for _ in range(chance.randint(0, 10)):  # taken and perhaps reported by some: undone, or served again
            crowd.act(20, 0.0)
        for session in crowd.sessions.values():
            session.flush()
            session.close()
        saved = run.info().closed_steps
    for step in range(min(20, run.info().next_step)):
        lab.same(run.batch(step), whole[step])


# -- reports of steps that another world was served --------------------------------------------------------------------


@every_policy
def test_a_step_served_to_four_ranks_is_reported_by_the_two_of_the_next_attempt(lab, policy):
    """Drawn once, and not again: what the four took with them in their prefetch is what the two are served."""
    whole, run = lab.undisturbed(6, **policy), lab.run(**policy)
    four = lab.ranks(run, 4)
    lab.train(four, whole, range(3))
    taken = [session.next() for session in four]
    for session in four:
        session.flush()
    drawn = run.stats()
    for session in four:
        session.close()
    two = lab.ranks(run, 2)
    assert [session.start_step for session in two] == [3, 3]
    now = run.stats()
    assert now.served_ids == 10 * now.next_step, "nothing was drawn twice"
    assert now.journal_records - now.next_step == drawn.journal_records - drawn.next_step + 1, (
        "the attempt's beginning, and nothing undone"
    )
    batches = [session.next() for session in two]
    assert (
        np.concatenate([batch.ids for batch in batches]).tolist()
        == np.concatenate([batch.ids for batch in taken]).tolist()
    )
    for session, batch in zip(reversed(two), reversed(batches), strict=True):
        lab.same(batch, whole[3])
        session.report(batch, lab.losses(batch))
    lab.train(two, whole, range(4, 6))
    lab.leave(two)
    assert run.stats().reported_losses == 60


@every_policy
def test_a_step_that_some_of_four_ranks_reported_is_reported_whole_by_the_two_of_the_next_attempt(
    lab, policy
):
    whole, run = lab.undisturbed(6, **policy), lab.run(**policy)
    four = lab.ranks(run, 4)
    lab.train(four, whole, range(3))
    for session in four[1:3]:
        batch = session.next()
        session.report(batch, lab.losses(batch) + 1)  # these two were of a step that the others never ended
        session.flush()
    for session in four:
        session.close()
    two = lab.ranks(run, 2)
    lab.train(two, whole, range(3, 6))
    lab.leave(two)
    assert run.stats().reported_losses == 60
    known = {
        int(one): float(loss)
        for batch in whole
        for one, loss in zip(batch.ids, lab.losses(batch), strict=True)
    }
    ids = np.array(sorted(known))
    newest = [rows[-1][1] for rows in run.history(ids)]
    np.testing.assert_array_equal(newest, np.array([known[one] for one in ids.tolist()], np.float32))


def test_one_rank_may_report_what_another_was_served(lab):
    """A report names a step and positions, not a rank: any session may bring any part, cut in any way."""
    policy = POLICIES["k=0"]
    whole, run = lab.undisturbed(3, **policy), lab.run(**policy)
    sessions = lab.ranks(run, 3, reports=False)
    for step in range(3):
        batches = [session.next() for session in sessions]
        for batch in batches:
            lab.same(batch, whole[step])
        for rank, first, last in ((2, 6, 10), (0, 0, 5), (2, 4, 7)):  # overlapping, and cut where no slice is
            cut = slice(first, last)
            ids, probability = whole[step].ids[cut], whole[step].probability[cut]
            part = dataclasses.replace(batches[rank], offset=first, ids=ids, probability=probability)
            sessions[rank].report_raw(part, lab.losses(part))
    for session in sessions:
        session.flush()
    stats = run.stats()
    assert (stats.reported_losses, stats.refused_reports, stats.closed_steps) == (30, 0, 3)
    lab.leave(sessions)


@pytest.mark.parametrize("k", [0, 3])
def test_a_late_report_changes_nothing_and_its_absence_only_what_would_have_read_it(lab, k):
    policy = {**POLICIES["k=3"], "staleness": k}
    whole, run = lab.undisturbed(12, **policy), lab.run(**policy)
    one, two = lab.ranks(run, 2)
    lost = 4
    for step in range(12):
        batches = one.next(), two.next()
        if step < lost + 1 + k:
            lab.same(batches[0], whole[step])
        elif step == lost + 1 + k:
            assert batches[0].digest != whole[step].digest, "the draw that lacks the losses"
        one.report(batches[0], lab.losses(batches[0]))
        if step != lost:
            two.report(batches[1], lab.losses(batches[1]))
            continue
        one.flush()
        run.close_step(lost)
        before = run.history(batches[1].ids)
        two.report(batches[1], lab.losses(batches[1]))
        two.flush()
        assert two.late_reports == 1
        assert run.history(batches[1].ids) == before
    for session in (one, two):
        session.flush()
    assert run.stats().reported_losses == 120 - len(batches[1])
    lab.leave([one, two])


# -- staleness "any" ---------------------------------------------------------------------------------------------------


def take_and_settle(sessions, eventually):
    """Every rank takes its batch, and the next draw, which their credit asks for, is made before anything else."""
    batches = [session.next() for session in sessions]
    eventually(lambda: all(session._member.ledger.buffered for session in sessions))
    return batches


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_under_any_the_order_of_the_journal_decides_and_not_the_world_size(lab, eventually, world_size):
    """Where each draw comes just before the reports of the step before it, it knows what staleness 1 would."""
    scored = POLICIES["k=0"]["draw"]
    whole = lab.undisturbed(10, draw=scored, staleness=1)
    run = lab.run(draw=scored, staleness="any")
    sessions = lab.ranks(run, world_size, prefetch=1)
    for step in range(10):
        batches = take_and_settle(sessions, eventually)
        for batch in batches:
            lab.same(batch, whole[step])
            assert batch.state_version == world_size * max(0, step - 1), "reports folded"
        for session, batch in reversed(list(zip(sessions, batches, strict=True))):
            session.report(batch, lab.losses(batch))
            session.flush()
    lab.leave(sessions)


def test_under_any_a_draw_knows_all_that_has_arrived_and_waits_for_nothing(lab, eventually):
    run = lab.run(draw=POLICIES["k=0"]["draw"], staleness="any")
    one, two = lab.ranks(run, 2, prefetch=1)
    seen = [one.next(10.0) for _ in range(6)]  # the other reports nothing at all
    for batch in seen:
        one.report(batch, lab.losses(batch))
    one.flush()
    latest = [one.next(10.0) for _ in range(3)][-1]
    assert latest.state_version == 6
    known = np.flatnonzero(np.isfinite(run.column("last_loss")))
    assert known.tolist() == sorted({int(one) for batch in seen for one in batch.ids})
    one.close()
    two.close()


def test_under_any_the_journal_is_the_order_also_after_a_crash(tmp_path, lab_of, eventually):
    """Two runs that are done the same to are served the same, though one of them loses its server in between."""
    policy = {"draw": POLICIES["k=0"]["draw"], "staleness": "any"}
    with steelyard.testing.ServerProcess(tmp_path) as process:
        lab = lab_of(process.client())
        runs = [lab.run(**policy) for _ in range(2)]
        chance = random.Random(4)
        reports = [chance.sample(range(2), 2) for _ in range(9)]
        served = []
        for run, crashes in zip(runs, [(), (3, 6)], strict=True):
            sessions = lab.ranks(run, 2, prefetch=1)
            for step, order in enumerate(reports):
                batches = take_and_settle(sessions, eventually)
                served.append([batch.digest for batch in batches])
                for rank in order:
                    sessions[rank].report(batches[rank], lab.losses(batches[rank]))
                    sessions[rank].flush()
                if step in crashes:
                    process.kill()
                    process.start()
            lab.leave(sessions)
        assert served[:9] == served[9:]
        assert runs[0].column("last_loss").tobytes() == runs[1].column("last_loss").tobytes()


def test_under_any_another_order_may_lead_elsewhere(lab, eventually):
    """What is not promised: without this, the tests above would hold of a draw that reads nothing."""
    policy = {"draw": POLICIES["k=0"]["draw"], "staleness": "any"}
    served = []
    for late in (False, True):
        run = lab.run(**policy)
        one, two = lab.ranks(run, 2, prefetch=1)
        waiting = []
        for _ in range(4):
            batches = take_and_settle((one, two), eventually)
            one.report(batches[0], lab.losses(batches[0]))
            waiting.append(batches[1])
            while waiting and not late:
                two.report(waiting[0], lab.losses(waiting.pop(0)))
            one.flush()
            two.flush()
        served.append([run.batch(step).digest for step in range(4)])
        one.close()
        two.close()
    assert served[0] != served[1]
    assert served[0][:2] == served[1][:2], "both were drawn before any report"


def test_the_streams_of_two_servers_are_the_same_bytes(lab, tmp_path, lab_of):
    policy = POLICIES["k=3"]
    with server(tmp_path) as client:
        other = lab_of(client)
        for here, there in itertools.zip_longest(
            lab.undisturbed(12, **policy), other.undisturbed(12, **policy)
        ):
            lab.same(here, there)
