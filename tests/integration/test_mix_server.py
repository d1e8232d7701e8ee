"""Mixes through real servers: groups that change while a run goes on, kills, going back, slices, changes of policy."""

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard import events
from steelyard.testing import ServerProcess, server

N, B = 60, 12
GROUPS = np.where(np.arange(N) < 6, 0, np.where(np.arange(N) < 20, 1, 2)).astype(np.float32)
SCORED = {"method": "scored", "score": "last_loss", "sampling": "distinct", "floor": 0.125}
POLICIES: dict[str, dict[str, Any]] = {
    "static over a shuffle": {"mix": {"method": "static", "shares": [0.4, 0.35, 0.25]}},
    "group_dro over a shuffle": {"mix": {"method": "group_dro", "eta": 1.0}, "staleness": 1},
    "group_dro over distinct": {"mix": {"method": "group_dro", "eta": 1.0}, "draw": SCORED, "staleness": 2},
    "a subset by rankings": {"mix": {"method": "rank_aggregate_quota", "rankings": ["quality"], "k": 24}},
}


def losses(ids, step):
    """No rounding anywhere; group 0 is the worst."""
    return ((5 * ids + 3 * step) % 8 / 4 + 2.0 * (ids < 6)).astype(np.float32)


def wait_drawn(run, steps):
    deadline = time.monotonic() + 60
    while (came := run.info().next_step) < steps:
        assert time.monotonic() < deadline, f"expected {steps} steps drawn within 60 s; {came} are"
        time.sleep(0.005)


def train(run, steps, **join):
    """Trains alone, one batch drawn ahead when it returns; what was served."""
    served = []
    with run.join(prefetch=1, timeout=60, **join) as session:
        for _ in range(steps):
            batch = session.next()
            session.report(batch, losses(batch.ids, batch.step))
            session.flush()
            served.append((batch.step, batch.ids.tolist(), batch.probability.tolist()))
        wait_drawn(run, batch.step + 2)
    return served


def printed(process, *words):
    command = [sys.executable, "-m", "steelyard_server", *words, "--address", process.address]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def dataset(client):
    client.create_dataset("d", N)
    client.set_column("d", "group", GROUPS)
    client.set_column("d", "quality", (7.0 * np.arange(N)) % N)


def regroup(client):
    """Ids leave group 2, a fourth group comes, and new examples join the second."""
    client.set_column("d", "group", [0, 3, 3, 3], ids=[30, 31, 32, 33])
    client.append_examples("d", 5)
    client.set_column("d", "group", [1, 1, 3], ids=[60, 61, 62])
    client.retire("d", [1, 31])


@pytest.mark.parametrize("name", POLICIES)
def test_kills_and_going_back_leave_the_batches_of_a_mix_as_they_were(tmp_path, name):
    fields: dict[str, Any] = {"dataset": "d", "batch_size": B, "seed": 5, **POLICIES[name]}
    with server(tmp_path / "calm") as client:
        dataset(client)
        run = client.create_run("r", **fields)
        calm = train(run, 3)
        regroup(client)
        calm += train(run, 7)
        stats = run.stats()
    with ServerProcess(tmp_path / "killed") as process:
        client = process.client()
        dataset(client)
        run = client.create_run("r", **fields)
        came = train(run, 3)
        process.kill()
        process.start()
        regroup(client)
        process.kill()
        process.start()
        came += train(run, 3)
        # Its columns at the end are those of step 6, so going back there changes nothing.
        assert train(run, 3, start_step=5, attempt="again")[0] == came[5]
        run.rewind(6)
        process.kill()
        process.start()
        came += train(run, 4)
        assert came == calm
        again = run.stats()
        assert (again.drawable, again.effective_sample_ratio) == (
            stats.drawable,
            stats.effective_sample_ratio,
        )
        fork = run.fork("f", step=6)
        assert train(fork, 4) == calm[6:]


@pytest.mark.parametrize("staleness", [0, 3])
def test_the_slices_of_any_number_of_ranks_make_up_the_same_batch(tmp_path, staleness):
    fields: dict[str, Any] = {
        "dataset": "d",
        "batch_size": B,
        "seed": 5,
        "staleness": staleness,
        "draw": SCORED,
    }
    mix = {"method": "group_dro", "eta": 0.5}
    with server(tmp_path / "s") as client:
        dataset(client)
        alone = train(client.create_run("alone", mix=mix, **fields), 6)
        run = client.create_run("many", mix=mix, **fields)
        ranks = [run.join(rank=rank, world_size=5, attempt="a", prefetch=1, timeout=60) for rank in range(5)]
        for _, ids, probability in alone:
            slices = [session.next() for session in ranks]
            assert [one for part in slices for one in part.ids.tolist()] == ids
            assert [one for part in slices for one in part.probability.tolist()] == probability
            for session, part in zip(ranks, slices, strict=True):
                session.report(part, losses(part.ids, part.step))
        for session in ranks:
            session.leave()


def test_a_mix_that_hears_of_a_worse_group_draws_more_of_it(tmp_path):
    with server(tmp_path / "s") as client:
        dataset(client)
        mix = {"method": "group_dro", "eta": 1.0}
        run = client.create_run("r", dataset="d", batch_size=B, staleness=0, mix=mix)
        served = train(run, 12)
        shares = [np.bincount(GROUPS[ids].astype(int), minlength=3) / B for _, ids, _ in served]
        assert shares[0].max() - shares[0].min() < 0.2
        assert shares[-1][0] > 0.8
        before = run.stats()
        assert before.group_shares[0] > 0.8
        assert sum(before.group_shares) == pytest.approx(1)
        assert before.ungrouped == 0
        client.append_examples("d", 10)
        assert run.stats().drawable == before.drawable, "examples without a group are not drawn"
        assert run.stats().ungrouped == 10
        run.change_policy(mix={"method": "none"})
        assert (run.stats().ungrouped, run.stats().group_shares) == (0, ())


# ---- changes of policy ----


def test_a_changed_mix_is_durable_exact_and_seen_in_the_audit(tmp_path):
    change = {"method": "static", "shares": [1, 1, 2]}
    with server(tmp_path / "calm") as client:
        dataset(client)
        run = client.create_run("r", dataset="d", batch_size=B, seed=5)
        calm = train(run, 3, attempt="a")
        run.change_policy(mix=change)
        calm += train(run, 4, attempt="a")
    with ServerProcess(tmp_path / "killed") as process:
        client = process.client()
        dataset(client)
        run = client.create_run("r", dataset="d", batch_size=B, seed=5)
        came = train(run, 3, attempt="a")
        info = run.change_policy(mix=change)
        process.kill()
        assert info.mix == {"method": "static", "group": "group", "shares": [1, 1, 2]}
        process.start()
        assert run.info().mix == info.mix
        assert came + train(run, 4, attempt="a") == calm
        # One batch was drawn ahead: the change holds from the next one on.
        counts = [np.bincount(GROUPS[run.batch(step).ids].astype(int), minlength=3) for step in (4, 5, 6)]
        assert [one.tolist() for one in counts] == [[3, 3, 6]] * 3
        told = [event for event in run.events() if not isinstance(event, events.LossesReported)]
        (at,) = [place for place, event in enumerate(told) if isinstance(event, events.PolicyChanged)]
        changed = told[at]
        assert isinstance(changed, events.PolicyChanged)
        assert [event.step for event in told[:at] if isinstance(event, events.BatchDrawn)] == [0, 1, 2, 3]
        assert changed.mix == info.mix
        assert changed.draw["method"] == "shuffle"
        assert isinstance(told[0], events.RunCreated)
        assert told[0].spec.mix == {"method": "none"}
        lines = printed(process, "events", "r").splitlines()
        (line,) = [line for line in lines if "policy_changed" in line]
        assert "draw shuffle, mix static group=group shares=[1, 1, 2], weigh uniform" in line
        assert "static" in printed(process, "runs")
        # And back again; a rewind undoes a change that came after its step.
        assert run.change_policy(mix={"method": "none"}).mix == {"method": "none"}
        assert run.fork("f", step=6, mix={"method": "temperature"}).info().mix["temperature"] == 2.0
        words = ("fork", "r", "g", "--step", "6", "--mix", '{"method": "group_balanced"}')
        assert "g begins at step 6 of r" in printed(process, *words)
        assert client.run("g").info().mix["method"] == "group_balanced"
        assert run.rewind(3).mix == {"method": "none"}
        assert train(run, 1)[0] == calm[3]


def test_a_change_of_the_shares_alone_leaves_the_epochs_within_groups_as_they_are(tmp_path):
    mix = {"method": "static", "shares": [1, 1, 2]}
    with ServerProcess(tmp_path / "s") as process:
        client = process.client()
        dataset(client)
        run = client.create_run("r", dataset="d", batch_size=B, seed=5, mix=mix)
        served = train(run, 4, attempt="a")
        run.change_policy(mix={"method": "static", "shares": [0, 1, 5]})
        process.kill()
        process.start()
        served += train(run, 3, attempt="a")
        # Five batches by the first shares took 30 of the 40 of group 2; one by the others takes the 10 that are left.
        of_second = [one for _, ids, _ in served for one in ids if one >= 20]
        assert sorted(of_second[:40]) == list(range(20, 60))
        assert [sum(one >= 20 for one in ids) for _, ids, _ in served] == [6, 6, 6, 6, 6, 10, 10]


def test_a_mix_that_cannot_be_is_refused_by_name_and_number(tmp_path):
    with server(tmp_path / "s") as client:
        dataset(client)
        client.set_column("d", "half", np.arange(N) / 2)
        fields: dict[str, Any] = {"dataset": "d", "batch_size": B}
        refused: list[tuple[dict[str, Any], str]] = [
            ({"method": "statik"}, "did you mean 'static'"),
            ({"method": "static", "shares": [1, 1]}, "one number for each of the 3 groups"),
            (
                {"method": "static", "group": "domain"},
                "a column of dataset 'd', which has: group, half, quality",
            ),
            ({"method": "static", "group": "half"}, "whole numbers 0..65535.*got 0.5 at position 1"),
        ]
        for mix, message in refused:
            with pytest.raises(steelyard.InvalidArgument, match=message):
                client.create_run("r", mix=mix, **fields)
        weigh = {"method": "linupper"}
        with pytest.raises(steelyard.InvalidArgument, match="so it would count twice"):
            client.create_run("r", mix={"method": "group_dro"}, weigh=weigh, **fields)
        run = client.create_run("r", mix={"method": "static", "shares": [1, 1, 1]}, weigh=weigh, **fields)
        with pytest.raises(steelyard.InvalidArgument, match="so it would count twice"):
            run.change_policy(mix={"method": "group_dro"})
        with pytest.raises(steelyard.InvalidArgument, match="run 'r' reads 'group': expected the groups"):
            client.set_column("d", "group", [0.5], ids=[3])
        # A fourth group does not stand in the way of another weigher; the list goes as far as it goes.
        client.set_column("d", "group", [3], ids=[3])
        run.change_policy(weigh={"method": "uniform"})
        assert all(3 not in ids for _, ids, _ in train(run, 4))
        with pytest.raises(steelyard.InvalidArgument, match="each of the 4 groups"):
            run.change_policy(mix={"method": "static", "shares": [1, 1, 2]})
