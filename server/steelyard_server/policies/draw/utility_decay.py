"""Data that loses its worth with repetition: each time that an example was drawn, its weight decays.

    weight_i = 0.5^(times drawn_i / c_bucket(i))

The law behind it, for a pool of data with exponent b and half-life c, when n_k examples were seen by the end of the
k-th of its epochs (the last may be partial):

    b_k = b 0.5^(k / c)
    y   = ((a n_1 / 1e5)^b_0 + d) · (n_2 / n_1)^b_1 · (n_3 / n_2)^b_2 ...        `effective_utility`

and for m buckets of equal size together, the exponent of epoch k is the mean of b_j 0.5^(k / (m c_j))
(`mixture_utility`). With `budget`, only the best m buckets are drawn from: those that minimise y for so many examples.

Source: Goyal et al. 2024, objective.py and estimate_best_pool.py of the authors' code for the law. Drawing by
0.5^(times drawn / c) is our adaptation of it: the authors choose a pool once and then go through it in epochs.

Traps: the form for one pool adds d before the product, as in their code, and we keep that for mixtures. The half-life
is counted in draws of the example, which are its epochs; it is a bucket's own, and no default of theirs is universal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from steelyard.source import Source
from steelyard_server.core import exact
from steelyard_server.core.kernels.scores import SOFTMAX
from steelyard_server.policies.columns import SERVED, Derived
from steelyard_server.policies.draw.contract import Drawer, Examples, Float32s, Ids
from steelyard_server.policies.draw.engines.local import ByColumn, MassDraw
from steelyard_server.policies.draw.engines.sparse import SparseDrawer

_LOG2_WEIGHT = "own:log2_weight"
_NOT_DRAWN = -np.inf
_UNIT = 1e5
_MOST_EPOCHS = 10_000
# Further down float32 could not tell one draw from the next, nor is minus infinity to be reached by counting.
_LEAST_LOG2 = 2.0**100

Positive = Annotated[float, Field(gt=0)]


def exponent_of_epoch(b: float, half_life: float, epoch: int) -> float:
    """b_k: the exponent in epoch k (from 0) of a pool with exponent `b`, when it halves every `half_life` epochs."""
    return b * float(exact.exp2(np.array([-epoch / half_life]))[0])


def effective_utility(seen: float, epoch: float, *, a: float, b: float, c: float, d: float) -> float:
    """y, an estimate of the loss after `seen` examples of one pool of `epoch` examples; both above 0."""
    return mixture_utility(seen, epoch, a=a, b=[b], c=[c], d=d)


def mixture_utility(
    seen: float, bucket: float, *, a: float, b: Sequence[float], c: Sequence[float], d: float
) -> float:
    """The same of a mixture of buckets of `bucket` examples each, with exponents `b` and half-lives `c`."""
    epoch, m = bucket * len(b), len(b)
    until = min(epoch, seen)
    utility, number = 0.0, 0
    while True:
        halved = [exponent_of_epoch(one, m * half, number) for one, half in zip(b, c, strict=True)]
        exponent = sum(halved) / m
        if number == 0:
            utility = _power(a * until / _UNIT, exponent) + d
        else:
            before, until = until, min(until + epoch, seen)
            utility *= _power(until / before, exponent)
        if until >= seen:
            return utility
        number += 1


def best_buckets(
    seen: float, bucket: float, *, a: float, b: Sequence[float], c: Sequence[float], d: float
) -> int:
    """How many of the buckets, which stand best first, give the lowest y together; the fewest where equal."""
    utilities = [mixture_utility(seen, bucket, a=a, b=b[:m], c=c[:m], d=d) for m in range(1, len(b) + 1)]
    return utilities.index(min(utilities)) + 1


def _power(base: float, exponent: float) -> float:
    return float(exact.power(np.array([base]), exponent)[0])


class UtilityDecay(MassDraw):
    """A draw that turns from what was drawn often to what was drawn seldom."""

    source: ClassVar[Source] = Source(
        "Scaling Laws for Data Filtering: Data Curation cannot be Compute Agnostic (Goyal et al., 2024)",
        "objective.py, estimate_best_pool.py: the decay of an epoch's exponent and the choice of the pool",
    )
    never_reported: ClassVar[str] = "Drawn like any other: it reads no reports, but how often each was drawn."

    method: Literal["utility_decay"] = "utility_decay"
    bucket: Annotated[str, Field(min_length=1, max_length=128)] | None = "bucket"
    """The static column of the bucket, 0 for the first of `half_lives`. Who has none is treated like the last bucket.
    None: all are in the first."""
    half_lives: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=1024)] = (2.0,)
    """How often an example of each bucket is drawn until its weight is half; our default is 2."""
    budget: Annotated[int, Field(ge=1)] | None = None
    """Draw from the best buckets alone, for a run of so many drawn examples; buckets then stand best first. None: from
    all."""
    bucket_size: Annotated[int, Field(ge=1)] | None = None
    """With a budget: the examples of a bucket."""
    exponents: tuple[Annotated[float, Field(lt=0)], ...] | None = None
    """With a budget: b of each bucket, below 0."""
    a: Positive | None = None
    """With a budget: a of the law, for units of 100,000 examples."""
    d: Annotated[float, Field(ge=0)] = 0.0
    """With a budget: d of the law."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        law = {"bucket_size": self.bucket_size, "exponents": self.exponents, "a": self.a}
        if self.budget is None:
            if given := [name for name, value in law.items() if value is not None]:
                raise ValueError(
                    f"{', '.join(given)} say which buckets a budget is best spent on: expected budget too"
                )
            return self
        if missing := [name for name, value in law.items() if value is None]:
            raise ValueError(f"a budget is spent by the law's parameters: expected {', '.join(missing)} too")
        if self.bucket_size is not None and self.budget > _MOST_EPOCHS * self.bucket_size:
            raise ValueError(
                f"expected a budget of at most {_MOST_EPOCHS} epochs of a bucket, got {self.budget}"
            )
        if len(self.exponents or ()) != len(self.half_lives):
            raise ValueError(
                f"expected as many exponents as half_lives, {len(self.half_lives)}, got {len(self.exponents or ())}"
            )
        return self

    @property
    def derived(self) -> tuple[Derived, ...]:
        return (Derived("count", SERVED),)

    @property
    def static(self) -> tuple[str, ...]:
        return () if self.bucket is None else (self.bucket,)

    @property
    def own(self) -> tuple[str, ...]:
        return (_LOG2_WEIGHT,)

    def objection(self, column: str, values: Float32s) -> str | None:
        known = ~np.isnan(values)
        wrong = known & ((values < 0) | (values >= len(self.half_lives)) | (values != np.floor(values)))
        if column != self.bucket or not wrong.any():
            return None
        at = int(np.flatnonzero(wrong)[0])
        return (
            f"expected a bucket of 0..{len(self.half_lives) - 1} in {column}, one of the {len(self.half_lives)} "
            f"half_lives; got {values[at]:g} at position {at}"
        )

    def drawer(
        self, examples: Examples, *, seed: int, batch_size: int, state: Mapping[str, Any] | None = None
    ) -> Drawer:
        return _DecayDrawer(self, examples, seed, batch_size, state)

    def buckets(self) -> int:
        """How many of the buckets are drawn from: those below."""
        if self.budget is None or self.bucket_size is None or self.exponents is None or self.a is None:
            return len(self.half_lives)
        return best_buckets(
            self.budget, self.bucket_size, a=self.a, b=self.exponents, c=self.half_lives, d=self.d
        )


class _DecayDrawer(SparseDrawer):
    """A draw by the log2 of the weights, a column that follows the counts and the buckets."""

    def __init__(
        self,
        draw: UtilityDecay,
        examples: Examples,
        seed: int,
        batch_size: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        self._bucket = draw.bucket
        self._half_lives = np.array(draw.half_lives)
        self._kept = draw.buckets()
        self._filled = state is not None and bool(state["filled"])
        by = ByColumn(_LOG2_WEIGHT, (SOFTMAX, 1.0), 0.0, draw.floor, draw.sampling)
        super().__init__(by, _NOT_DRAWN, examples, seed, batch_size, state)

    def prepare(self, step: int) -> None:
        if not self._filled:
            self._filled = True
            self.changed(np.arange(self._examples.size))

    def changed(self, ids: Ids) -> None:
        # Before the first draw nothing of it is in the column, and then all is.
        if self._filled:
            self._examples.put(_LOG2_WEIGHT, ids, self._weights_of(ids))
            super().changed(ids)

    def grew(self) -> None:
        if self._filled:
            new = np.arange(self._tree.size, self._examples.size)
            self._examples.put(_LOG2_WEIGHT, new, self._weights_of(new))
        super().grew()

    def get_state(self) -> Mapping[str, Any]:
        return {**super().get_state(), "filled": self._filled}

    @property
    def never_reported(self) -> int | None:
        return None

    def _weights_of(self, ids: Ids) -> Float32s:
        """log2 of the weights, float32[m]; what is not drawn has minus infinity."""
        columns, last = self._examples.columns, len(self._half_lives) - 1
        drawn = np.nan_to_num(columns[f"count_{SERVED}"][ids].astype(np.float64))
        buckets = np.zeros(len(ids), np.int64)
        if self._bucket is not None:
            # One that came before the policy did may be out of range.
            known = np.nan_to_num(columns[self._bucket][ids].astype(np.float64), nan=last)
            buckets = np.clip(known, 0, last).astype(np.int64)
        log2 = np.maximum(-drawn / self._half_lives[buckets], -_LEAST_LOG2)
        return np.where(buckets < self._kept, log2, _NOT_DRAWN).astype(np.float32)
