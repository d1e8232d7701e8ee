"""Rules that are installed where the server runs and nowhere else: trainers weigh by them without knowing them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import steelyard
from steelyard.testing import ServerProcess

WAIT = 60.0
PACKAGE = """
from dataclasses import dataclass
from typing import ClassVar
import numpy as np
from steelyard.weigh import Rule, Source

class Mine(Rule):
    source: ClassVar[Source] = Source("nobody", "nowhere")
    never_reported: ClassVar[str] = "The same."
    reads: ClassVar[str] = "losses"

@dataclass(frozen=True)
class Ramp(Mine):
    "Weighs by the step alone."
    method: ClassVar[str] = "ramp"
    reads: ClassVar[str] = "nothing"

    def weights(self, losses, context):
        return np.full(losses.shape, context.step / 4, np.float32)

@dataclass(frozen=True)
class Above(Mine):
    "The losses above the mean of the batch."
    method: ClassVar[str] = "above"

    def weights(self, losses, context):
        return np.where(losses > losses.mean(), 2, 0).astype(np.float32)

@dataclass(frozen=True)
class Total(Mine):
    "The total of all losses before. Fails at a step."
    method: ClassVar[str] = "total"
    fails_at: int = -1
    "The step."

    @property
    def remembers(self):
        return True

    def weights(self, losses, context):
        if context.step == self.fails_at:
            raise KeyError("planted")
        total = 0.0 if context.past is None else float(context.past["total"][0])
        return np.full(losses.shape, total, np.float32)

    def remember(self, losses, context):
        total = 0.0 if context.past is None else float(context.past["total"][0])
        return {"total": np.array([total + float(losses.sum())])}

@dataclass(frozen=True)
class Wrong(Mine):
    "Gives what is no weight."
    method: ClassVar[str] = "wrong"
    reads: ClassVar[str] = "nothing"
    kind: str = "nan"
    "Which."

    def weights(self, losses, context):
        return {"nan": losses * np.nan, "negative": -losses, "short": losses[1:], "text": "none"}[self.kind]
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[steelyard.Client]:
    """Of a server that has the package, which this process lacks."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (folder / "mine.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    names = {"ramp": "Ramp", "above": "Above", "total": "Total", "wrong": "Wrong"}
    lines = [f"{name} = mine:{kind}" for name, kind in names.items()]
    (info / "entry_points.txt").write_text("\n".join(["[steelyard.methods]", *lines, ""]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder), prepend=":")
        with ServerProcess(tmp_path_factory.mktemp("server")) as process, process.client() as client:
            client.create_dataset("d", 40)
            yield client


def losses_of(batch: steelyard.Batch) -> np.ndarray:
    return np.asarray(batch.ids % 7 + batch.step, np.float32)


def train(session: steelyard.Session, steps: int) -> list[np.ndarray]:
    told = []
    for _ in range(steps):
        batch = session.next(WAIT)
        told.append(session.report(batch, losses_of(batch), timeout=WAIT))
    return told


def test_a_trainer_without_the_rule_weighs_by_it(client: steelyard.Client, tmp_path: Path) -> None:
    run = client.create_run("ramp", dataset="d", batch_size=8, weigh={"method": "ramp"})
    with run.join() as session:
        assert [weights.tolist() for weights in train(session, 3)] == [[0.0] * 8, [0.25] * 8, [0.5] * 8]
        with pytest.raises(steelyard.InvalidArgument, match="weighs by .*'ramp'.*which this version"):
            _ = session.rule
    run = client.create_run("above", dataset="d", batch_size=8, weigh={"method": "above"})
    with run.join() as session:
        for step, weights in enumerate(train(session, 3)):
            losses = losses_of(run.batch(step))
            np.testing.assert_array_equal(weights, np.where(losses > losses.mean(), 2, 0))
    run = client.create_run("total", dataset="d", batch_size=8, weigh={"method": "total"})
    with run.join() as session:
        told = [float(weights[0]) for weights in train(session, 4)]
    sums = [float(losses_of(run.batch(step)).sum()) for step in range(4)]
    assert told == [0.0, *np.cumsum(sums[:3]).tolist()]


def test_a_rule_that_the_policy_leaves_to_the_trainer_must_be_known_there(client: steelyard.Client) -> None:
    weigher = {"method": "above", "where": "client"}
    run = client.create_run("here", dataset="d", batch_size=8, weigh=weigher)
    with pytest.raises(steelyard.InvalidArgument, match="which this version of the client cannot"):
        run.join(timeout=WAIT)


def test_a_rule_that_fails_says_so_to_who_waits_and_the_run_goes_on_without_it(
    client: steelyard.Client,
) -> None:
    weigher = {"method": "total", "fails_at": 2}
    run = client.create_run("fails", dataset="d", batch_size=8, weigh=weigher)
    why = r"weigh rule 'total' failed at step 2: KeyError: 'planted'"
    session = run.join()
    train(session, 2)
    with pytest.raises(steelyard.FailedPrecondition, match=why):
        train(session, 1)
    session.close()
    with pytest.raises(steelyard.FailedPrecondition, match=why):
        run.batch(2)
    with run.join(attempt="on") as session:
        # The failed step is left out of what is remembered, and all else is in it.
        told = float(train(session, 1)[0][0])
    assert told == sum(float(losses_of(run.batch(step)).sum()) for step in range(2))
    run.change_policy(weigh={"method": "uniform"})
    with run.join(start_step=2, attempt="again") as session:
        assert train(session, 2)[0].tolist() == [1.0] * 8


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("nan", "expected 8 finite weights of at least 0; got nan at position 0"),
        ("negative", "got -1.0 at position 0"),
        ("short", r"got shape \(7,\)"),
        ("text", "ValueError: could not convert"),
    ],
)
def test_what_is_no_weight_reaches_no_trainer(client: steelyard.Client, kind: str, why: str) -> None:
    run = client.create_run(kind, dataset="d", batch_size=8, weigh={"method": "wrong", "kind": kind})
    session = run.join(timeout=WAIT)
    with pytest.raises(
        steelyard.FailedPrecondition, match=f"'wrong' failed at step 0: ValueError: .*{why}|{why}"
    ):
        session.next()
    session.close()
    assert run.stats().next_step >= 1
