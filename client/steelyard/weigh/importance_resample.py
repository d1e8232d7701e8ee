"""Importance resampling: draw three times what is trained on, and train on a resample by score where that pays.

Of v candidates with scores s_i >= 0 (the loss, or a reported bound of the gradient's norm), g_i = s_i / sum_j s_j and
k = floor(v / presample):

    gate open:  k are drawn with replacement by g;   w_i = (times i was drawn) (n/k) / (v g_i)
    gate shut:  k different ones are drawn evenly;   w_i = n/k for them
    V   = 1 / sqrt(1 - sum_i (g_i - 1/v)^2 / sum_i g_i^2) = sqrt(v sum_i g_i^2)      how much variance is saved
    ema <- 0.9 ema + 0.1 V, from 0;   the gate is open while the ema of the steps before is above tau_th

Either way the mean of w_i L_i has the mean loss of the candidates as its expectation. The weights sum to n only in
expectation. tau_th = (presample + 3) / 3 weighs the time of the resample's forward passes against what is saved.

What differs from the authors' code: there, the candidates are drawn, scored and resampled ahead of a step, and while
the gate is shut no more than k are drawn. A sampler that hands out batches before it knows their losses cannot: here
the batch is the candidates, the gate concerns the weighing only, and the forward pass over the batch is always paid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from steelyard.source import Source
from steelyard.weigh import checks
from steelyard.weigh.flat import Flat, Floats, part
from steelyard.weigh.lots import lots
from steelyard.weigh.rule import Array, Context, Past, Reads, Rule

_MOMENTUM = 0.9


@dataclass(frozen=True)
class ImportanceResample(Rule):
    """An unbiased resample of the batch, by score when the saved variance is worth it."""

    method: ClassVar[str] = "importance_resample"
    source: ClassVar[Source] = Source(
        "Not All Samples Are Created Equal: Deep Learning with Importance Sampling (Katharopoulos and Fleuret, 2018)",
        "resampling and its condition; idiap/importance-sampling samplers.py, reweighting.py",
    )
    never_reported: ClassVar[str] = (
        "Nothing is remembered of examples; a candidate whose score is not known is not resampled."
    )
    reads: ClassVar[Reads] = "losses"
    selects: ClassVar[bool] = True

    presample: float = 3.0
    """How many times the trained examples the candidates are."""
    tau_th: float | None = None
    """The saved variance above which the gate opens; None: (presample + 3) / 3. 0: from the second step on."""
    score: str = "loss"
    """What is resampled by: the loss, or another signal of the report; below 0 counts as 0."""

    def __post_init__(self) -> None:
        presample = checks.number(f"{self.method}.presample", self.presample, 1.0, 1e6)
        object.__setattr__(self, "presample", presample)
        object.__setattr__(self, "score", checks.text(f"{self.method}.score", self.score))
        if self.tau_th is not None:
            object.__setattr__(self, "tau_th", checks.number(f"{self.method}.tau_th", self.tau_th, 0.0, 1e12))

    @property
    def signals(self) -> tuple[str, ...]:
        """The score, if it is not the loss."""
        return () if self.score == "loss" else (self.score,)

    @property
    def remembers(self) -> bool:
        """The ema of the saved variance."""
        return True

    @property
    def random(self) -> bool:
        """Yes: the resample is drawn by lot."""
        return True

    @property
    def threshold(self) -> float:
        """tau_th, its default worked out."""
        return (self.presample + 3.0) / 3.0 if self.tau_th is None else self.tau_th

    def is_open(self, context: Context) -> bool:
        """Whether this step is resampled by score."""
        return float(_ema(context)[0]) > self.threshold

    def weights(self, losses: Array, context: Context) -> Array:
        """The resample's weights, 0 for what was not drawn; see steelyard.weigh.rule."""
        batch = Flat(self, losses, context)
        places, g = self._law(batch)
        weights = np.zeros(len(batch))
        if places.size == 0:
            return batch.shaped(weights)
        k = part(1.0 / self.presample, places.size)
        lot = lots(context.seed, context.step, len(batch))
        if self.is_open(context):
            edges = np.cumsum(g)
            drawn = np.searchsorted(edges, lot[:k] * edges[-1], side="right")
            times = np.bincount(drawn, minlength=g.size)
            once = batch.n / (k * g.size * np.where(times > 0, g, 1.0))
            weights[places] = np.where(times > 0, times * once, 0.0)
        else:
            weights[places[np.argsort(lot[places], kind="stable")[:k]]] = batch.n / k
        return batch.shaped(weights)

    def remember(self, losses: Array, context: Context) -> Past:
        """The saved variance: "ema", float64[1]."""
        _, g = self._law(Flat(self, losses, context))
        saved = float(np.sqrt(g.size * np.sum(g * g))) if g.size else 1.0
        return {"ema": _MOMENTUM * _ema(context) + (1.0 - _MOMENTUM) * saved}

    def _law(self, batch: Flat) -> tuple[np.ndarray[tuple[int], np.dtype[np.intp]], Floats]:
        """The places of the candidates, and their g, which is even where no score is above 0."""
        score = batch.losses if self.score == "loss" else batch.column(self.score)
        places = np.flatnonzero(batch.valid & ~np.isnan(score))
        score = np.maximum(score[places], 0.0)
        top = float(np.max(score, initial=0.0))
        # By the highest first: neither the sum nor a square leaves the range of a float.
        score = score / top if top > 0.0 else np.ones(places.size)
        return places, score / max(float(np.sum(score)), 1.0)


def _ema(context: Context) -> Floats:
    return np.asarray((context.past or {}).get("ema", np.zeros(1)), np.float64)
