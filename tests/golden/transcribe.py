"""Writes the golden transcripts: what small runs did, event by event and batch by batch, for a person to read.

    python tests/golden/transcribe.py

rewrites tests/golden/transcripts and says the digest that CHANGELOG.md must have. A transcript that changes is a
promise that changes: the same seed and the same losses would give other batches, other weights or another journal.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import steelyard
from steelyard import events
from steelyard.testing import server

HERE = Path(__file__).parent / "transcripts"
_SECONDS = 60.0
_WIDTH = 118

Scenario = Callable[[steelyard.Client], list[steelyard.Run]]


# ---- what the scenarios are made of ----


def losses(ids: Any, step: int) -> Any:
    """((5 id + 3 step) mod 8) / 4: no rounding anywhere, and every example's loss changes from step to step."""
    return ((5 * ids + 3 * step) % 8 / 4).astype(np.float32)


def train(run: steelyard.Run, steps: int, *, ahead: int = 1, **join: Any) -> None:
    """Trains steps one by one; each is reported when `ahead` more are drawn, so that the journal has one order."""
    with run.join(prefetch=1, timeout=_SECONDS, **join) as session:
        for _ in range(steps):
            batch = session.next()
            wait_drawn(run, batch.step + 1 + ahead)
            session.report(batch, losses(batch.ids, batch.step))
            session.flush()
        wait_drawn(run, batch.step + 2)


def wait_drawn(run: steelyard.Run, steps: int) -> None:
    deadline = time.monotonic() + _SECONDS
    while (came := run.info().next_step) < steps:
        if time.monotonic() > deadline:
            raise TimeoutError(f"expected {steps} steps drawn within {_SECONDS:g} s; {came} are")
        time.sleep(0.002)


# ---- the scenarios ----


def shuffle(client: steelyard.Client) -> list[steelyard.Run]:
    """A shuffle of 12 examples in batches of 5, so that epochs end inside of batches, weighed by linupper after two
    steps of warm-up. The last batch was drawn ahead, and its step is not closed: its weights are not known yet.
    """
    client.create_dataset("d", 12)
    weigh = {"method": "linupper", "r": 0.5, "warmup_steps": 2}
    run = client.create_run("r", dataset="d", batch_size=5, seed=1, weigh=weigh)
    train(run, 7, attempt="first")
    return [run]


def scored(client: steelyard.Client) -> list[steelyard.Run]:
    """Batches of 4 distinct examples of 12, drawn by the last loss with a floor of an eighth. Staleness 0: every draw
    knows the step before it, and state_version counts the steps that it knows.
    """
    client.create_dataset("d", 12)
    draw = {"method": "scored", "score": "last_loss", "sampling": "distinct", "floor": 0.125}
    run = client.create_run("r", dataset="d", batch_size=4, seed=2, staleness=0, draw=draw)
    train(run, 7, ahead=0, attempt="first")
    return [run]


def staleness_two(client: steelyard.Client) -> list[steelyard.Run]:
    """Staleness 2: the draw of step t knows the steps up to t-3. Stratified draws by the mean loss, which may repeat an
    example, and importance weights that undo them: 1 / (12 probability).
    """
    client.create_dataset("d", 12)
    draw = {"method": "scored", "score": "mean_loss", "sampling": "stratified", "floor": 0.25}
    weigh = {"method": "importance"}
    run = client.create_run("r", dataset="d", batch_size=4, seed=3, staleness=2, draw=draw, weigh=weigh)
    train(run, 7, attempt="first")
    return [run]


def staleness_any(client: steelyard.Client) -> list[steelyard.Run]:
    """Staleness "any": reports count as they arrive. Step 1 is reported before step 0, and step 0 in two parts, from
    position 2 on first; each draw knows the reports above it in the journal, and state_version counts them.
    """
    client.create_dataset("d", 12)
    draw = {"method": "scored", "score": "last_loss", "sampling": "independent", "floor": 0.25}
    run = client.create_run("r", dataset="d", batch_size=4, seed=4, staleness="any", draw=draw)
    with run.join(attempt="first", prefetch=2, timeout=_SECONDS) as session:
        first, second = session.next(), session.next()
        wait_drawn(run, 4)
        session.report(second, losses(second.ids, 1))
        session.flush()
        third = session.next()
        wait_drawn(run, 5)
        session.report(first, losses(first.ids, 0)[2:], offset=2)
        session.flush()
        fourth = session.next()
        wait_drawn(run, 6)
        session.report(first, losses(first.ids, 0)[:2], offset=0)
        session.report(fourth, losses(fourth.ids, 3))
        session.report(third, losses(third.ids, 2))
        session.flush()
    return [run]


def dataset_changes(client: steelyard.Client) -> list[steelyard.Run]:
    """What becomes of the dataset: four examples more, two that are retired, a column that is uploaded, and a policy
    that reads it; then one that reads the mean loss, folded from what the history has kept.
    """
    client.create_dataset("d", 12)
    draw = {"method": "scored", "score": "last_loss", "sampling": "distinct", "floor": 0.125}
    run = client.create_run("r", dataset="d", batch_size=4, seed=5, staleness=1, draw=draw)
    train(run, 3, attempt="first")
    client.append_examples("d", 4)
    client.retire("d", [3, 8])
    client.set_column("d", "quality", np.arange(16) / 8)
    train(run, 1, attempt="second")
    run.change_policy(draw={**draw, "score": "quality", "transform": "softmax"})
    train(run, 2, attempt="third")
    run.change_policy(draw={**draw, "score": "mean_loss"}, weigh={"method": "importance", "beta": 0.5})
    train(run, 1, attempt="fourth")
    return [run]


def going_back(client: steelyard.Client) -> list[steelyard.Run]:
    """Five steps, then a launch that goes on from step 3: steps 3 and 4 are undone, and drawn and reported as before. A
    fork at step 2 under the same policy draws what its parent drew; one under another policy differs from there on.
    Then the owner takes the run back to a bookmark: the policy of then is in force again.
    """
    client.create_dataset("d", 12)
    draw = {"method": "scored", "score": "last_loss", "sampling": "distinct", "floor": 0.125}
    run = client.create_run("r", dataset="d", batch_size=4, seed=6, staleness=0, draw=draw)
    train(run, 5, ahead=0, attempt="first")
    run.bookmark("four", 4)
    train(run, 3, ahead=0, attempt="second", start_step=3)
    same = run.fork("same", step=2)
    train(same, 2, ahead=0, attempt="of same")
    other = run.fork("other", step=2, draw={"method": "shuffle"})
    train(other, 2, attempt="of other")
    run.bookmark("five", 5)
    run.change_policy(weigh={"method": "importance"})
    run.rewind("five")
    train(run, 1, ahead=0, attempt="third")
    return [run, same, other]


def owner(client: steelyard.Client) -> list[steelyard.Run]:
    """What the run's owner says: losses observed before the first step and with a step, one of them no number, which
    the history keeps and no fold takes; a step closed after half of it was reported, the other half of which then
    comes too late; a bookmark made and deleted.
    """
    client.create_dataset("d", 12)
    draw = {"method": "scored", "score": "last_loss", "sampling": "distinct", "floor": 0.125}
    run = client.create_run("r", dataset="d", batch_size=4, seed=7, staleness=0, draw=draw)
    run.observe([0, 1, 2], [4.0, 2.0, 1.0])
    train(run, 2, ahead=0, attempt="first")
    run.observe([5, 6], {"loss": [float("nan"), 3.0], "correct": [0.0, 1.0]}, step=1)
    run.bookmark("half", 2)
    with run.join(attempt="second", prefetch=1, timeout=_SECONDS) as session:
        batch = session.next()
        session.report_raw(batch, losses(batch.ids, 2)[:2], offset=0)
        session.flush()
        run.close_step(2)
        wait_drawn(run, 4)
        session.report_raw(batch, losses(batch.ids, 2)[2:], offset=2)
        session.flush()
    run.delete_bookmark("half")
    train(run, 2, ahead=0, attempt="third")
    return [run]


def mixed(client: steelyard.Client) -> list[steelyard.Run]:
    """Batches of 6 from three groups of 2, 4 and 6 examples, each group shuffled by itself. Shares of 1 : 1 : 2, then
    group_dro, which gives the group with the greater losses more at each step; then the second example moves to the
    last group, so that both groups begin anew, and one leaves all groups.
    """
    client.create_dataset("d", 12)
    client.set_column("d", "group", [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2])
    mix = {"method": "static", "shares": [1, 1, 2]}
    run = client.create_run("r", dataset="d", batch_size=6, seed=8, staleness=0, mix=mix)
    train(run, 3, attempt="first")
    run.change_policy(mix={"method": "group_dro", "eta": 1})
    train(run, 3, ahead=0, attempt="first")
    client.set_column("d", "group", [2, float("nan")], ids=[1, 11])
    train(run, 2, ahead=0, attempt="first")
    return [run]


SCENARIOS: tuple[Scenario, ...] = (
    shuffle, scored, staleness_two, staleness_any, dataset_changes, going_back, owner, mixed,
)  # fmt: skip


# ---- as text ----


def transcript(scenario: Scenario) -> str:
    """Plays a scenario on a server of its own; what came of it, as text."""
    with tempfile.TemporaryDirectory() as folder, server(folder) as client:
        runs = scenario(client)
        parts = [scenario.__name__, "", inspect.cleandoc(scenario.__doc__ or ""), ""]
        for run in runs:
            parts += [f"events of {run.name}", "", *_events_of(run), ""]
            parts += [f"batches of {run.name}", "", *_batches_of(run), ""]
        return "\n".join(parts).rstrip() + "\n"


def _events_of(run: steelyard.Run) -> list[str]:
    # Asked for, a batch is durable, and with it all that stands above it.
    run.batch(run.info().next_step - 1)
    lines: list[str] = []
    for event in run.events():
        fields = {field.name: getattr(event, field.name) for field in dataclasses.fields(event)}
        if isinstance(event, events.RunCreated):
            spec = {field.name: getattr(event.spec, field.name) for field in dataclasses.fields(event.spec)}
            fields = {"record": event.record, **spec, "dataset_size": event.dataset_size}
        if isinstance(event, events.BatchDrawn):
            fields["digest"] = f"{event.digest:016x}"
            if (event.weight == 1).all():
                del fields["weight"]
        record = fields.pop("record")
        words = [
            f"{name} {_value(value)}" for name, value in fields.items() if not _says_nothing(name, value)
        ]
        lines += _wrapped(f"{record:>4}  {type(event).__name__:<15}", words)
    return lines


def _says_nothing(name: str, value: Any) -> bool:
    return (name == "draw_state" and not value) or (name == "mix" and value == {"method": "none"})


def _batches_of(run: steelyard.Run) -> list[str]:
    info = run.info()
    first = info.parent_step or 0
    lines: list[str] = []
    for step in range(first, info.next_step):
        batch = run.batch(step)
        lines.append(f"step {step}  state_version {batch.state_version}  digest {batch.digest:016x}")
        # Weights to six digits: exp may differ in the last bit between processors. Probabilities are exact.
        weight = " ".join(f"{one:.6g}" for one in batch.weight.tolist())
        lines += [
            f"    ids          {_value(batch.ids)}",
            f"    probability  {_value(batch.probability)}",
            f"    weight       {weight}",
        ]
    return lines


def _wrapped(head: str, words: list[str]) -> list[str]:
    lines, margin = [head], " " * (len(head) + 2)
    for word in words:
        if len(lines[-1]) + 2 + len(word) <= _WIDTH or lines[-1] in (head, margin):
            lines[-1] += f"  {word}"
        else:
            lines.append(f"{margin}{word}")
    return lines


def _value(value: Any) -> str:
    if isinstance(value, np.ndarray):
        if len(value) > 1 and value.dtype.kind == "f" and (value == value[0]).all():
            return f"all {value[0]}"
        return " ".join(map(str, value))
    if isinstance(value, Mapping):
        if value and all(isinstance(one, np.ndarray) for one in value.values()):
            return "  ".join(f"{name} {_value(one)}" for name, one in value.items())
        return json.dumps(value, sort_keys=True)
    return str(value)


def digest_of(texts: Mapping[str, str]) -> str:
    """blake2b-64 of all transcripts by name, in hexadecimal."""
    whole = hashlib.blake2b(digest_size=8)
    for name in sorted(texts):
        whole.update(f"{name}\n{texts[name]}".encode())
    return whole.hexdigest()


def main() -> None:
    texts = {scenario.__name__: transcript(scenario) for scenario in SCENARIOS}
    HERE.mkdir(exist_ok=True)
    for old in HERE.glob("*.txt"):
        if old.stem not in texts:
            old.unlink()
    for name, text in texts.items():
        (HERE / f"{name}.txt").write_text(text, encoding="utf-8")
    sys.stdout.write(f"transcripts {digest_of(texts)}\n")


if __name__ == "__main__":
    main()
