"""Selective-Backprop: train on an example with a probability that grows with its loss.

form "official", after the authors' code:
    percentile_i = the part of the last 1024 losses, this batch's included, that lie strictly below L_i
    p_i          = max(p_min, percentile_i^beta);   each example is chosen by its own lot
    The first epoch is chosen whole. The lowest loss of the 1024 has p 0 unless p_min is set.

form "composer", after the port in MosaicML Composer:
    percentile_i = (i + 1/2) / v   for the i-th lowest of v losses;   p_i ~ percentile_i^(1/keep - 1)
    floor(keep v) are chosen without replacement, one after the other by p.
    Only from `start` to `end` of the training's `total_steps`, and every `interrupt`-th step is left whole (of the
    run; there, of the epoch).

Either way w_i = n/k for the k chosen and 0 for the others; a batch of which none is chosen weighs nothing.

What differs from the authors' code: they gather the chosen of several batches until one is full; here a step trains
on the chosen of its own batch. Their variant that skips the forward pass of examples seen lately saves what a
sampler cannot, and is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.flat import Flags, Flat, Floats, part
from steelyard.weigh.lots import lots
from steelyard.weigh.rule import Array, Context, Past, Reads, Rule

Form = Literal["official", "composer"]

HISTORY = 1024
"""How many of the last losses the official form ranks a loss among."""


@dataclass(frozen=True)
class SelectiveBackprop(Rule):
    """Lots by the rank of the loss. The official form needs the dataset's size, for the length of its first epoch."""

    method: ClassVar[str] = "selective_backprop"
    source: ClassVar[Source] = Source(
        "Accelerating Deep Learning by Focusing on the Biggest Losers (Jiang et al., 2019)",
        "probability of selection; angelajiang/SelectiveBackprop, mosaicml/composer selective_backprop.py",
    )
    never_reported: ClassVar[str] = (
        "They take part from their first loss on, ranked among the last losses of other examples."
    )
    reads: ClassVar[Reads] = "losses"
    selects: ClassVar[bool] = True

    form: Form = "official"
    """Whose form: "official" or "composer"."""
    beta: float = 3.0
    """official: how much high losses are preferred."""
    p_min: float = 0.0
    """official: the least probability."""
    warmup_steps: int | None = None
    """official: the steps that are chosen whole; None: the first epoch, ceil(examples / batch)."""
    keep: float = 0.5
    """composer: the part of the batch that is chosen."""
    total_steps: int | None = None
    """composer: the steps of the whole training, of which start and end are parts. It needs to be set."""
    start: float = 0.5
    """composer: the part of the training at which choosing begins."""
    end: float = 0.9
    """composer: the part at which it ends."""
    interrupt: int = 2
    """composer: every so-manieth step is left whole; 0: none."""

    def __post_init__(self) -> None:
        name = self.method
        fields = {
            "form": checks.choice(f"{name}.form", self.form, get_args(Form)),
            "beta": checks.number(f"{name}.beta", self.beta, 0.0, 100.0),
            "p_min": checks.number(f"{name}.p_min", self.p_min, 0.0, 1.0),
            "keep": checks.share(f"{name}.keep", self.keep),
            "start": checks.number(f"{name}.start", self.start, 0.0, 1.0),
            "end": checks.number(f"{name}.end", self.end, 0.0, 1.0),
            "interrupt": checks.count(f"{name}.interrupt", self.interrupt),
        }
        for field, value in fields.items():
            object.__setattr__(self, field, value)
        for field in ("warmup_steps", "total_steps"):
            if getattr(self, field) is not None:
                object.__setattr__(self, field, checks.count(f"{name}.{field}", getattr(self, field)))
        if self.form == "composer" and self.total_steps is None:
            raise ValueError(f"{name}.total_steps: expected the number of steps of the training, got none")
        if self.start > self.end:
            raise ValueError(f"{name}.start: expected at most end, {self.end:g}, got {self.start:g}")

    @property
    def remembers(self) -> bool:
        """The last losses, in the official form."""
        return self.form == "official"

    @property
    def random(self) -> bool:
        """Yes: lots decide."""
        return True

    def is_whole(self, batch_size: int, context: Context) -> bool:
        """Whether all of this step's batch is chosen."""
        step = context.step
        if self.form == "official":
            return step < (
                self._first_epoch(batch_size, context) if self.warmup_steps is None else self.warmup_steps
            )
        total = self.total_steps or 0
        active = self.start * total <= step < self.end * total
        return not active or (self.interrupt > 0 and (step + 1) % self.interrupt == 0)

    def probabilities(self, losses: Array, context: Context) -> Floats:
        """float64[m]: p of each position, flat. The chance of its own lot, or of the first lot of the composer form.

        0 where the loss does not count.
        """
        batch = Flat(self, losses, context)
        return self._official(batch) if self.form == "official" else self._composer(batch)

    def weights(self, losses: Array, context: Context) -> Array:
        """n/k for the chosen, 0 for the others; see steelyard.weigh.rule."""
        batch = Flat(self, losses, context)
        if self.is_whole(len(batch), context):
            return batch.chosen(batch.valid)
        lot = lots(context.seed, context.step, len(batch))
        if self.form == "official":
            return batch.chosen(lot < self._official(batch))
        return batch.chosen(self._without_replacement(batch, lot))

    def remember(self, losses: Array, context: Context) -> Past:
        """The last losses, oldest first: "losses", float64[1024 at most]. Nothing in the composer form."""
        if not self.remembers:
            return {}
        return {"losses": _history(Flat(self, losses, context))}

    def _first_epoch(self, batch_size: int, context: Context) -> int:
        if context.examples is None:
            raise ValueError(
                f"{self.method}: expected the number of examples, for the length of the first epoch, or warmup_steps; "
                "got neither"
            )
        return -(-context.examples // max(batch_size, 1))

    def _official(self, batch: Flat) -> Floats:
        history = np.sort(_history(batch))
        below = np.searchsorted(history, batch.losses, side="left") / max(history.size, 1)
        return np.where(batch.valid, np.maximum(below**self.beta, self.p_min), 0.0)

    def _composer(self, batch: Flat) -> Floats:
        count = int(np.sum(batch.valid))
        order = np.argsort(np.where(batch.valid, batch.losses, np.inf), kind="stable")[:count]
        mass = np.zeros(len(batch))
        mass[order] = ((np.arange(count) + 0.5) / max(count, 1)) ** (1.0 / self.keep - 1.0)
        return mass / max(float(np.sum(mass)), np.finfo(np.float64).tiny)

    def _without_replacement(self, batch: Flat, lot: Floats) -> Flags:
        """The first to come when each comes at a rate of its p: choosing one after the other by p, in law."""
        p = self._composer(batch)
        able = p > 0.0
        arrival = np.where(able, -np.log(lot) / np.where(able, p, 1.0), np.inf)
        count = part(self.keep, int(np.sum(batch.valid)))
        chosen = np.zeros(len(batch), np.bool_)
        chosen[np.argsort(arrival, kind="stable")[:count]] = True
        return chosen


def _history(batch: Flat) -> Floats:
    """The last losses, this batch's included, oldest first."""
    return np.concatenate([batch.past("losses", []), batch.losses[batch.valid]])[-HISTORY:]
