"""Weights that only the server makes: from columns, the steps before, lots, and what the draw gives.

Each is held against the same rule applied offline to the run's events, in the order of the steps.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import steelyard
from steelyard import events, weigh
from steelyard.testing import ServerProcess

SIZE = 60
WAIT = 60.0
SCORED = {"method": "scored", "score": "last_loss", "floor": 0.2, "sampling": "independent"}
POLICIES: dict[str, dict[str, Any]] = {
    "selective_backprop": {"weigh": {"method": "selective_backprop", "beta": 1.0, "warmup_steps": 2}},
    "reducr": {"weigh": {"method": "reducr", "keep": 0.5, "eta": 0.5}},
    "rho_loss": {"weigh": {"method": "rho_loss", "keep": 0.5}},
    "mask_top": {"weigh": {"method": "mask_top", "share": 0.3, "pool": 2.0, "signal": "salience"}},
    # Without a word on how to weigh: what the draw gives is handed on.
    "infobatch": {"draw": {"method": "infobatch"}, "staleness": 1},
    "linear_curriculum": {"weigh": {"method": "linear_curriculum", "end_step": 15}},
    "run_max": {
        "draw": SCORED,
        "staleness": 1,
        "weigh": {"method": "importance", "beta": 0.6, "normalise": "run_max"},
    },
}
numbers = itertools.count()
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def loss(batch: steelyard.Batch, salt: int = 0) -> npt.NDArray[np.float32]:
    return np.asarray(0.1 + (batch.ids * 37 + batch.step * 11 + salt) % 101 / 40, np.float32)


def salience(batch: steelyard.Batch) -> dict[str, npt.NDArray[np.float32]]:
    return {"salience": np.asarray((batch.ids * 13 + batch.step) % 29, np.float32)}


def columns() -> dict[str, npt.NDArray[np.float32]]:
    ids = np.arange(SIZE)
    reference = np.asarray((ids * 7) % 23 / 11, np.float32)
    reference[::9] = np.nan
    return {
        "reference": reference,
        "reference_0": np.asarray(ids % 5 / 3, np.float32),
        "reference_1": np.asarray(ids % 7 / 4, np.float32),
        "ease": np.asarray(ids / SIZE, np.float32),
        "group": np.asarray(ids % 3, np.float32),
    }


def run_of(client: steelyard.Client, **options: Any) -> steelyard.Run:
    name = f"w{next(numbers)}"
    client.create_dataset("weighed", SIZE, exist_ok=True)
    for column, values in columns().items():
        client.set_column("weighed", column, values)
    return client.create_run(name, dataset="weighed", batch_size=9, seed=3, **options)


def offline(run: steelyard.Run, first: int = 0) -> dict[int, npt.NDArray[np.float32]]:
    """The weights of every step from `first` on whose reports were complete or closed, from the events alone."""
    weights: dict[int, npt.NDArray[np.float32]] = {}
    seed, config, past, order = 0, {}, None, first
    known = {name: np.full(SIZE, np.nan, np.float32) for name in columns()}
    drawn: dict[int, tuple[events.BatchDrawn, dict[str, Any], dict[str, Any]]] = {}
    reported: dict[int, npt.NDArray[np.bool_]] = {}
    signals: dict[int, dict[str, npt.NDArray[np.float32]]] = {}
    closed: set[int] = set()
    for event in run.events():
        match event:
            case events.RunCreated():
                seed, config = event.spec.seed, dict(event.spec.weigh)
            case events.PolicyChanged():
                config = dict(event.weigh)
            case events.ColumnSet() if event.column in known:
                known[event.column][event.ids] = event.values
            case events.BatchDrawn():
                at = {name: values[event.ids] for name, values in known.items()}
                drawn[event.step] = event, config, at
                reported[event.step], signals[event.step] = np.zeros(9, np.bool_), {}
            case events.LossesReported():
                part = slice(event.offset, event.offset + len(event.signals["loss"]))
                for name, values in event.signals.items():
                    signals[event.step].setdefault(name, np.full(9, np.nan, np.float32))[part] = values
                reported[event.step][part] = True
                if reported[event.step].all():
                    closed.add(event.step)
            case events.StepClosed():
                closed.add(event.step)
            case events.AttemptBegan():
                closed |= {step for step in drawn if step < event.start_step}
        closed |= {step for step in drawn if step < max(drawn) - 256}
        while order in drawn and (order in closed or weigh.parse(drawn[order][1]).reads != "losses"):
            served, rule, at = drawn[order]
            if order > first and rule != drawn[order - 1][1]:
                past = None
            by_losses = weigh.parse(rule).reads == "losses"
            context: dict[str, Any] = {
                "step": order,
                "probability": served.probability,
                "examples": round(1 / served.uniform_probability),
                "mask": reported[order] if by_losses else None,
                "columns": {**at, **signals[order]} if by_losses else at,
                "weight": served.weight,
                "past": past,
                "seed": seed,
            }
            losses = signals[order].get("loss", np.ones(9, np.float32))
            weights[order] = weigh.weights(losses, rule, **context)
            if reported[order].any() or not by_losses:
                past = weigh.remember(rule, losses, **context)
            order += 1
    return weights


def train(
    run: steelyard.Run,
    steps: int,
    *,
    start: int | None = None,
    world_size: int = 2,
    salt: int = 0,
    process: ServerProcess | None = None,
    stop: str = "kill",
) -> dict[int, npt.NDArray[np.float32]]:
    """What the ranks are told that each step weighs, put together. They report some steps in any order; halfway, with
    reports and answers under way, `process` is stopped and started again."""
    attempt, order = f"t{next(numbers)}", np.random.default_rng(5)
    ranks = [
        run.join(rank, world_size, start, attempt, timeout=WAIT, reconnect_timeout=WAIT)
        for rank in range(world_size)
    ]
    ahead = 1 if run.info().staleness == 1 else 3
    told: dict[int, npt.NDArray[np.float32]] = {}
    for chunk in range(0, steps, ahead):
        batches = [rank.next(WAIT) for _ in range(ahead) for rank in ranks]
        answers: dict[tuple[int, int], Any] = {}
        for at in order.permutation(len(batches)):
            batch = batches[at]
            rank = ranks[batch.rank]
            answers[batch.step, batch.rank] = rank.report_async(
                batch, loss(batch, salt), signals=salience(batch)
            )
        if process is not None and chunk >= steps // 2:
            {"kill": process.kill, "terminate": process.terminate}[stop]()
            process.start()
            process = None
        for step, rank in sorted(answers):
            part = answers[step, rank].result(WAIT)
            told[step] = np.concatenate([told.get(step, np.zeros(0, np.float32)), part])
    for session in ranks:
        session.leave(WAIT)
    return told


def same(told: dict[int, Any], wanted: dict[int, Any], steps: Sequence[int]) -> None:
    for step in steps:
        np.testing.assert_array_equal(told[step], wanted[step], err_msg=str(step))


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture
def client(process: ServerProcess) -> Iterator[steelyard.Client]:
    with process.client() as client:
        yield client


@every_policy
def test_trainers_are_told_the_weights_of_the_rule_whatever_is_killed_meanwhile(
    process: ServerProcess, client: steelyard.Client, policy: dict[str, Any]
) -> None:
    run = run_of(client, **policy)
    told = train(run, 12, process=process)
    wanted = offline(run)
    assert sorted(told) == list(range(12))
    same(told, wanted, range(12))
    assert len({weights.tobytes() for weights in told.values()}) > 3
    for step in range(12):
        np.testing.assert_array_equal(run.batch(step).weight, told[step])


@pytest.mark.parametrize("name", ["selective_backprop", "mask_top", "linear_curriculum"])
def test_a_checkpoint_keeps_what_a_rule_remembers(
    process: ServerProcess, client: steelyard.Client, name: str
) -> None:
    """A server that is asked to stop makes one, and replays nothing when it starts."""
    run = run_of(client, **POLICIES[name])
    told = train(run, 12, process=process, stop="terminate")
    same(told, offline(run), range(12))


@every_policy
def test_going_back_takes_back_what_a_rule_remembers(
    client: steelyard.Client, policy: dict[str, Any]
) -> None:
    run = run_of(client, **policy)
    first = train(run, 12)
    run.rewind(6)
    again = train(run, 6, start=6)
    same(again, first, range(6, 12))
    run.rewind(6)
    other = train(run, 6, start=6, salt=17)
    same(other, offline(run), range(6, 12))
    same({step: run.batch(step).weight for step in range(6)}, first, range(6))


@every_policy
def test_a_fork_goes_on_from_what_its_parent_remembered(
    client: steelyard.Client, policy: dict[str, Any]
) -> None:
    run = run_of(client, **policy)
    told = train(run, 12)
    fork = run.fork(f"w{next(numbers)}", step=6)
    same(train(fork, 6), told, range(6, 12))


def test_a_rule_that_takes_over_remembers_nothing_of_the_one_before(client: steelyard.Client) -> None:
    policy = POLICIES["selective_backprop"]
    run = run_of(client, **policy)
    unbroken = train(run, 12)
    between = run.fork(f"w{next(numbers)}", step=6, weigh={"method": "uniform"})
    train(between, 3)
    again = between.fork(f"w{next(numbers)}", step=9, weigh=policy["weigh"])
    told = train(again, 3)
    same(told, offline(again, 9), range(9, 12))
    assert any((told[step] != unbroken[step]).any() for step in range(9, 12))


def test_steps_that_have_left_memory_are_weighed_again_as_they_were(client: steelyard.Client) -> None:
    for name in ("selective_backprop", "linear_curriculum", "mask_top"):
        run = run_of(client, **POLICIES[name])
        told = train(run, 9, world_size=1)
        # What a column becomes later is no matter: the batches were weighed by what it was.
        client.set_column("weighed", "ease", np.ones(SIZE, np.float32))
        with run.join(attempt="on") as session:
            for _ in range(290):
                batch = session.next(WAIT)
                session.report_raw(batch, loss(batch), signals=salience(batch))
        for step in (0, 5, 8):
            np.testing.assert_array_equal(run.batch(step).weight, told[step], err_msg=f"{name}, {step}")


def test_weights_of_the_steps_before_are_waited_for_and_named(client: steelyard.Client) -> None:
    run = run_of(client, **POLICIES["selective_backprop"])
    with run.join(0, 1, timeout=WAIT) as session:
        first, second = session.next(), session.next()
        waits = session.report_async(second, loss(second))
        with pytest.raises(
            steelyard.StalenessError, match="weights of step 1 wait for step 0, .*in their order"
        ):
            waits.result()
        before = session.report_async(first, loss(first))
        assert waits.result().shape == before.result().shape == (9,)
    same({1: waits.result()}, offline(run), [1])


def test_a_step_that_another_rank_owes_holds_up_the_later_ones_until_it_is_closed(
    client: steelyard.Client,
) -> None:
    run = run_of(client, **POLICIES["selective_backprop"])
    one, other = (run.join(rank, 2, None, "a", timeout=WAIT) for rank in range(2))
    batches = [[rank.next() for _ in range(2)] for rank in (one, other)]
    answers = [one.report_async(batch, loss(batch)) for batch in batches[0]]
    late = other.report_async(batches[1][1], loss(batches[1][1]))
    with pytest.raises(steelyard.DeadlineExceeded, match="of every step up to it .*in their order"):
        answers[1].result(0.2)
    run.close_step(0)
    told = np.concatenate([answers[1].result(WAIT), late.result(WAIT)])
    wanted = offline(run)
    np.testing.assert_array_equal(told, wanted[1])
    np.testing.assert_array_equal(answers[0].result(WAIT), wanted[0][:5])
    for session in (one, other):
        session.close()


def test_a_step_whose_rank_is_gone_is_closed_in_time_for_the_later_ones(client: steelyard.Client) -> None:
    run = run_of(client, report_timeout=0.3, **POLICIES["selective_backprop"])
    one, other = (run.join(rank, 2, None, "a", timeout=WAIT) for rank in range(2))
    batches = [[rank.next() for _ in range(2)] for rank in (one, other)]
    other.report_async(batches[1][1], loss(batches[1][1]))
    other.flush()
    answers = [one.report_async(batch, loss(batch)) for batch in batches[0]]
    other.close()
    told = answers[1].result(WAIT)
    np.testing.assert_array_equal(told, offline(run)[1][:5])
    one.close()


@pytest.mark.parametrize("method", ["linupper", "selective_backprop"])
def test_who_waits_for_a_step_that_leaves_the_report_window_gets_what_its_reports_weigh(
    client: steelyard.Client, method: str
) -> None:
    run = run_of(client, weigh={"method": method, "where": "server"}, staleness=1)
    one, _ = (run.join(rank, 2, attempt="a", timeout=WAIT, prefetch=1) for rank in range(2))
    pending = []
    for _ in range(260):
        batch = one.next(WAIT)
        pending.append(one.report_async(batch, loss(batch)))
    told = [each.result(WAIT) for each in pending[:2]]
    expected = offline(run)
    for step in range(2):
        np.testing.assert_array_equal(told[step], expected[step][:5])
    assert not pending[-1].done


# -- what is missing ---------------------------------------------------------------------------------------------------


def test_a_signal_that_never_comes_is_told_once_and_how_to_report_it(client: steelyard.Client) -> None:
    policy = {"draw": {"method": "scored", "score": "last_el2n", "floor": 0.5, "sampling": "independent"}}
    run = run_of(client, **policy)
    assert [text.partition(",")[0] for text in run.stats().missing_inputs] == [
        "draw 'scored' reads the signal 'el2n'"
    ]
    with warnings.catch_warnings(record=True) as heard, run.join(prefetch=1) as session:
        warnings.simplefilter("always")
        for step in range(40):
            batch = session.next(WAIT)
            session.report(batch, loss(batch))
            session.flush()
            assert step >= 15 or not heard, step
    (warning,) = heard
    assert warning.category is steelyard.MissingSignalWarning
    assert warning.filename == __file__
    text = str(warning.message)
    for part in (
        run.name, "draw 'scored' reads the signal 'el2n', through 'last_el2n'",
        "session.report(batch, losses, signals={'el2n': values})", "BatchSampler.update", "run.observe",
    ):  # fmt: skip
        assert part in text, part
    run.observe([1, 2], {"el2n": [0.5, np.nan]})
    assert run.stats().missing_inputs == ()


def test_nobody_is_warned_of_a_signal_that_comes(client: steelyard.Client) -> None:
    run = run_of(client, **POLICIES["mask_top"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(run, 24)
    assert run.stats().missing_inputs == ()


def test_a_misspelt_signal_is_told_when_the_run_is_made_and_when_it_is_joined(
    client: steelyard.Client,
) -> None:
    policy = {"draw": {"method": "scored", "score": "last_los", "floor": 0.5, "sampling": "independent"}}
    with pytest.warns(steelyard.MissingSignalWarning, match=r"signal 'los'.*did you mean 'loss'\?"):
        run = run_of(client, **policy)
    (text,) = run.stats().missing_inputs
    assert "did you mean 'loss'?" in text
    # Once a name in a process: the trainer's would warn by itself.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(run, 20, world_size=1)


@pytest.mark.parametrize("signal", ["losses", "loss_a"])
def test_a_name_that_continues_that_of_the_loss_is_no_misspelt_one(
    client: steelyard.Client, signal: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = run_of(client, draw={"method": "scored", "score": f"last_{signal}"})
        with run.join() as session:
            for _ in range(20):
                batch = session.next(WAIT)
                session.report(batch, loss(batch), signals={signal: loss(batch)})


def test_a_misspelt_column_is_refused_with_the_nearest_name(client: steelyard.Client) -> None:
    with pytest.raises(steelyard.InvalidArgument, match=r"'referenc'.*did you mean 'reference'\?"):
        run_of(client, weigh={"method": "rho_loss", "reference": "referenc"})
    with pytest.raises(steelyard.InvalidArgument, match=r"did you mean 'last_loss'\?"):
        run_of(client, draw={"method": "scored", "score": "lst_loss"})


def test_a_column_without_any_value_is_in_the_stats(client: steelyard.Client) -> None:
    client.create_dataset("empty", SIZE)
    client.set_column("empty", "reference", np.full(SIZE, np.nan, np.float32))
    run = client.create_run("empty", dataset="empty", batch_size=9, weigh={"method": "rho_loss"})
    assert run.stats().missing_inputs == (
        "weigh 'rho_loss' reads the column 'reference', which has no value yet",
    )
    client.set_column("empty", "reference", [0.5], ids=[3])
    assert run.stats().missing_inputs == ()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            {"weigh": {"method": "rho_loss", "where": "client"}},
            "reads 'reference', which only the server has",
        ),
        (
            {"weigh": {"method": "selective_backprop", "where": "client"}},
            "remembers the batches before, which only the server saw",
        ),
        (
            {"weigh": {"method": "rho_loss", "reference": "last_loss"}},
            "'last_loss' is the name of one that is folded",
        ),
        ({"weigh": {"method": "rho_loss", "reference": "none"}}, "expected 'none' to be a column of dataset"),
        ({"draw": SCORED, "weigh": {"method": "rho_loss"}}, "a high loss would count twice"),
        (
            {"draw": {**SCORED, "score": "ease"}, "weigh": {"method": "linear_curriculum"}},
            "both read the column 'ease', which would count twice",
        ),
        (
            {"draw": {**SCORED, "score": "mean_salience"}, "weigh": POLICIES["mask_top"]["weigh"]},
            "both read the signal 'salience', which would count twice",
        ),
    ],
)
def test_a_policy_that_cannot_weigh_is_refused_with_the_reason(
    client: steelyard.Client, policy: dict[str, Any], message: str
) -> None:
    with pytest.raises(steelyard.InvalidArgument, match=message):
        run_of(client, **policy)
