"""A run under one operation after another. Slow and obvious: lists, a number at a time, everything kept."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twin import columns, weights
from twin import operations as op
from twin.masses import is_known
from twin.mixed import Mixed
from twin.scored import Scored
from twin.shuffle import Shuffle

LEAST_WINDOW = 256
"""Steps whose reports are still taken, at least."""

DRAW_DEFAULTS: dict[str, dict[str, Any]] = {
    "shuffle": {},
    "scored": {
        "score": "last_loss",
        "transform": "power",
        "alpha": 1.0,
        "temperature": 1.0,
        "floor": 0.0,
        "sampling": "distinct",
        "unseen": "max",
        "ema_decay": 0.9,
        # Of transforms that the twin does not know.
        "keep": 0.5,
        "refresh_steps": None,
    },
}


def full_draw(draw: Mapping[str, Any]) -> dict[str, Any]:
    return {**DRAW_DEFAULTS[draw["method"]], **draw}


MIX_DEFAULTS: dict[str, dict[str, Any]] = {
    "none": {},
    "static": {"group": "group", "shares": None},
    "group_balanced": {"group": "group"},
}


def full_mix(mix: Mapping[str, Any]) -> dict[str, Any]:
    return {**MIX_DEFAULTS[mix["method"]], **mix}


def full_weigh(weigh: Mapping[str, Any]) -> dict[str, Any]:
    return {**weights.DEFAULTS[weigh["method"]], "where": "auto", **weigh}


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


@dataclass
class Step:
    """What was served at a step, and what has been reported of it: NaN where a position lacks a signal."""

    ids: list[int]
    probability: list[float]
    drawable: int
    version: int
    digest: int
    reported: list[bool]
    signals: dict[str, list[float]] = field(default_factory=dict)
    closed: bool = False

    def contradicts(self, offset: int, signals: op.Signals) -> bool:
        return any(
            self.reported[at] and (name not in self.signals or not same(self.signals[name][at], value))
            for name, values in signals.items()
            for at, value in enumerate(values, offset)
        )


@dataclass
class Counters:
    served_ids: int = 0
    reported_losses: int = 0
    nonfinite_losses: int = 0


class State:
    def __init__(self, spec: Mapping[str, Any], size: int) -> None:
        self.batch_size, self.seed = int(spec["batch_size"]), int(spec["seed"])
        self.staleness: int | str = spec["staleness"]
        self.history_size = int(spec["history_size"])
        self.rejects_nonfinite = spec["on_nonfinite"] == "reject"
        self.draw, self.weigh = full_draw(spec["draw"]), full_weigh(spec["weigh"])
        self.mix = full_mix(spec.get("mix", {"method": "none"}))
        self.size = size
        self.retired: set[int] = set()
        self.steps: list[Step] = []
        self.held = 0
        """The oldest step whose reports may still come."""
        self.closed_steps = self.folded_steps = self.folds = 0
        self.observed: list[op.Observe] = []
        self.past: list[list[tuple[int, float]]] = [[] for _ in range(size)]
        self.rules = [(0, self.weigh)]
        self.tokens: list[str] = []
        self.world_size = self.start_step = 0
        self.bookmarks: dict[str, int] = {}
        self.counters = Counters()
        self.columns: dict[str, list[float]] = {}
        self.keep_columns()
        self.drawer: Shuffle | Scored | Mixed | None = None

    # ---- questions ----

    @property
    def next_step(self) -> int:
        return len(self.steps)

    @property
    def drawable(self) -> int:
        """Under a mix, those that are in a group."""
        if not self.is_mixed:
            return self.size - len(self.retired)
        return sum(not math.isnan(self.groups[i]) for i in range(self.size) if i not in self.retired)

    @property
    def is_mixed(self) -> bool:
        return bool(self.mix["method"] != "none")

    @property
    def groups(self) -> list[float]:
        return self.columns[self.mix["group"]]

    @property
    def scores(self) -> list[float] | None:
        return self.columns[self.score] if self.score else None

    @property
    def score(self) -> str:
        return str(self.draw.get("score", ""))

    @property
    def reads_reports(self) -> bool:
        return columns.signal_of(self.score) is not None

    @property
    def version(self) -> int:
        if not self.reads_reports:
            return 0
        return self.folds if self.staleness == "any" else self.folded_steps

    @property
    def waits(self) -> bool:
        """Whether the next draw must have reports that are not there yet."""
        return (
            self.reads_reports
            and self.staleness != "any"
            and self.closed_steps < self.next_step - int(self.staleness)
        )

    @property
    def cannot_draw(self) -> bool:
        return self.drawable < (self.batch_size if self.draw.get("sampling") == "distinct" else 1)

    @property
    def window(self) -> int:
        return max(LEAST_WINDOW, 2 * self.staleness) if isinstance(self.staleness, int) else LEAST_WINDOW

    def rule_of(self, step: int) -> dict[str, Any]:
        return next(rule for since, rule in reversed(self.rules) if since <= step)

    def weights_of(self, step: int) -> list[float]:
        """By the losses once the step is closed, by the probability from the draw on."""
        served = self.steps[step]
        if not weights.reads_losses(self.rule_of(step)):
            return self.weights_by_draw(step)
        if not served.closed:
            return [1.0] * self.batch_size
        return self.weights_by_losses(step)

    def weights_by_draw(self, step: int) -> list[float]:
        """Where the rule says so, over the greatest that was drawn since it is in force without a break."""
        at = max(number for number, (since, _) in enumerate(self.rules) if since <= step)
        rule = self.rules[at][1]
        while at and self.rules[at - 1][1] == rule:
            at -= 1
        alike = self.steps[self.rules[at][0] : step + 1]
        highest = max(1 / (one.drawable * p) for one in alike for p in one.probability)
        served = self.steps[step]
        return weights.by_probability(rule, served.probability, served.drawable, highest)

    def weights_by_losses(self, step: int) -> list[float]:
        served = self.steps[step]
        losses = [
            loss if known else None
            for known, loss in zip(
                served.reported, served.signals.get("loss", served.probability), strict=True
            )
        ]
        return weights.by_losses(self.rule_of(step), losses, step)

    def history(self) -> list[list[tuple[int, float]]]:
        """The last (step, loss) of each id: those folded, and behind them those that wait to be."""
        entries = [list(one) for one in self.past]
        if self.staleness != "any":
            for number in range(max(self.folded_steps, self.held), self.next_step):
                served = self.steps[number]
                for at, example in enumerate(served.ids):
                    if served.reported[at]:
                        entries[example].append((number, served.signals["loss"][at]))
        return [
            one[len(one) - self.history_size :] if len(one) > self.history_size else one for one in entries
        ]

    def mean_loss(self) -> float:
        for served in reversed(self.steps[self.held :]):
            finite = [loss for loss in served.signals.get("loss", []) if math.isfinite(loss)]
            if served.closed and finite:
                return sum(finite) / len(finite)
        return math.nan

    def never_reported(self) -> int | None:
        if self.draw["method"] == "shuffle":
            return None
        scores = self.columns[self.score]
        return sum(not is_known(scores[i]) for i in range(self.size) if i not in self.retired)

    def effective_sample_ratio(self) -> float:
        if self.draw["method"] == "shuffle":
            return 1.0
        drawer = self.drawer or self.new_drawer()
        assert isinstance(drawer, Scored)
        masses = drawer.masses(self.columns[self.score], self.retired)
        return sum(masses) ** 2 / (self.drawable * sum(one * one for one in masses))

    # ---- judging a report ----

    def judge(self, step: int, offset: int, signals: op.Signals) -> str:
        """APPLIED, DUPLICATE or LATE, or the name of the status that refuses it."""
        if step < self.held:
            return "LATE"
        served = self.steps[step]
        if served.contradicts(offset, signals):
            return "ALREADY_EXISTS"
        if all(served.reported[offset + k] for k in range(len(signals["loss"]))):
            return "DUPLICATE"
        if served.closed:
            return "LATE"
        return "APPLIED" if self.takes(signals) else "INVALID_ARGUMENT"

    def takes(self, signals: op.Signals) -> bool:
        """Whether the values can be used: no non-finite ones, no negative ones to make masses of."""
        if self.rejects_nonfinite and not all(
            math.isfinite(x) for values in signals.values() for x in values
        ):
            return False
        read = columns.signal_of(self.score)
        if read is None or self.draw["transform"] == "softmax":
            return True
        return all(x >= 0 or not math.isfinite(x) for x in signals.get(read, []))

    # ---- what happens ----

    def apply(self, operation: op.Operation) -> None:
        match operation:
            case op.Draw():
                self.apply_draw(operation)
            case op.Report():
                self.apply_report(operation)
            case op.Observe():
                self.apply_observe(operation)
            case op.Close(step):
                if step >= self.held:
                    self.steps[step].closed = True
                    self.advance()
            case op.Attempt():
                self.tokens = [one for one in self.tokens if one != operation.token] + [operation.token]
                self.world_size, self.start_step = operation.world_size, operation.start_step
                self.close_below(operation.start_step)
            case op.Grow(size):
                self.apply_growth(size)
            case op.Retire(ids):
                drawer, new = self.need_drawer(), set(ids) - self.retired
                self.retired |= ids
                if isinstance(drawer, Mixed):
                    drawer.retire(new)
                elif isinstance(drawer, Scored):
                    drawer.settle(None, self.columns[self.score], self.retired)
            case op.SetColumn():
                self.apply_column(operation)
            case op.ChangePolicy():
                self.apply_policy(operation)
            case op.Bookmark(name, None):
                self.bookmarks.pop(name, None)
            case op.Bookmark(name, int(step)):
                self.bookmarks[name] = step
            case op.Fork(step):
                self.tokens, self.world_size, self.start_step, self.bookmarks = [], 0, 0, {}
                self.close_below(step)

    def apply_draw(self, operation: op.Draw) -> None:
        step = self.next_step
        assert operation.step == step, f"step {operation.step} cannot be drawn where {step} is next"
        self.fold_for_draw(step)
        drawer = self.need_drawer()
        if isinstance(drawer, Mixed):
            drawn = drawer.draw_batch(step)
        elif isinstance(drawer, Shuffle):
            drawn = [(i, 1 / self.drawable) for i in drawer.draw(self.batch_size, self.retired)]
        else:
            masses = drawer.masses(self.columns[self.score], self.retired)
            drawn = drawer.batch(masses, self.batch_size, self.seed, step)
        ids = [i for i, _ in drawn]
        served = Step(
            ids=ids,
            probability=[p for _, p in drawn],
            drawable=self.drawable,
            version=self.version,
            digest=digest_of(step, ids),
            reported=[False] * self.batch_size,
        )
        self.steps.append(served)
        self.counters.served_ids += self.batch_size
        self.give_up(step - self.window)

    def apply_report(self, report: op.Report) -> None:
        served = self.steps[report.step]
        losses = report.signals["loss"]
        new = [at for at in range(report.offset, report.offset + len(losses)) if not served.reported[at]]
        self.counters.reported_losses += len(new)
        self.counters.nonfinite_losses += sum(not math.isfinite(losses[at - report.offset]) for at in new)
        for name, values in report.signals.items():
            kept = served.signals.setdefault(name, [math.nan] * self.batch_size)
            kept[report.offset : report.offset + len(values)] = values
        for at in new:
            served.reported[at] = True
        served.closed |= all(served.reported)
        if self.staleness == "any":
            signals = {
                name: [values[at - report.offset] for at in new] for name, values in report.signals.items()
            }
            self.fold(report.step, [served.ids[at] for at in new], signals)
        self.advance()

    def apply_observe(self, seen: op.Observe) -> None:
        if seen.step is None or self.staleness == "any":
            self.fold(self.next_step if seen.step is None else seen.step, seen.ids, seen.signals)
            return
        self.observed.append(seen)
        self.advance()

    def apply_growth(self, size: int) -> None:
        drawer, before = self.need_drawer(), self.size
        self.past += [[] for _ in range(size - self.size)]
        for values in self.columns.values():
            values += [math.nan] * (size - self.size)
        self.size = size
        if isinstance(drawer, (Shuffle, Mixed)):
            drawer.grow(size)
        else:
            drawer.grew(before, self.columns[self.score], self.retired)

    def apply_column(self, operation: op.SetColumn) -> None:
        if operation.name not in self.columns:
            return
        for example, value in operation.values.items():
            self.columns[operation.name][example] = columns.rounded(value)
        if isinstance(self.drawer, Mixed):
            self.drawer.changed(list(operation.values), self.groups, self.scores, self.retired)
        elif isinstance(self.drawer, Scored):
            self.drawer.changed(list(operation.values), self.columns[operation.name], self.retired)

    def apply_policy(self, operation: op.ChangePolicy) -> None:
        before, was_mixed = (self.draw, self.mix), self.is_mixed
        self.draw, self.weigh = dict(operation.draw), dict(operation.weigh)
        self.mix = self.mix if operation.mix is None else dict(operation.mix)
        changed = (self.draw, self.mix) != before
        self.rules.append((self.next_step, self.weigh))
        if changed:
            self.keep_columns()
            if self.draw == before[0] and self.is_mixed and was_mixed:
                # Only the masses are others: the draws within the groups go on.
                if isinstance(self.drawer, Mixed):
                    self.drawer.mix = self.mix
            else:
                self.drawer = None
        self.advance()

    def close_below(self, start: int) -> None:
        for served in self.steps[self.held : start]:
            served.closed = True
        self.advance()

    def give_up(self, before: int) -> None:
        """Steps so old are closed, and forgotten once they are folded."""
        while self.held < before:
            self.steps[self.held].closed = True
            self.advance()
            if self.held >= self.folded_steps:
                return
            self.held += 1

    # ---- folding ----

    def advance(self) -> None:
        while self.closed_steps < self.next_step and self.steps[self.closed_steps].closed:
            self.closed_steps += 1
        if not self.reads_reports or self.staleness == "any":
            self.fold_below(self.closed_steps)

    def fold_for_draw(self, step: int) -> None:
        """A draw of `step` knows the reports of the steps below step - staleness, and no others."""
        if self.reads_reports and self.staleness != "any":
            self.fold_below(min(self.closed_steps, step - int(self.staleness)))

    def fold_below(self, stop: int) -> None:
        while self.folded_steps < stop:
            number = self.folded_steps
            if self.staleness != "any":
                served = self.steps[number]
                at = [k for k in range(self.batch_size) if served.reported[k]]
                signals = {name: [values[k] for k in at] for name, values in served.signals.items()}
                self.fold(number, [served.ids[k] for k in at], signals)
            self.folded_steps += 1
            self.fold_observed()
        self.fold_observed()

    def fold_observed(self) -> None:
        due = [seen for seen in self.observed if (seen.step or 0) < self.folded_steps]
        self.observed = [seen for seen in self.observed if (seen.step or 0) >= self.folded_steps]
        for seen in due:
            self.fold(seen.step or 0, seen.ids, seen.signals)

    def fold(self, step: int, ids: Sequence[int], signals: op.Signals) -> None:
        if not ids:
            return
        self.folds += 1
        for example, loss in zip(ids, signals.get("loss", []), strict=False):
            self.past[example].append((step, loss))
        read = columns.signal_of(self.score)
        if read is None or read not in signals:
            return
        drawer = self.need_drawer()
        finite = [(i, x) for i, x in zip(ids, signals[read], strict=True) if math.isfinite(x)]
        for example, value in finite:
            columns.fold(self.columns, self.score, self.draw["ema_decay"], example, value)
        ids = [i for i, _ in finite]
        if isinstance(drawer, Mixed):
            drawer.changed(ids, self.groups, self.scores, self.retired)
        else:
            assert isinstance(drawer, Scored)
            drawer.changed(ids, self.columns[self.score], self.retired)

    # ---- columns and the drawer ----

    def keep_columns(self) -> None:
        """Keeps what the policy reads. What it has not read so far is folded from the last losses of each example."""
        names = columns.parts_of(self.score) if self.score else []
        groups = self.columns.get(self.mix.get("group", ""), [math.nan] * self.size)
        if self.reads_reports and any(name not in self.columns for name in names):
            last = [one[max(0, len(one) - self.history_size) :] for one in self.past]
            self.columns = columns.folded_from(last, self.score, self.draw["ema_decay"])
        else:
            nothing = [math.nan] * self.size
            self.columns = {name: self.columns.get(name, list(nothing)) for name in names}
        if self.is_mixed:
            self.columns[self.mix["group"]] = groups

    def need_drawer(self) -> Shuffle | Scored | Mixed:
        """Made by the first draw, fold, growth or retirement under the policy: its scale is that of the scores then."""
        self.drawer = self.drawer or self.new_drawer()
        return self.drawer

    def new_drawer(self) -> Shuffle | Scored | Mixed:
        if self.is_mixed:
            of = self.seed, self.batch_size, self.groups, self.scores, self.retired
            return Mixed(self.mix, self.draw, *of)
        if self.draw["method"] == "shuffle":
            return Shuffle(self.seed, self.size)
        return Scored(self.draw, self.columns[self.score], self.retired)


def digest_of(step: int, ids: list[int]) -> int:
    content = struct.pack(f"<Q{len(ids)}q", step, *ids)
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
