"""Rows to judge, and a run without a server to live through: events in, batches out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from steelyard_server.core.events import (
    BatchDrawn,
    ColumnSet,
    DatasetGrown,
    Float32s,
    LossesReported,
    RunCreated,
    SignalsObserved,
)
from steelyard_server.policies.draw.rows import Rows
from steelyard_server.runs.spec import parse_spec
from steelyard_server.runs.state import RunState

Floats = npt.NDArray[np.floating[Any]]


class Life:
    """A run under one draw: the fold that a server makes, with staleness 0."""

    def __init__(
        self,
        draw: Mapping[str, Any],
        size: int,
        batch_size: int,
        *,
        columns: Mapping[str, Any] | None = None,
        weigh: str = "uniform",
        mix: Mapping[str, Any] | None = None,
        seed: int = 1,
    ) -> None:
        spec = {
            "name": "r",
            "dataset": "d",
            "batch_size": batch_size,
            "seed": seed,
            "draw": dict(draw),
            "weigh": {"method": weigh},
            "mix": dict(mix or {"method": "none"}),
            "staleness": 0,
        }
        self.state = RunState(RunCreated(parse_spec(spec).model_dump(mode="json"), size))
        for name, values in (columns or {}).items():
            self.set(name, values)

    def set(self, column: str, values: Any) -> None:
        at = np.arange(len(values))
        self.state.apply(ColumnSet(column, at, np.array(values, np.float32)))

    def grow(self, size: int) -> None:
        self.state.apply(DatasetGrown(size))

    def draw(self) -> BatchDrawn:
        drawn = self.state.draw()
        self.state.apply(drawn)
        return drawn

    def report(self, drawn: BatchDrawn, **signals: Any) -> None:
        given = {"loss": np.zeros(len(drawn.ids)), **signals}
        self.state.apply(
            LossesReported(
                drawn.step, 0, {name: np.array(values, np.float32) for name, values in given.items()}
            )
        )
        self.state.check()

    def observe(self, ids: Any, **signals: Any) -> None:
        given = {name: np.array(values, np.float32) for name, values in signals.items()}
        self.state.apply(SignalsObserved(None, np.array(ids, np.int64), given))

    def column(self, name: str) -> npt.NDArray[np.float32]:
        return self.state.examples.columns[name]


@pytest.fixture
def life() -> type[Life]:
    return Life


@pytest.fixture
def rows_of() -> Callable[..., Rows]:
    """Rows with these columns, nobody retired but `retired`."""

    def made(*, retired: Any = (), **columns: Any) -> Rows:
        arrays = {name: np.array(values, np.float32) for name, values in columns.items()}
        size = len(next(iter(arrays.values())))
        return Rows(size, np.array(retired, np.int64), arrays)

    return made


class Logistic:
    """Two classes, -1 and 1, by gradient descent on the logistic loss."""

    def __init__(self, features: Floats, labels: Floats, rate: float = 0.5) -> None:
        self.features, self.labels, self.rate = features, labels, rate
        self.weights = np.zeros(features.shape[1])

    def correct(self, ids: Any) -> npt.NDArray[np.bool_]:
        return self.labels[ids] * (self.features[ids] @ self.weights) > 0

    def losses(self, ids: Any) -> Floats:
        return np.log1p(np.exp(-self.labels[ids] * (self.features[ids] @ self.weights)))

    def chances(self, ids: Any) -> Floats:
        """[p(-1), p(1)] of each: float64[n, 2]."""
        up = 1 / (1 + np.exp(-(self.features[ids] @ self.weights)))
        return np.stack([1 - up, up], axis=1)

    def step(self, ids: Any) -> None:
        pull = self.labels[ids] / (1 + np.exp(self.labels[ids] * (self.features[ids] @ self.weights)))
        self.weights += self.rate * (pull[:, None] * self.features[ids]).mean(axis=0)


@pytest.fixture
def logistic() -> type[Logistic]:
    return Logistic


# ---- draws whose law is looked at ----

Begin = Callable[..., RunState]
Law = Callable[..., Any]
Train = Callable[..., list[list[int]]]

_PLACES = 50_000


@pytest.fixture
def begin() -> Begin:
    """begin(config, size, ...): a run that draws by `config`. Uploaded columns and observed signals by name."""

    def begin(
        config: Mapping[str, Any],
        size: int,
        *,
        batch_size: int = 8,
        seed: int = 1,
        staleness: int | str = 0,
        columns: Mapping[str, Any] | None = None,
        signals: Mapping[str, Any] | None = None,
    ) -> RunState:
        spec = parse_spec(
            {
                "name": "r",
                "dataset": "d",
                "batch_size": batch_size,
                "seed": seed,
                "staleness": staleness,
                "draw": dict(config),
                "weigh": {"method": "uniform"},
            }
        )
        run = RunState(RunCreated(spec.model_dump(mode="json"), size))
        for name, values in (columns or {}).items():
            run.apply(ColumnSet(name, np.arange(size), np.array(values, np.float32)))
        if signals:
            observe(run, np.arange(size), signals)
        return run

    return begin


def observe(run: RunState, ids: Any, signals: Mapping[str, Any]) -> None:
    """Signals of ids outside a batch, folded at once."""
    values: dict[str, Float32s] = {name: np.array(each, np.float32) for name, each in signals.items()}
    run.apply(SignalsObserved(None, np.array(ids), values))


@pytest.fixture(name="observe")
def _observe() -> Callable[..., None]:
    return observe


@pytest.fixture
def law() -> Law:
    """law(run): the probability of each id in the next draw, which must be one with replacement."""

    def law(run: RunState) -> Any:
        # Folds what the draw may know, and leaves no other trace.
        run.draw()
        drawn = run.drawer.draw(run.next_step, _PLACES)
        probabilities = np.zeros(run.examples.size)
        if drawn.probability is None:
            probabilities[drawn.ids] = drawn.uniform_probability
        else:
            probabilities[drawn.ids] = drawn.probability
        return probabilities

    return law


@pytest.fixture
def train() -> Train:
    """train(run, steps, loss_of): draws batches and reports them; loss_of(ids, step) gives the signal. The batches."""

    def train(
        run: RunState, steps: int, loss_of: Callable[[Any, int], Any], *, signal: str = "loss"
    ) -> list[list[int]]:
        batches = []
        for _ in range(steps):
            drawn: BatchDrawn = run.draw()
            run.apply(drawn)
            values = np.array(loss_of(drawn.ids, drawn.step), np.float32)
            reported = {"loss": np.ones(len(values), np.float32), signal: values}
            run.apply(LossesReported(drawn.step, 0, reported))
            batches.append(drawn.ids.tolist())
        return batches

    return train
