"""Bad input over the bare protocol: each with its status and message, and the run unharmed."""

import math
import re

import grpc
import numpy as np
import pytest

from steelyard import wire
from steelyard.v1 import arrays_pb2, datasets_pb2, runs_pb2, trainer_pb2

SCORED = {"method": "scored", "score": "last_loss", "transform": "power", "alpha": 1.0, "floor": 0.1}


def loss(ids, step):
    return 1.0 + ids % 7 + step / 8


def code_name(number):
    return next(code.name for code in grpc.StatusCode if code.value[0] == number)


def signal(values, name="loss", dtype=np.float32):
    return arrays_pb2.Signal(name=name, values=wire.pack(np.asarray(values, dtype), dtype))


@pytest.fixture
def runs(client):
    """Two runs of one specification: what is done to one must not show beside the other."""
    client.create_dataset("d", 40, fingerprint="v1")
    common = {"dataset": "d", "batch_size": 8, "seed": 5, "staleness": 0, "draw": SCORED}
    return client.create_run("calm", **common), client.create_run("rough", **common)


@pytest.fixture
def harm(runs, raw, eventually):
    """A trainer of `rough`, and what compares it with `calm` after the test has done its worst.

    Both have trained three steps before; the comparison trains three more, of which `done` are done already.
    """
    calm, rough = runs
    trainers = [raw.trainer(), raw.trainer()]
    for trainer, run in zip(trainers, runs, strict=True):
        trainer.join(run.name)
    before = [trainer.train(3, loss) for trainer in trainers]
    assert before[0] == before[1]

    def compare(*, rejoin=False, done=()):
        trainer = trainers[1]
        if rejoin:
            trainer = raw.trainer()
            trainer.join("rough")
        assert trainers[0].train(3, loss) == [*done, *trainer.train(3 - len(done), loss)]
        # The credit behind the last report may still be on its way: what was reported is folded with the next draw.
        eventually(lambda: calm.info().next_step == rough.info().next_step)
        np.testing.assert_array_equal(calm.column("last_loss"), rough.column("last_loss"))
        assert calm.history(range(40)) == rough.history(range(40))

    return trainers[1], compare


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda b: {"digest": b.digest ^ 1}, "FAILED_PRECONDITION", "{digest:016x}.*{wrong:016x}"),
        (lambda b: {"step": 99}, "FAILED_PRECONDITION", "below 4, the next to draw; got step 99"),
        (lambda b: {"step": 0}, "FAILED_PRECONDITION", "digest"),
        (
            lambda b: {"signals": [signal(np.ones(9))]},
            "INVALID_ARGUMENT",
            "batch of 8; got 9 values from position 0",
        ),
        (lambda b: {"offset": 4}, "INVALID_ARGUMENT", "got 8 values from position 4"),
        (lambda b: {"offset": 2**32 - 1}, "INVALID_ARGUMENT", "from position 4294967295"),
        (lambda b: {"signals": []}, "INVALID_ARGUMENT", "at least one signal"),
        (lambda b: {"signals": [signal([])]}, "INVALID_ARGUMENT", "above 0"),
        (lambda b: {"signals": [signal(np.ones(8), "el2n")]}, "INVALID_ARGUMENT", "'loss'.*el2n"),
        (
            lambda b: {"signals": [signal(np.ones(8)), signal(np.ones(7), "el2n")]},
            "INVALID_ARGUMENT",
            "one length",
        ),
        (lambda b: {"signals": [signal([1] * 7 + [-0.5])]}, "INVALID_ARGUMENT", "-0.5"),
    ],
)
def test_a_bad_report_is_refused_and_the_stream_goes_on(harm, change, code, message):
    trainer, compare = harm
    batch = trainer.expect("batch")
    trainer.report(batch, np.ones(8), **change(batch))
    refusal = trainer.expect("refusal")
    expected = message.format(digest=batch.digest, wrong=batch.digest ^ 1)
    assert code_name(refusal.code) == code, refusal
    assert re.search(expected, refusal.message), refusal.message
    ids = wire.unpack_ids(batch.ids)
    trainer.report(batch, loss(ids, batch.step))
    trainer.expect("acknowledgement")
    trainer.send(credit=trainer_pb2.Credit(batches=1))
    compare(done=[ids.tolist()])


def test_another_value_for_a_reported_position_is_refused_and_the_same_one_is_a_duplicate(harm):
    trainer, compare = harm
    batch = trainer.expect("batch")
    ids = wire.unpack_ids(batch.ids)
    dispositions = []
    for _ in range(2):
        trainer.report(batch, loss(ids, batch.step))
        dispositions.append(trainer.expect("acknowledgement").disposition)
    assert dispositions == [trainer_pb2.DISPOSITION_APPLIED, trainer_pb2.DISPOSITION_DUPLICATE]
    trainer.report(batch, loss(ids, batch.step) + 1)
    refusal = trainer.expect("refusal")
    assert code_name(refusal.code) == "ALREADY_EXISTS"
    assert "reported before with other values" in refusal.message
    trainer.send(credit=trainer_pb2.Credit(batches=1))
    compare(done=[ids.tolist()])


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"join": trainer_pb2.Join(run="rough")}, "Credit, Report or Leave after Join; got join"),
        ({"credit": trainer_pb2.Credit(batches=0)}, "at least 1 batch; got 0"),
        ({"credit": trainer_pb2.Credit(batches=2**32 - 1)}, "at most 256 batches"),
        (
            {"report": trainer_pb2.Report(step=3, signals=[signal(np.ones(8), dtype=np.float64)])},
            "FLOAT32|float32",
        ),
        (
            {
                "report": trainer_pb2.Report(
                    step=3,
                    signals=[
                        arrays_pb2.Signal(
                            name="loss",
                            values=arrays_pb2.Array(dtype=arrays_pb2.DTYPE_FLOAT32, count=8, data=b"1234567"),
                        )
                    ],
                )
            },
            "32 bytes|count",
        ),
        ({"report": trainer_pb2.Report(step=3, signals=[signal(np.ones(8), "")])}, "1..64 characters"),
        ({"report": trainer_pb2.Report(step=3, signals=[signal(np.ones(8))] * 2)}, "different names"),
    ],
)
def test_a_malformed_message_ends_the_stream_and_harms_nothing(harm, message, said):
    trainer, compare = harm
    trainer.send(**message)
    ended = trainer.end()
    assert ended.code == "INVALID_ARGUMENT"
    assert re.search(said, ended.message), ended.message
    compare(rejoin=True)


def test_a_message_over_the_size_limit_is_resource_exhausted(harm, runs, raw, refused):
    trainer, compare = harm
    trainer.send(report=trainer_pb2.Report(step=3, signals=[signal(np.ones(5 << 20))]))
    assert trainer.end().code == "RESOURCE_EXHAUSTED"
    ids = wire.pack_ids(np.zeros(3 << 20, np.int64), 1 << 40)
    with pytest.raises(refused) as error:
        raw.call(raw.runs.GetHistory, runs_pb2.GetHistoryRequest(name="rough", ids=ids))
    assert error.value.code == "RESOURCE_EXHAUSTED"
    compare(rejoin=True)


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        ({"run": "nobody"}, "NOT_FOUND", "no run 'nobody'"),
        ({"run": ""}, "NOT_FOUND", "no run ''"),
        ({"rank": 1}, "INVALID_ARGUMENT", "rank 1 of world_size 1"),
        ({"world_size": 0}, "INVALID_ARGUMENT", "world_size 0"),
        ({"attempt": ""}, "INVALID_ARGUMENT", "attempt"),
        ({"session": ""}, "INVALID_ARGUMENT", "session"),
        ({"session": "x" * 257}, "INVALID_ARGUMENT", "1..256"),
        ({"credit": 257}, "INVALID_ARGUMENT", "256.*257"),
        ({"fingerprint": "v2"}, "FAILED_PRECONDITION", "'v1'.*'v2'"),
        ({"session": "other"}, "ALREADY_EXISTS", "rank 0 .*'s0'"),
        ({"world_size": 2, "rank": 1}, "FAILED_PRECONDITION", "world_size 1.*joined it with 2"),
        ({"start_step": 2}, "FAILED_PRECONDITION", "began at step 0.*asks for step 2"),
        ({"resume_step": 5}, "FAILED_PRECONDITION", "resume_step between 0.*and 4.*got 5"),
        ({"attempt": "b", "start_step": 5}, "FAILED_PRECONDITION", "between 0.*and 4.*got 5"),
    ],
)
def test_a_join_that_does_not_fit_is_refused_and_harms_nothing(harm, raw, fields, code, said):
    _, compare = harm
    other = raw.trainer()
    join = {
        "run": "rough",
        "rank": 0,
        "world_size": 1,
        "attempt": "a",
        "session": "s0",
        "credit": 1,
        **fields,
    }
    other.send(join=trainer_pb2.Join(**join))
    ended = other.end()
    assert ended.code == code
    assert re.search(said, ended.message), ended.message
    compare()


def test_the_first_message_must_be_a_join(raw, harm):
    trainer = raw.trainer()
    trainer.send(credit=trainer_pb2.Credit(batches=1))
    ended = trainer.end()
    assert (ended.code, "Join as the first message; got credit" in ended.message) == (
        "INVALID_ARGUMENT",
        True,
    )


def ids(*values):
    return wire.pack(np.array(values, np.int64))


CALLS = [
    *(
        (
            "datasets",
            "SetColumn",
            datasets_pb2.SetColumnRequest(
                name="d", column="q", start=start, values=wire.pack(np.ones(2), np.float32)
            ),
            "INVALID_ARGUMENT",
            f"0..39; got {max(start, 40)}",
        )
        for start in (39, 40, 2**63 - 1, 2**63, 2**64 - 1)
    ),
    ("runs", "GetRun", runs_pb2.GetRunRequest(name="x"), "NOT_FOUND", "no run 'x'"),
    ("runs", "GetStats", runs_pb2.GetStatsRequest(name=""), "NOT_FOUND", "no run ''"),
    (
        "runs",
        "GetHistory",
        runs_pb2.GetHistoryRequest(name="rough", ids=ids(1, 40)),
        "INVALID_ARGUMENT",
        "40 at",
    ),
    ("runs", "GetHistory", runs_pb2.GetHistoryRequest(name="rough", ids=ids(-1)), "INVALID_ARGUMENT", "-1"),
    (
        "runs",
        "GetHistory",
        runs_pb2.GetHistoryRequest(name="rough", ids=signal([1.0]).values),
        "INVALID_ARGUMENT",
        "ids",
    ),
    (
        "runs",
        "GetColumn",
        runs_pb2.GetColumnRequest(name="rough", column="last_los"),
        "NOT_FOUND",
        "last_loss",
    ),
    (
        "runs",
        "GetColumn",
        runs_pb2.GetColumnRequest(name="rough", column="last_loss", ids=ids(40)),
        "INVALID_ARGUMENT",
        "0..39",
    ),
    (
        "runs",
        "Observe",
        runs_pb2.ObserveRequest(name="rough", ids=ids(1, 40), signals=[signal([1, 1])]),
        "INVALID_ARGUMENT",
        "40 at position 1",
    ),
    (
        "runs",
        "Observe",
        runs_pb2.ObserveRequest(name="rough", ids=ids(1, 2), signals=[signal([1])]),
        "INVALID_ARGUMENT",
        "2 ids.*got 1",
    ),
    (
        "runs",
        "Observe",
        runs_pb2.ObserveRequest(name="rough", ids=ids(1, 2), signals=[signal([1]), signal([1], "ids")]),
        "INVALID_ARGUMENT",
        "2 ids.*got 1",
    ),
    (
        "runs",
        "Observe",
        runs_pb2.ObserveRequest(name="rough", ids=ids(1), signals=[signal([-1])]),
        "INVALID_ARGUMENT",
        "-1",
    ),
    (
        "runs",
        "CloseStep",
        runs_pb2.CloseStepRequest(name="rough", step=4),
        "FAILED_PRECONDITION",
        "next step to draw is 4",
    ),
    (
        "runs",
        "CreateBookmark",
        runs_pb2.CreateBookmarkRequest(name="rough", bookmark=""),
        "INVALID_ARGUMENT",
        "1..128",
    ),
    (
        "runs",
        "CreateBookmark",
        runs_pb2.CreateBookmarkRequest(name="rough", bookmark="b", step=9),
        "FAILED_PRECONDITION",
        "between 0.*and 4.*got 9",
    ),
    ("runs", "Rewind", runs_pb2.RewindRequest(name="rough", step=9), "FAILED_PRECONDITION", "got 9"),
    ("runs", "Rewind", runs_pb2.RewindRequest(name="rough", bookmark="x"), "NOT_FOUND", "no bookmark 'x'"),
    ("runs", "Rewind", runs_pb2.RewindRequest(name="rough"), "INVALID_ARGUMENT", "step or a bookmark"),
    (
        "runs",
        "Fork",
        runs_pb2.ForkRequest(name="rough", new_name="calm", step=1),
        "ALREADY_EXISTS",
        "'calm'",
    ),
    (
        "runs",
        "Fork",
        runs_pb2.ForkRequest(name="rough", new_name="a b", step=1),
        "INVALID_ARGUMENT",
        "'a b'",
    ),
    (
        "runs",
        "Fork",
        runs_pb2.ForkRequest(name="nobody", new_name="n", step=1),
        "NOT_FOUND",
        "no run 'nobody'",
    ),
    ("runs", "GetBatch", runs_pb2.GetBatchRequest(name="rough", step=4), "NOT_FOUND", "0..3"),
    ("runs", "DeleteRun", runs_pb2.DeleteRunRequest(name="x"), "NOT_FOUND", "no run 'x'"),
    ("datasets", "GetDataset", datasets_pb2.GetDatasetRequest(name="x"), "NOT_FOUND", "no dataset 'x'"),
    (
        "datasets",
        "CreateDataset",
        datasets_pb2.CreateDatasetRequest(name="", size=4),
        "INVALID_ARGUMENT",
        "1..128",
    ),
    (
        "datasets",
        "CreateDataset",
        datasets_pb2.CreateDatasetRequest(name="line\n", size=4),
        "INVALID_ARGUMENT",
        "1..128",
    ),
    (
        "datasets",
        "CreateDataset",
        datasets_pb2.CreateDatasetRequest(name="e", size=2**31),
        "INVALID_ARGUMENT",
        "2147483647",
    ),
    (
        "datasets",
        "RetireIds",
        datasets_pb2.RetireIdsRequest(name="d", ids=ids(3, 40)),
        "INVALID_ARGUMENT",
        "40 at position 1",
    ),
    (
        "datasets",
        "RetireIds",
        datasets_pb2.RetireIdsRequest(name="d", ids=ids(*range(40))),
        "INVALID_ARGUMENT",
        "leave an example",
    ),
    (
        "datasets",
        "SetColumn",
        datasets_pb2.SetColumnRequest(name="d", column="q", values=signal([1, 2]).values, start=39),
        "INVALID_ARGUMENT",
        "40",
    ),
    (
        "datasets",
        "SetColumn",
        datasets_pb2.SetColumnRequest(name="d", column="q", values=signal([1, 2]).values, ids=ids(1, 1)),
        "INVALID_ARGUMENT",
        "twice",
    ),
    (
        "datasets",
        "SetColumn",
        datasets_pb2.SetColumnRequest(name="d", column="q", values=signal([1]).values),
        "INVALID_ARGUMENT",
        "neither",
    ),
    (
        "datasets",
        "SetColumn",
        datasets_pb2.SetColumnRequest(name="d", column="last_loss", values=signal([1]).values, start=0),
        "INVALID_ARGUMENT",
        "derived",
    ),
    (
        "datasets",
        "SetColumn",
        datasets_pb2.SetColumnRequest(name="d", column="q", values=signal([np.inf]).values, start=0),
        "INVALID_ARGUMENT",
        "infinite",
    ),
    (
        "datasets",
        "DeleteDataset",
        datasets_pb2.DeleteDatasetRequest(name="d"),
        "FAILED_PRECONDITION",
        "2 runs",
    ),
]


def test_bad_calls_are_refused_and_harm_nothing(harm, raw, refused):
    trainer, compare = harm
    batch = trainer.expect("batch")
    for service, method, request, code, said in CALLS:
        with pytest.raises(refused) as error:
            raw.call(getattr(getattr(raw, service), method), request)
        assert error.value.code == code, (method, error.value)
        assert re.search(said, error.value.message), (method, error.value)
    served = wire.unpack_ids(batch.ids)
    trainer.report(batch, loss(served, batch.step))
    trainer.expect("acknowledgement")
    trainer.send(credit=trainer_pb2.Credit(batches=1))
    compare(done=[served.tolist()])


def spec(draw, weigh=None, **fields):
    message = runs_pb2.RunSpec(**{"name": "new", "dataset": "d", "batch_size": 8, **fields})
    message.policy.draw.update(draw)
    if weigh:
        message.policy.weigh.update(weigh)
    return message


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [
        (spec({"method": "shufle"}), "INVALID_ARGUMENT", "shuffle"),
        (spec({"method": "scored", "score": "last_loss", "alhpa": 1}), "INVALID_ARGUMENT", "alhpa.*alpha"),
        (spec({"method": "shuffle"}, {"method": "linuper", "r": 0.4}), "INVALID_ARGUMENT", "linupper"),
        (spec({"method": "shuffle"}, {"method": "linupper", "r": -1}), "INVALID_ARGUMENT", "r"),
        (spec({"method": "scored", "score": "qualty"}), "INVALID_ARGUMENT", "qualty"),
        (spec({"method": "shuffle"}, batch_size=0), "INVALID_ARGUMENT", "batch_size"),
        (
            spec({"method": "scored", "score": "last_loss", "sampling": "distinct"}, batch_size=41),
            "INVALID_ARGUMENT",
            "41",
        ),
        (spec({"method": "shuffle"}, name=""), "INVALID_ARGUMENT", "name"),
        (spec({"method": "shuffle"}, dataset="x"), "NOT_FOUND", "no dataset 'x'"),
        (spec({"method": "shuffle"}, report_timeout_seconds=-1), "INVALID_ARGUMENT", "report_timeout"),
        (spec({"method": "shuffle"}, history_size=256), "INVALID_ARGUMENT", "history_size"),
        (spec({"method": "shuffle"}, retain_steps=0), "INVALID_ARGUMENT", "retain_steps"),
        (
            spec({"method": "shuffle"}, staleness=runs_pb2.Staleness(steps=10**6)),
            "INVALID_ARGUMENT",
            "staleness",
        ),
        (spec({"method": "scored", "score": "x" * 100_000}), "INVALID_ARGUMENT", "draw|score|x"),
        (spec({"method": "scored", "alpha": math.inf}), "INVALID_ARGUMENT", "draw.alpha: .* finite.* inf"),
        (
            spec({"method": "shuffle"}, {"a": {"b": [1, math.nan]}}),
            "INVALID_ARGUMENT",
            r"weigh.a.b\[1\]: .*nan",
        ),
    ],
)
def test_a_specification_that_cannot_be_is_refused(runs, raw, refused, asked, code, said):
    with pytest.raises(refused) as error:
        raw.call(raw.runs.CreateRun, runs_pb2.CreateRunRequest(spec=asked))
    assert error.value.code == code
    assert re.search(said, error.value.message), error.value
    assert [run.spec.name for run in raw.runs.ListRuns(runs_pb2.ListRunsRequest()).runs] == ["calm", "rough"]


def test_a_policy_that_cannot_be_is_no_change(harm, raw, refused):
    _, compare = harm
    for fields in ({"score": "last_loss", "flor": "0.5"}, {"score": "q"}):
        request = runs_pb2.ChangePolicyRequest(name="rough")
        request.policy.draw.update({"method": "scored", **fields})
        with pytest.raises(refused) as error:
            raw.call(raw.runs.ChangePolicy, request)
        assert error.value.code == "INVALID_ARGUMENT"
    compare()


def test_non_finite_losses_are_kept_counted_and_left_out(client, runs, raw):
    trainer = raw.trainer()
    trainer.join("rough")
    batch = trainer.expect("batch")
    served = wire.unpack_ids(batch.ids)
    losses = np.arange(8, dtype=np.float32)
    losses[2], losses[5] = np.nan, np.inf
    last = {int(one): at for at, one in enumerate(served)}
    trainer.report(batch, losses)
    trainer.expect("acknowledgement")
    trainer.send(credit=trainer_pb2.Credit(batches=1))
    trainer.expect("batch")
    run = runs[1]
    assert run.stats().nonfinite_losses == 2
    kept = run.history([int(served[2]), int(served[5])])
    assert np.isnan([value for _, value in kept[0]]).any()
    assert np.isinf([value for _, value in kept[1]]).any()
    column = run.column("last_loss")
    for one, at in last.items():
        finite = [losses[k] for k in range(8) if served[k] == one and np.isfinite(losses[k])]
        assert (column[one] == finite[-1]) if finite else np.isnan(column[one]), (one, at)


def test_non_finite_losses_refuse_the_report_where_the_run_rejects_them(client, raw):
    client.create_dataset("d", 40)
    client.create_run("r", dataset="d", batch_size=8, on_nonfinite="reject")
    trainer = raw.trainer()
    trainer.join("r")
    batch = trainer.expect("batch")
    for bad in (np.nan, np.inf):
        trainer.report(batch, [1, 2, 3, bad, 5, 6, 7, 8])
        refusal = trainer.expect("refusal")
        assert code_name(refusal.code) == "INVALID_ARGUMENT"
        assert f"{bad} at position 3" in refusal.message
    trainer.report(batch, np.ones(8))
    trainer.expect("acknowledgement")
