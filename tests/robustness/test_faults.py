"""A short round of every fault that `make faults` plays for long; and that the frame they share finds what is wrong."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.robustness.faults import outcome, table
from tests.robustness.faults.model import Model
from tests.robustness.faults.outcome import Outcome
from tests.robustness.faults.registry import Bench, Broken, CannotBeTried, Fault, Round, faults
from tests.robustness.faults.scene import FIELDS, Scene
from tests.robustness.faults.told import Told


@pytest.mark.parametrize("one", [one for one in faults().values() if one.suite], ids=lambda one: one.name)
def test_a_round_of_each_fault_holds(one: Fault, tmp_path: Path) -> None:
    rounds = one.play(Bench(tmp_path, random.Random(1), short=True))
    try:
        next(rounds)
    except CannotBeTried as lacking:
        pytest.skip(str(lacking))
    finally:
        rounds.close()  # type: ignore[attr-defined]


def other_digest(scene: Scene) -> None:
    told = scene.trainer.told
    told[-1] = Told(told[-1].at, told[-1].step, told[-1].digest ^ 1, told[-1].acknowledged)
    scene.model.check_told(told)


def lost_report(scene: Scene) -> None:
    scene.model.check_state(scene.run, scene.trainer.told[-1].step + 2)


def other_loss(scene: Scene) -> None:
    held = scene.run.info().closed_steps
    scene.run.observe([0], {"loss": [123.0]})
    scene.model.check_state(scene.run, held)


PLANTED: dict[Callable[[Scene], None], str] = {
    other_digest: "was served as",
    lost_report: "are there",
    other_loss: "counted|another last loss",
}


def test_what_a_fault_could_do_is_found(tmp_path: Path) -> None:
    with Scene(Bench(tmp_path, random.Random(2), short=True)) as scene:
        scene.load()
        scene.settle()
        for planted, said in PLANTED.items():
            with pytest.raises(Broken, match=said):
                planted(scene)


def test_the_table_has_a_row_for_each_fault_and_counts_what_broke() -> None:
    name = next(iter(faults()))
    held = Outcome(name, "2026-01-01", "abc", 1.0, 210, {"kills": 2, "again, s": 1.5})
    broken = Outcome(name, "2026-01-02", "abd", 1.0, None, {}, "lost")
    made = table.made([held, held, broken])
    row = next(line for line in made.splitlines() if line.startswith(f"| {name} |"))
    assert "| 2, 1 broken | 210 [210..210] | 4 kills; again, s: 1.50 [1.50..1.50] | 2026-01-02 abd |" in row
    assert len(made.splitlines()) == 2 + len(faults())


def test_the_committed_table_is_that_of_the_committed_score(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(table.README.read_text())
    table.write(copy)
    assert copy.read_text() == table.README.read_text(), "run: python tests/robustness/faults/run.py --table"


def test_a_model_without_a_fault_agrees_with_itself() -> None:
    first, second = (Model("r", FIELDS, 2000) for _ in range(2))
    first._advance(drawn=12, reported=9)
    told = [Told(0.0, step, digest, 0) for step, digest in enumerate(first._digests)]
    second.check_told(told)


@pytest.mark.parametrize("keep", [False, True])
def test_a_round_goes_into_the_score_where_that_is_asked_for_alone(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(outcome.ROOT)  # the module puts it there, in place of its own folder
    run = importlib.import_module("tests.robustness.faults.run")
    score = tmp_path / "score.jsonl"
    monkeypatch.setattr(outcome, "SCORE", score)
    one = Fault("calm", "nothing", "holds", 2, False, lambda bench: iter_rounds())
    given = ["run.py", "--folder", str(tmp_path / "files"), *(["--keep"] if keep else [])]
    monkeypatch.setattr(sys, "argv", given)
    assert run._play(one, run._options())
    assert [kept.fault for kept in outcome.read(score)] == ["calm", "calm"] * keep


def iter_rounds() -> Iterator[Round]:
    while True:
        yield Round(1.0)
