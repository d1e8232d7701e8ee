"""Every method keeps the contract of its family, and the suite that says so finds planted faults."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest

from steelyard.weigh import Context, Reads, Rule, Source
from steelyard_server.methods import (
    Derived,
    Drawn,
    Examples,
    GroupReport,
    Mix,
    Moment,
    RefreshedDraw,
    Rows,
    State,
)
from steelyard_server.plugins import FAMILIES
from steelyard_server.policies.draw.engines.local import ByColumn, ScoredDrawer
from steelyard_server.policies.draw.scored import Scored
from steelyard_server.policies.draw.shuffle import Shuffle, ShuffleDrawer

Contract = Callable[..., None]

NOBODY = Source("nobody", "nowhere")
COUNT = itertools.count()
"""What no method may read: it is another at every call."""


EVERY_METHOD = [
    pytest.param(method, id=f"{family.family}-{name}")
    for family in FAMILIES
    for name, method in sorted(family.items())
]


@pytest.mark.parametrize("method", EVERY_METHOD)
def test_every_method_keeps_the_contract(method: type[Any], method_contract: Contract) -> None:
    method_contract(method)


@pytest.mark.parametrize(
    "config",
    [
        {"method": "scored", "transform": "softmax", "temperature": 0.5, "sampling": "independent"},
        {"method": "scored", "score": "quality", "transform": "identity", "floor": 0.5},
        {"method": "scored", "score": "mean_loss", "unseen": "mean", "sampling": "stratified"},
        {"method": "curriculum", "difficulty": "mean_loss", "order": "window", "pace_steps": 20},
        {"method": "gumbel_top_k", "budget": 40, "tokens": "tokens", "group": "group"},
        {"method": "infobatch", "prune_ratio": 0.95, "num_epochs": 8},
        {
            "method": "influence",
            "score": "mean_vog",
            "within": "label",
            "prune": "sampled",
            "after_epochs": 1,
        },
        {"method": "jtt", "up_weight": -1, "errors": "wrong"},
        {"method": "scored", "transform": "rank", "alpha": 0.5, "refresh_steps": 2, "unseen": "mean"},
        {"method": "scored", "transform": "percentile", "floor": 0.1, "sampling": "stratified"},
        {"method": "scored", "transform": "gumbel", "keep": 0.7, "refresh_steps": 2},
        {"method": "per", "form": "rank", "refresh_steps": 1},
        {"method": "loss_history", "sampling": "distinct", "stale_after": 1},
        {"method": "utility_decay", "half_lives": [0.5, 4.0], "sampling": "independent"},
        {"method": "candidate_pool", "strategy": "extremes", "pool": 2, "sampling": "stratified"},
        {"method": "linupper", "r": 0.05, "warmup_steps": 2},
        {"method": "importance", "beta": 0.4, "normalise": "batch_max"},
        {"method": "static", "shares": [1, 0, 3]},
    ],
    ids=str,
)
def test_so_do_other_configurations(config: Mapping[str, Any], method_contract: Contract) -> None:
    method_contract(config)


SOON = {"every": 2, "refresh_steps": 2, "after_epochs": 1}


def sooner(method: type[Any]) -> dict[str, int]:
    """What has a method that looks at its reports seldom, or late, look at them within an epoch of the contract."""
    return {name: value for name, value in SOON.items() if name in getattr(method, "model_fields", {})}


OFTEN = [
    pytest.param(
        {"method": name, **method.example, **sooner(method)}, family.family, id=f"{family.family}-{name}"
    )
    for family in FAMILIES
    for name, method in sorted(family.items())
    if sooner(method)
]


@pytest.mark.parametrize(("config", "family"), OFTEN)
def test_so_do_those_that_look_seldom_where_they_look_often(
    config: Mapping[str, Any], family: str, method_contract: Contract
) -> None:
    method_contract(config, family=family)


# ---- faults, planted ----


@dataclass(frozen=True)
class _Weigh(Rule):
    method: ClassVar[str] = "planted"
    source: ClassVar[Source] = NOBODY
    never_reported: ClassVar[str] = "The same."
    reads: ClassVar[Reads] = "losses"

    def weights(self, losses: Any, context: Context) -> Any:
        counts = np.isfinite(losses) if context.mask is None else np.isfinite(losses) & context.mask
        return np.where(counts, self.of(np.where(counts, losses, 0), context), 0).astype(losses.dtype)

    def of(self, losses: Any, context: Context) -> Any:
        return np.ones_like(losses)


@dataclass(frozen=True)
class _RandomRule(_Weigh):
    def of(self, losses: Any, context: Context) -> Any:
        return np.ones_like(losses) * (1 + next(COUNT))


@dataclass(frozen=True)
class _ChangesLosses(_Weigh):
    def weights(self, losses: Any, context: Context) -> Any:
        losses[np.isfinite(losses)] = 1
        return super().weights(losses, context)


@dataclass(frozen=True)
class _KnowsMore(_Weigh):
    """Reads what only the server has beside the losses, and does not say so."""

    def of(self, losses: Any, context: Context) -> Any:
        known = context.probability is not None
        return losses * 0 + (1 + np.asarray(context.probability) if known else 1)


@dataclass(frozen=True)
class _SaysItReadsNothing(_Weigh):
    reads: ClassVar[Reads] = "nothing"

    def of(self, losses: Any, context: Context) -> Any:
        return 1.0 + (losses > 1)


@dataclass(frozen=True)
class _Overflows(_Weigh):
    def of(self, losses: Any, context: Context) -> Any:
        with np.errstate(all="ignore"):
            return np.exp(losses)


@dataclass(frozen=True)
class _Negative(_Weigh):
    def of(self, losses: Any, context: Context) -> Any:
        return np.clip(losses, -1, 1)


@dataclass(frozen=True)
class _ByPosition(_Weigh):
    def of(self, losses: Any, context: Context) -> Any:
        return np.arange(losses.size) + 1.0


@dataclass(frozen=True)
class _ByTheWholeArray(_Weigh):
    """Counts padding among the batch."""

    def weights(self, losses: Any, context: Context) -> Any:
        return np.full_like(losses, 1.0 if context.mask is None else losses.size / context.mask.sum())


@dataclass(frozen=True)
class _Unchecked(_Weigh):
    share: float = 0.5


@dataclass(frozen=True)
class _RemembersBesides(_Weigh):
    """Keeps its past where no checkpoint finds it."""

    seen: ClassVar[list[float]] = []

    @property
    def remembers(self) -> bool:
        return True

    def of(self, losses: Any, context: Context) -> Any:
        return np.ones_like(losses) + len(self.seen) % 5

    def remember(self, losses: Any, context: Context) -> Mapping[str, Any]:
        self.seen.append(1.0)
        return {"kept": np.zeros(1)}


@pytest.mark.parametrize(
    ("fault", "clause"),
    [
        (_RandomRule, "the same batches give the same weights"),
        (_ChangesLosses, "an argument was changed"),
        (_Overflows, "weights are finite and not negative"),
        (_KnowsMore, "what a trainer knows is enough"),
        (_SaysItReadsNothing, "it reads what it says"),
        (_Negative, "weights are finite and not negative"),
        (_ByPosition, "the order in a batch does not matter"),
        (_ByTheWholeArray, "padding weighs nothing"),
        (_Unchecked, "bad parameters are refused by name: AssertionError: share = nan was taken"),
        (_RemembersBesides, "the same batches give the same weights"),
    ],
)
def test_a_fault_planted_in_a_rule_is_found(
    fault: type[Rule], clause: str, method_contract: Contract
) -> None:
    with pytest.raises(AssertionError, match="weigh method 'planted' breaks its contract") as caught:
        method_contract(fault)
    assert clause in str(caught.value)


def test_the_rule_that_faults_are_planted_in_is_sound(method_contract: Contract) -> None:
    method_contract(_Weigh)


class _Draw(Scored):
    source: ClassVar[Source] = NOBODY
    never_reported: ClassVar[str] = "The greatest mass."
    method: Literal["planted"] = "planted"  # type: ignore[assignment]
    kind: ClassVar[type[ScoredDrawer]] = ScoredDrawer

    def drawer(self, examples: Examples, *, seed: int, batch_size: int, state: Any = None) -> ScoredDrawer:
        return self.kind(ByColumn("last_loss"), examples, seed, batch_size, state)


class _RandomDrawer(ScoredDrawer):
    def draw(self, step: int, count: int | None = None) -> Drawn:
        return super().draw(step + next(COUNT), count)


class _NanDrawer(ScoredDrawer):
    def draw(self, step: int, count: int | None = None) -> Drawn:
        drawn = super().draw(step, count)
        seen = self._examples.columns["last_loss"]
        spoilt = np.nan if np.nanmax(seen, initial=0.0) > 1e29 else 1.0
        return Drawn(drawn.ids, np.asarray(drawn.probability) * spoilt, drawn.uniform_probability)


class _DrawsRetired(ShuffleDrawer):
    """Leaves the retired out until there are many."""

    def draw(self, step: int, count: int | None = None) -> Drawn:
        drawn = super().draw(step, count)
        ids = drawn.ids if len(self._examples.retired) < 8 else self._examples.retired[: len(drawn.ids)]
        return Drawn(ids, None, drawn.uniform_probability, drawn.draw_state)


class _Steps(ScoredDrawer):
    """Draws by how often it was told of a change, and says so to nobody."""

    told = 0

    def changed(self, ids: Any) -> None:
        self.told += 1
        super().changed(ids)

    def draw(self, step: int, count: int | None = None) -> Drawn:
        return super().draw(step + 1000 * self.told, count)


class _FirstRow(ScoredDrawer):
    first = 0

    def folded(self, step: int, ids: Any, signals: Any) -> None:
        self.first = int(ids[0])

    def draw(self, step: int, count: int | None = None) -> Drawn:
        return super().draw(step + 1000 * self.first, count)

    def get_state(self) -> Mapping[str, Any]:
        return {**super().get_state(), "first": self.first}

    def __init__(self, draw: Any, examples: Examples, seed: int, size: int, state: Any) -> None:
        state = dict(state or {})
        self.first = state.pop("first", 0)
        super().__init__(draw, examples, seed, size, state or None)


def planted(drawer: type[ScoredDrawer], **fields: Any) -> type[Any]:
    return type("Planted", (_Draw,), {"kind": drawer, "__module__": __name__, **fields})


class _Forgets(Shuffle):
    """A shuffle that begins anew after each restart."""

    source: ClassVar[Source] = NOBODY
    never_reported: ClassVar[str] = "As all."
    method: Literal["planted"] = "planted"  # type: ignore[assignment]

    def drawer(self, examples: Examples, *, seed: int, batch_size: int, state: Any = None) -> ShuffleDrawer:
        return ShuffleDrawer(examples, seed, batch_size, None)


class _NothingNew(ShuffleDrawer):
    """Has no more ids than at first."""

    def draw(self, step: int, count: int | None = None) -> Drawn:
        drawn = super().draw(step, count)
        old = np.setdiff1d(np.arange(24), self._examples.retired)
        ids = old[drawn.ids % len(old)]
        return Drawn(ids, None, drawn.uniform_probability, drawn.draw_state)


def shuffled(drawer: type[ShuffleDrawer]) -> type[Any]:
    def make(
        self: Any, examples: Examples, *, seed: int, batch_size: int, state: Any = None
    ) -> ShuffleDrawer:
        return drawer(examples, seed, batch_size, state)

    return type("Planted", (_Forgets,), {"drawer": make, "__module__": __name__})


class _Weighs(RefreshedDraw):
    source: ClassVar[Source] = NOBODY
    never_reported: ClassVar[str] = "As all."
    method: Literal["planted"] = "planted"
    weight_of_all: ClassVar[float] = 1.0

    @property
    def derived(self) -> tuple[Derived, ...]:
        return ()

    @property
    def static(self) -> tuple[str, ...]:
        return ()

    def weights(self, rows: Rows, moment: Moment) -> Any:
        return np.full(rows.size, self.weight_of_all)


class _WeighsLessThanNothing(_Weighs):
    weight_of_all: ClassVar[float] = -1.0


class _WeighsNobodyKnowsWhat(_Weighs):
    weight_of_all: ClassVar[float] = float("nan")


@pytest.mark.parametrize(
    ("fault", "clause"),
    [
        (_WeighsLessThanNothing, "weights of rows are finite and not negative"),
        (_WeighsNobodyKnowsWhat, "weights of rows are finite and not negative"),
        (planted(_RandomDrawer), "the same reports give the same batches"),
        (planted(_NanDrawer), "draws are sound whatever is reported"),
        (shuffled(_DrawsRetired), "retired ids"),
        (planted(_Steps), "a checkpoint forgets nothing"),
        (planted(_FirstRow, listens=property(lambda self: ("loss",))), "the order in a report"),
        (_Forgets, "a checkpoint forgets nothing"),
        (shuffled(_NothingNew), "new examples are drawn"),
    ],
)
def test_a_fault_planted_in_a_draw_is_found(fault: type[Any], clause: str, method_contract: Contract) -> None:
    with pytest.raises(AssertionError, match="draw method 'planted' breaks its contract") as caught:
        method_contract(fault)
    assert clause in str(caught.value)


def test_the_draw_that_faults_are_planted_in_is_sound(method_contract: Contract) -> None:
    method_contract(_Draw)
    method_contract(_Weighs)


class _Mix(Mix):
    """The share of each group follows the sum of its losses."""

    source: ClassVar[Source] = NOBODY
    never_reported: ClassVar[str] = "A mass of 1."
    method: Literal["planted"] = "planted"

    @property
    def signals(self) -> tuple[str, ...]:
        return ("loss",)

    def fresh(self, sizes: Any) -> State:
        return {"sums": [1.0] * len(sizes)}

    def update(self, state: State, report: GroupReport) -> State:
        sums = np.clip(report.sums("loss")[0], 0, 1e30)
        return {"sums": [float(one + two) for one, two in zip(state["sums"], sums, strict=True)]}

    def masses(self, state: State, sizes: Any, step: int) -> Any:
        return np.array(state["sums"])


class _RandomMix(_Mix):
    def masses(self, state: State, sizes: Any, step: int) -> Any:
        return np.array(state["sums"]) + next(COUNT)


class _InPlace(_Mix):
    def update(self, state: State, report: GroupReport) -> State:
        state["sums"][:] = super().update(state, report)["sums"]
        return state


class _NanMix(_Mix):
    def update(self, state: State, report: GroupReport) -> State:
        with np.errstate(all="ignore"):
            return {"sums": np.exp(report.sums("loss")[0]).tolist()}


class _LastRow(_Mix):
    def update(self, state: State, report: GroupReport) -> State:
        return {"sums": [1.0 + float(report.groups[-1] == group) for group in range(len(report.sizes))]}


class _ThreeGroups(_Mix):
    def grown(self, state: State, sizes: Any) -> State:
        return state


class _FullAlone(_Mix):
    """Leaves all mass with groups that may have run empty."""

    def masses(self, state: State, sizes: Any, step: int) -> Any:
        return np.arange(len(sizes)) < 2.0


class _KeepsBesides(_Mix):
    seen: ClassVar[list[float]] = []

    def update(self, state: State, report: GroupReport) -> State:
        self.seen.append(1.0)
        return {"sums": [1.0 + len(self.seen), *state["sums"][1:]]}


@pytest.mark.parametrize(
    ("fault", "clause"),
    [
        (_RandomMix, "the same reports give the same masses"),
        (_InPlace, "changed the state that it was given"),
        (_NanMix, "masses are finite and not negative"),
        (_LastRow, "the order in a report does not matter"),
        (_ThreeGroups, "groups may grow come and run empty"),
        (_FullAlone, "masses"),
        (_KeepsBesides, "the same reports give the same masses"),
    ],
)
def test_a_fault_planted_in_a_mix_is_found(fault: type[Any], clause: str, method_contract: Contract) -> None:
    with pytest.raises(AssertionError, match="mix method 'planted' breaks its contract") as caught:
        method_contract(fault)
    assert clause in str(caught.value)


def test_the_mix_that_faults_are_planted_in_is_sound(method_contract: Contract) -> None:
    method_contract(_Mix)


def test_a_method_is_known_by_its_name_only_while_it_is_tried(method_contract: Contract) -> None:
    with pytest.raises(AssertionError):
        method_contract(_RandomMix)
    assert all("planted" not in family for family in FAMILIES)


def test_a_weigh_rule_is_tried_where_the_server_is_not_installed() -> None:
    script = (
        "import sys; sys.modules['steelyard_server'] = sys.modules['pydantic'] = None\n"
        "from steelyard.testing.contract import check\n"
        "check({'method': 'linupper'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", [{"method": "no_such"}, {}, int])
def test_what_is_no_method_is_told(method: Any, method_contract: Contract) -> None:
    with pytest.raises(ValueError, match="expected"):
        method_contract(method)
