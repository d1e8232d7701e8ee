"""REDUCR: reducible losses, chosen for the sake of the class that does worst.

Every example has a class c_i and, for each class c, the loss reference_ci under a model trained for that class.

    excess_ci = max(0, L_i - reference_ci)
    u_c       = softmax over classes of -eta total_c                      how much class c matters
    score_i   = sum_c u_c excess_ci;   the top `keep` are chosen: w_i = n/k for them, 0 for the others
    total_c  <- total_c + sum over the chosen of (excess_ci - holdout_c)

A class whose own loss holdout_c stays high gathers a low total, and gains weight.

What differs from the source: there, holdout_c is the model's loss on held-out examples of class c. None are reported
here, so the mean loss of that class in the batch, before the choice, stands for it; a class that is not in the batch
keeps its last one. Repeated training on few examples of a class makes that too low, and its weight with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.flat import Flags, Flat, Floats, bounded, highest, part
from steelyard.weigh.rule import Array, Context, Past, Reads, Rule


@dataclass(frozen=True)
class Reducr(Rule):
    """Columns: `group`, the class 0..K-1, and `reference_0` to `reference_{K-1}`, one loss for each class."""

    method: ClassVar[str] = "reducr"
    source: ClassVar[Source] = Source(
        "REDUCR: Robust Data Downsampling using Class Priority Reweighting (Bankes et al., 2023)",
        "class priority weights; williambankes/REDUCR",
    )
    never_reported: ClassVar[str] = (
        "Only the classes are remembered; an example that lacks a reference is never chosen."
    )
    reads: ClassVar[Reads] = "losses"
    selects: ClassVar[bool] = True

    classes: int = 2
    """K, at most 1000."""
    group: str = "group"
    """The column of the class; an example of none serves all classes and tells of none."""
    reference: str = "reference"
    """What the names of the K columns of reference losses begin with."""
    keep: float = 0.1
    """The part of the batch that is chosen, rounded down but at least one example."""
    eta: float = 1e-4
    """How fast a class that does badly gains weight."""

    def __post_init__(self) -> None:
        fields = {
            "classes": int(
                checks.number(
                    f"{self.method}.classes", checks.count(f"{self.method}.classes", self.classes), 1, 1000
                )
            ),
            "group": checks.text(f"{self.method}.group", self.group),
            "reference": checks.text(f"{self.method}.reference", self.reference),
            "keep": checks.share(f"{self.method}.keep", self.keep),
            "eta": checks.number(f"{self.method}.eta", self.eta, 0.0, 1e3),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def references(self) -> tuple[str, ...]:
        """The columns of reference losses, by class."""
        return tuple(f"{self.reference}_{c}" for c in range(self.classes))

    @property
    def columns(self) -> tuple[str, ...]:
        """The class and the reference losses."""
        return (self.group, *self.references)

    @property
    def remembers(self) -> bool:
        """The totals and the last losses of the classes."""
        return True

    def priorities(self, context: Context) -> Floats:
        """u: float64[K], sums to 1; how much each class matters at this step."""
        total = _of_past(context, "total", self.classes)
        exponents = np.maximum(-self.eta * (total - np.min(total)), -700.0)
        u = _exp(exponents)
        return u / np.sum(u)

    def weights(self, losses: Array, context: Context) -> Array:
        """n/k for the examples that serve the classes best, 0 for the others; see steelyard.weigh.rule."""
        batch = Flat(self, losses, context)
        return batch.chosen(self._choose(batch, context)[0])

    def remember(self, losses: Array, context: Context) -> Past:
        """What the chosen gained each class, "total", and its last mean loss, "holdout": float64[K]."""
        batch = Flat(self, losses, context)
        chosen, excess = self._choose(batch, context)
        group = batch.column(self.group)
        holdout = _of_past(context, "holdout", self.classes).copy()
        for c in range(self.classes):
            of_class = batch.valid & (group == c)
            if np.any(of_class):
                holdout[c] = np.mean(batch.losses[of_class])
        gained = np.sum(np.where(chosen, excess, 0.0), axis=1) - int(np.sum(chosen)) * holdout
        total = _of_past(context, "total", self.classes) + gained
        return {"total": bounded(total), "holdout": holdout}

    def _choose(self, batch: Flat, context: Context) -> tuple[Flags, Floats]:
        """The chosen, bool[m], and the excess float64[K, m], 0 where a reference is not known."""
        references = np.stack([batch.column(name) for name in self.references])
        able = batch.valid & ~np.any(np.isnan(references), axis=0)
        excess = np.where(able, np.maximum(batch.losses - references, 0.0), 0.0)
        score = np.sum(self.priorities(context)[:, np.newaxis] * excess, axis=0)
        return highest(score, able, part(self.keep, int(np.sum(batch.valid)))), excess


def _of_past(context: Context, name: str, classes: int) -> Floats:
    """A number for each class, 0 at first; so too where the number of classes was another."""
    past = np.asarray((context.past or {}).get(name, np.zeros(classes)), np.float64)
    return past if past.shape == (classes,) else np.zeros(classes)


def _exp(x: Floats) -> Floats:
    """exp of x <= 0 to 8 digits, by multiplication only: what is chosen is remembered, on every machine the same."""
    y = x / 2.0**20
    grown = 1.0 + y + y * y * 0.5 + y * y * y / 6.0
    for _ in range(20):
        grown = grown * grown
    return np.asarray(grown)
