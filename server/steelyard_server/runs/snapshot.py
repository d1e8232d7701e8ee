"""A run's state as arrays and JSON values, and back: what a checkpoint holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from steelyard_server.core.events import BatchDrawn, RunCreated
from steelyard_server.runs.spec import RunSpec
from steelyard_server.runs.state import Attempts, Counters, Memory, RunState
from steelyard_server.runs.steps import Observation, StepRecord

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """`columns` are the large arrays, `blobs` small ones; `dirty` says which chunks of a column changed."""

    meta: Mapping[str, Any]
    blobs: Mapping[str, AnyArray]
    columns: Mapping[str, AnyArray]
    dirty: Mapping[str, npt.NDArray[np.bool_] | None]


def take(state: RunState, *, copy: bool = False) -> Snapshot:
    """The state as of now. Arrays are the state's own: encode them before it changes. With `copy` all but the columns
    stay as they are; O(steps in flight)."""
    blobs: dict[str, AnyArray] = {"retired": state.examples.retired}
    steps = [_save_step(record, blobs, copy=copy) for record in state.steps.values()]
    observed = [_save_observation(number, seen, blobs) for number, seen in enumerate(state.observed)]
    meta = {
        "spec": state.spec.model_dump(mode="json"),
        "size": state.examples.size,
        "next_step": state.next_step,
        "closed_steps": state.closed_steps,
        "folded_steps": state.folded_steps,
        "folded_reports": state.folded_reports,
        "steps": steps,
        "observed": observed,
        "attempts": dataclasses.asdict(state.attempts),
        "bookmarks": dict(state.bookmarks),
        "counters": dataclasses.asdict(state.counters),
        "weighers": list(state.weighers),
        "drawer": state.get_drawer_state(),
        "heard": list(state.heard),
        "policy_since": state.policy_since,
        "memories": {
            name: _save_memory(name, memory, blobs)
            for name, memory in (("drawn", state.drawn_memory), ("closed", state.closed_memory))
            if memory is not None
        },
    }
    return Snapshot(meta, blobs, state.examples.columns, state.dirty)


def restore(
    meta: Mapping[str, Any],
    blobs: Mapping[str, AnyArray],
    columns: Mapping[str, AnyArray],
    *,
    give: bool = False,
) -> RunState:
    """The state that `take` saw. The arrays are copied where the state will write to them; but `columns` that the
    caller gives away, writable and of float32, become the state's own: it then takes no memory of its own for them."""
    spec = RunSpec.model_validate(meta["spec"])
    given = {name: values if give else np.array(values, np.float32) for name, values in columns.items()}
    state = RunState(RunCreated(spec.model_dump(mode="json"), int(meta["size"])), given)
    state.examples.retired = np.array(blobs["retired"], np.int64)
    state.next_step = int(meta["next_step"])
    state.closed_steps = int(meta["closed_steps"])
    state.folded_steps = int(meta["folded_steps"])
    state.folded_reports = int(meta["folded_reports"])
    state.steps = {row["step"]: _load_step(row, blobs) for row in meta["steps"]}
    state.observed = [_load_observation(number, row, blobs) for number, row in enumerate(meta["observed"])]
    state.attempts = Attempts(**meta["attempts"])
    state.bookmarks = dict(meta["bookmarks"])
    state.counters = Counters(**meta["counters"])
    state.weighers = [(int(step), rule) for step, rule in meta["weighers"]]
    state.drawer_state = meta["drawer"]
    # What a state of before there were these has heard is not known: it has time to hear it again.
    state.heard = list(meta.get("heard", []))
    state.policy_since = int(meta.get("policy_since", state.closed_steps))
    memories = {name: _load_memory(name, row, blobs) for name, row in meta.get("memories", {}).items()}
    state.drawn_memory, state.closed_memory = memories.get("drawn"), memories.get("closed")
    return state


def _save_step(record: StepRecord, blobs: dict[str, AnyArray], *, copy: bool) -> dict[str, Any]:
    drawn, at = record.drawn, f"step/{record.drawn.step}"
    # What was reported of a closed step does not change any more.
    copy = copy and not record.closed
    blobs[f"{at}/ids"] = drawn.ids
    blobs[f"{at}/reported"] = record.reported.copy() if copy else record.reported
    if drawn.probability is not None:
        blobs[f"{at}/probability"] = drawn.probability
    if drawn.weight is not None:
        blobs[f"{at}/weight"] = drawn.weight
    for name, values in record.signals.items():
        blobs[f"{at}/signal/{name}"] = values.copy() if copy else values
    for name, values in record.columns.items():
        blobs[f"{at}/column/{name}"] = values
    if record.weights is not None:
        blobs[f"{at}/weights"] = record.weights
    return {
        "step": drawn.step,
        "uniform_probability": drawn.uniform_probability,
        "state_version": drawn.state_version,
        "digest": str(drawn.digest),
        "draw_state": dict(drawn.draw_state),
        "signals": list(record.signals),
        "closed": record.closed,
        "folded": record.folded,
        "columns": list(record.columns),
        "failure": record.failure,
    }


def _load_step(row: Mapping[str, Any], blobs: Mapping[str, AnyArray]) -> StepRecord:
    at = f"step/{row['step']}"
    drawn = BatchDrawn(
        step=row["step"],
        ids=np.array(blobs[f"{at}/ids"], np.int64),
        probability=blobs.get(f"{at}/probability"),
        uniform_probability=row["uniform_probability"],
        state_version=row["state_version"],
        digest=int(row["digest"]),
        draw_state=row["draw_state"],
        weight=blobs.get(f"{at}/weight"),
    )
    return StepRecord(
        drawn=drawn,
        reported=np.array(blobs[f"{at}/reported"], np.bool_),
        signals={name: np.array(blobs[f"{at}/signal/{name}"], np.float32) for name in row["signals"]},
        closed=row["closed"],
        folded=row["folded"],
        columns={name: blobs[f"{at}/column/{name}"] for name in row.get("columns", [])},
        weights=blobs.get(f"{at}/weights"),
        failure=row.get("failure", ""),
    )


def _save_memory(name: str, memory: Memory, blobs: dict[str, AnyArray]) -> dict[str, Any]:
    shapes = {}
    for key, values in memory.past.items():
        blobs[f"memory/{name}/{key}"] = values.ravel()
        shapes[key] = list(values.shape)
    return {"since": memory.since, "shapes": shapes}


def _load_memory(name: str, row: Mapping[str, Any], blobs: Mapping[str, AnyArray]) -> Memory:
    past = {
        key: np.array(blobs[f"memory/{name}/{key}"], np.float64).reshape(shape)
        for key, shape in row["shapes"].items()
    }
    return Memory(row["since"], past)


def _save_observation(number: int, seen: Observation, blobs: dict[str, AnyArray]) -> dict[str, Any]:
    blobs[f"observed/{number}/ids"] = seen.ids
    for name, values in seen.signals.items():
        blobs[f"observed/{number}/signal/{name}"] = values
    return {"step": seen.step, "signals": list(seen.signals)}


def _load_observation(number: int, row: Mapping[str, Any], blobs: Mapping[str, AnyArray]) -> Observation:
    signals = {
        name: np.array(blobs[f"observed/{number}/signal/{name}"], np.float32) for name in row["signals"]
    }
    return Observation(row["step"], np.array(blobs[f"observed/{number}/ids"], np.int64), signals)
