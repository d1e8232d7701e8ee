"""Every figure of a run is the one that its own history gives by hand."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import steelyard
from steelyard_server.runs import serving

SCORED = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "unseen": 2.0}


def loss_of(ids, step):
    return (1.0 + (ids * 7 + step) % 5).astype(np.float32)


def train(run, steps, *, ahead=2, loss=loss_of):
    """Trains alone; the batches, in order."""
    batches = []
    with run.join(prefetch=ahead, timeout=30) as session:
        for _ in range(steps):
            batch = session.next()
            session.report(batch, loss(batch.ids, batch.step))
            batches.append(batch)
        session.flush(30)
    return batches


def cumulative(values):
    bounds = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256]
    return {**{str(float(b)): sum(v <= b for v in values) for b in bounds}, "+Inf": len(values)}


def buckets(scrape, name, run):
    return {le: count for (le,), count in scrape.all(f"{name}_bucket", run=run).items()}


def test_the_figures_of_a_run_are_those_of_its_history(watched):
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    run = client.create_run("r", dataset="d", batch_size=8, draw=SCORED, staleness=2)
    train(run, 12)
    scrape = server.scrape()
    figure = lambda name, **labels: scrape.one(f"steelyard_run_{name}", run="r", **labels)  # noqa: E731

    events: list[tuple[str, Any]] = [(type(event).__name__, event) for event in run.events()]
    drawn = [event for kind, event in events if kind == "BatchDrawn"]
    step = len(drawn)
    assert figure("step") == step == run.stats().next_step
    assert figure("closed_steps") == 12
    # The draw of the newest step knew all that are two steps older, and no others.
    folded = step - 1 - 2
    assert figure("folded_steps") == folded
    assert figure("batches_total") == step
    assert figure("reported_losses_total") == 12 * 8
    assert figure("nonfinite_losses_total") == 0
    assert figure("drawable") == 50

    # What the draws know: the last loss of each example, in order of steps.
    last = np.full(50, np.nan)
    for one in drawn[:folded]:
        last[one.ids] = loss_of(one.ids, one.step)
    masses = np.where(np.isnan(last), 2.0, last)
    assert figure("effective_sample_ratio") == pytest.approx(
        masses.sum() ** 2 / (50 * (masses**2).sum()), rel=1e-6
    )
    assert figure("largest_weight_share") == pytest.approx(masses.max() / masses.sum(), rel=1e-6)
    assert figure("never_reported_share") == np.isnan(last).sum() / 50 > 0

    newest = loss_of(drawn[11].ids, 11)
    for quantile in ("0", "0.5", "0.9", "0.99", "1"):
        assert figure("loss", quantile=quantile) == pytest.approx(np.quantile(newest, float(quantile)))
    assert figure("batch_weights_effective_ratio") == 1.0
    assert figure("batch_weights_largest_share") == 1 / 8

    # Draw t knows the steps below t - 2, all of them.
    assert buckets(scrape, "steelyard_run_staleness_steps", "r") == cumulative(
        [min(t, 2) for t in range(step)]
    )
    assert figure("staleness_steps_sum") == sum(min(t, 2) for t in range(step))
    # In the journal, the draws between that of a step and its losses.
    ages = [
        sum(1 for before, _ in events[:at] if before == "BatchDrawn") - 1 - event.step
        for at, (kind, event) in enumerate(events)
        if kind == "LossesReported"
    ]
    assert len(ages) == 12
    assert buckets(scrape, "steelyard_run_loss_age_steps", "r") == cumulative(
        [a for a in ages for _ in range(8)]
    )


def test_the_share_of_the_mass_that_one_example_has_is_seen_wherever_it_is(watched):
    """In a dataset of which only a part is looked at."""
    server = watched()
    client = steelyard.connect(server.server.address)
    size = 200_000
    client.create_dataset("d", size)
    scores = np.ones(size, np.float32)
    scores[123_457] = size
    client.set_column("d", "importance", scores)
    client.create_run(
        "r", dataset="d", batch_size=8, draw={**SCORED, "score": "importance", "sampling": "independent"}
    )
    train(client.run("r"), 1)
    scrape = server.scrape()
    assert scrape.one("steelyard_run_largest_weight_share", run="r") == pytest.approx(0.5, rel=1e-3)
    assert scrape.one("steelyard_run_effective_sample_ratio", run="r") == pytest.approx(
        (2 * size) ** 2 / (size * (size**2 + size)), rel=1e-3
    )


def test_the_weights_of_the_newest_batch_are_those_that_its_trainers_got(watched):
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    run = client.create_run(
        "r", dataset="d", batch_size=8, draw=SCORED, staleness=0, weigh={"method": "importance"}
    )
    train(run, 12)
    scrape = server.scrape()
    weights = np.asarray(run.batch(11).weight, np.float64)
    assert len(set(weights.tolist())) > 1
    assert scrape.one("steelyard_run_batch_weights_effective_ratio", run="r") == pytest.approx(
        weights.sum() ** 2 / (8 * (weights**2).sum()), rel=1e-6
    )
    assert scrape.one("steelyard_run_batch_weights_largest_share", run="r") == pytest.approx(
        weights.max() / weights.sum(), rel=1e-6
    )


def test_reports_that_are_refused_repeated_or_late_are_counted_by_why(watched, raw_of):
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    client.create_run("r", dataset="d", batch_size=8, draw=SCORED, staleness=0)
    client.create_run("strict", dataset="d", batch_size=8, draw=SCORED, on_nonfinite="reject")
    trainer = raw_of(server.server.address).trainer()
    trainer.join("r", credit=2)
    batch = trainer.expect("batch")
    losses = np.ones(8, np.float32)

    def refused(losses, **changes):
        trainer.report(batch, losses, **changes)
        trainer.expect("refusal")

    refused(losses, digest=batch.digest ^ 1)
    refused(losses, digest=batch.digest ^ 2)
    refused(losses, step=7)
    refused(np.ones(9, np.float32))
    refused(-losses)
    trainer.report(batch, np.where(np.arange(8) < 3, np.nan, losses))
    trainer.expect("acknowledgement")
    second = trainer.expect("batch")
    trainer.report(batch, np.where(np.arange(8) < 3, np.nan, losses))
    trainer.expect("acknowledgement")
    refused(losses + 1)
    client.run("r").close_step(second.step)
    trainer.report(second, losses)
    trainer.expect("acknowledgement")
    other = raw_of(server.server.address).trainer()
    other.join("strict")
    first = other.expect("batch")
    other.report(first, np.full(8, np.inf, np.float32))
    other.expect("refusal")

    scrape = server.scrape()
    why = {
        reason: count
        for (reason,), count in scrape.all("steelyard_run_rejected_reports_total", run="r").items()
    }
    assert why == {"digest": 2, "step": 1, "shape": 1, "values": 1, "conflict": 1, "nonfinite": 0, "other": 0}
    assert scrape.one("steelyard_run_rejected_reports_total", run="strict", reason="nonfinite") == 1
    assert scrape.one("steelyard_run_duplicate_reports_total", run="r") == 1
    assert scrape.one("steelyard_run_late_reports_total", run="r") == 1
    assert scrape.one("steelyard_run_reported_losses_total", run="r") == 8
    assert scrape.one("steelyard_run_nonfinite_losses_total", run="r") == 3
    # Three that are NaN are not among the quantiles.
    assert scrape.one("steelyard_run_loss", run="r", quantile="0") == 1.0
    assert scrape.one("steelyard_run_ranks", run="r") == 1


def test_a_trainer_whose_reports_are_all_refused_fills_no_log(watched, raw_of, monkeypatch):
    told = []
    monkeypatch.setattr(
        serving, "_log", SimpleNamespace(warning=lambda event, **about: told.append((event, about)))
    )
    monkeypatch.setattr(serving, "_TELL_AGAIN_SECONDS", 3600.0)
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    client.create_run("r", dataset="d", batch_size=8, draw=SCORED, staleness=0)
    trainer = raw_of(server.server.address).trainer()
    monkeypatch.setattr(serving._log, "info", lambda *event, **about: None, raising=False)
    trainer.join("r", credit=2)
    batch = trainer.expect("batch")
    for number in range(20):
        trainer.report(batch, np.ones(8, np.float32), digest=batch.digest ^ (1 + number))
        trainer.expect("refusal")
    trainer.report(batch, np.ones(9, np.float32))
    trainer.expect("refusal")
    assert [(event, about["reason"]) for event, about in told] == [
        ("report_refused", "digest"),
        ("report_refused", "shape"),
    ]
    assert server.scrape().one("steelyard_run_rejected_reports_total", run="r", reason="digest") == 20


def test_going_back_takes_nothing_from_a_counter(watched):
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    run = client.create_run("r", dataset="d", batch_size=8)
    train(run, 6, loss=lambda ids, step: np.where(ids % 2, np.nan, 1.0).astype(np.float32))
    before = server.scrape()
    lost = before.one("steelyard_run_nonfinite_losses_total", run="r")
    assert lost > 0
    run.rewind(2)
    after = server.scrape()
    assert after.one("steelyard_run_step", run="r") == 2
    for name in ("nonfinite_losses_total", "reported_losses_total", "batches_total"):
        assert after.one(f"steelyard_run_{name}", run="r") == before.one(f"steelyard_run_{name}", run="r")


def test_a_checkpoint_takes_the_journal_off_its_lag_and_is_dated(watched, eventually):
    server = watched(checkpoint_interval_seconds=0.3)
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    run = client.create_run("r", dataset="d", batch_size=8)
    began = time.time()
    train(run, 3)

    def saved():
        scrape = server.scrape()
        lag = scrape.one("steelyard_run_journal_lag_records", run="r")
        return scrape if lag == 0 else None

    scrape = eventually(saved)
    assert began < scrape.one("steelyard_run_checkpoint_timestamp_seconds", run="r") <= time.time()


def test_a_restart_replays_what_the_lag_said_and_counts_from_nothing(watched, tmp_path):
    server = watched(checkpoint_interval_seconds=3600)
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    run = client.create_run("r", dataset="d", batch_size=8)
    train(run, 3)
    lag = server.scrape().one("steelyard_run_journal_lag_records", run="r")
    assert lag == sum(1 for _ in run.events())
    server.server.stop()
    server = watched()
    client = steelyard.connect(server.server.address)
    assert server.scrape().all("steelyard_run_step") == {}
    assert client.run("r").stats().next_step
    scrape = server.scrape()
    assert scrape.one("steelyard_run_batches_total", run="r") == 0
    # The drain made a checkpoint.
    assert scrape.one("steelyard_run_journal_lag_records", run="r") == 0
    assert scrape.one("steelyard_runs_loaded") == 1


def test_a_run_that_is_deleted_is_gone_and_one_of_its_name_begins_anew(watched):
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    for name in ("a", "b"):
        train(client.create_run(name, dataset="d", batch_size=8), 2)
    assert {run for (run,) in server.scrape().all("steelyard_run_step")} == {"a", "b"}
    client.delete_run("a")
    scrape = server.scrape()
    assert {run for (run,) in scrape.all("steelyard_run_step")} == {"b"}
    assert not [one for one in scrape.samples if one.labels.get("run") == "a"]
    client.create_run("a", dataset="d", batch_size=8)
    client.run("a").stats()
    scrape = server.scrape()
    assert (scrape.one("steelyard_runs"), scrape.one("steelyard_datasets")) == (2, 1)
    assert scrape.one("steelyard_run_batches_total", run="a") == 0


def test_a_run_that_is_busy_keeps_no_scrape_waiting_and_its_figures_say_how_old_they_are(watched, eventually):
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    run = client.create_run("r", dataset="d", batch_size=8)
    train(run, 2)
    step = server.scrape().one("steelyard_run_step", run="r")
    mailbox = server.server._catalog.run("r")._mailbox
    release = threading.Event()
    mailbox.post(lambda: release.wait(30) and None)
    try:
        time.sleep(0.05)
        scrape = server.scrape()
        first = scrape.one("steelyard_run_figures_age_seconds", run="r")
        assert scrape.one("steelyard_run_step", run="r") == step
        # Asked once, however often it is scraped meanwhile.
        for _ in range(3):
            server.scrape()
        assert mailbox._messages.qsize() == 1
        assert server.scrape().one("steelyard_run_figures_age_seconds", run="r") > first > 0.05
    finally:
        release.set()
    assert eventually(lambda: server.scrape().one("steelyard_run_figures_age_seconds", run="r") < first)


def test_a_figure_that_fails_costs_the_scrape_only_that_run(watched, monkeypatch):
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    for name in ("a", "b"):
        client.create_run(name, dataset="d", batch_size=8).stats()
    broken = server.server._catalog.run("a")
    monkeypatch.setattr(broken, "_figures", lambda: 1 / 0)
    assert {run for (run,) in server.scrape().all("steelyard_run_step")} == {"b"}


def test_the_question_builds_no_drawer(watched):
    """That is O(size), and one that is built later than without metrics might see other columns."""
    server = watched()
    client = steelyard.connect(server.server.address)
    client.create_dataset("d", 50)
    client.create_run("r", dataset="d", batch_size=8, draw=SCORED)
    scrape = server.scrape()
    assert scrape.one("steelyard_run_step", run="r") == 0
    assert scrape.one("steelyard_run_drawable", run="r") == 50
    assert scrape.all("steelyard_run_effective_sample_ratio") == {}
    assert scrape.all("steelyard_run_loss") == {}
    assert server.server._catalog.run("r").ask(lambda state: state.built_drawer) is None
