"""A draw in proportion to a score: masses in a list, the law by fractions, ids found by walking the list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from twin.bits import DRAW, ORDER, Words
from twin.masses import MAX_MASS, is_known, log2_weight, mass

COARSE_MEAN = 4096


class Scored:
    """The scale of the masses and the greatest score so far; everything else is computed anew from the scores.

    The scale is the finest that gives the greatest weight 2^28, so that it may grow to 2^31.5. It is taken anew when a
    weight is greater than that, or when the mean mass has become small.
    """

    def __init__(self, draw: Mapping[str, Any], scores: Sequence[float], retired: set[int]) -> None:
        self.draw = draw
        self.scale = 28
        self.greatest: float | None = None
        self.coarse_mean = COARSE_MEAN
        now = self.greatest_of(scores, retired)
        self.raise_greatest(now)
        self.fit(self.needed(now, any(map(math.isnan, scores))), len(scores))

    # ---- what has changed ----

    def changed(self, ids: Sequence[int], scores: Sequence[float], retired: set[int]) -> None:
        new = self.greatest_of([scores[i] for i in ids if i not in retired], set())
        self.raise_greatest(new)
        self.settle(new, scores, retired)

    def grew(self, before: int, scores: Sequence[float], retired: set[int]) -> None:
        narrower = self.most_bits(len(scores)) < self.most_bits(before)
        self.settle(self.greatest_of(scores, retired) if narrower else None, scores, retired)

    def settle(self, new: float | None, scores: Sequence[float], retired: set[int]) -> None:
        """`new` is the greatest score that has just come."""
        live = [score for i, score in enumerate(scores) if i not in retired]
        seen = [mass(self.draw, score, self.scale) for score in live if is_known(score)]
        unseen = len(seen) < len(live)
        if not self.overflows(self.needed(new, unseen), len(scores)) and sum(seen) >= self.coarse_mean * len(
            seen
        ):
            return
        needed = self.needed(self.greatest_of(scores, retired), unseen)
        if self.overflows(needed, len(scores)) or self.finest(needed, len(scores)) > self.scale:
            self.fit(needed, len(scores))
            seen = [mass(self.draw, score, self.scale) for score in live if is_known(score)]
        if seen:
            mean = sum(seen) // len(seen)
            self.coarse_mean = COARSE_MEAN if mean >= COARSE_MEAN else mean // 4

    # ---- the scale ----

    def greatest_of(self, scores: Sequence[float], retired: set[int]) -> float | None:
        """The greatest score with a weight above 0."""
        known = [score for i, score in enumerate(scores) if i not in retired and is_known(score)]
        top = max(known, default=-math.inf)
        return top if top > -math.inf and log2_weight(self.draw, top) is not None else None

    def raise_greatest(self, score: float | None) -> None:
        if score is not None and (self.greatest is None or score > self.greatest):
            self.greatest = score

    def unseen_score(self) -> float | None:
        """The score whose weight an example without one has, None for weight 1."""
        return self.draw["unseen"] if isinstance(self.draw["unseen"], float) else self.greatest

    def needed(self, score: float | None, unseen: bool) -> Decimal | None:
        """log2 of the greatest weight that the scale must hold."""
        weights = [] if score is None else [log2_weight(self.draw, score)]
        if unseen and self.draw["unseen"] != "mean":
            other = self.unseen_score()
            weights.append(Decimal(0) if other is None else log2_weight(self.draw, other))
        return max((weight for weight in weights if weight is not None), default=None)

    def most_bits(self, size: int) -> float:
        """Beyond this a mass may not grow, so that the total with the floor stays below 2^63."""
        floor: int = math.ceil(1 / (1 - self.draw["floor"])) - 1
        return min(31.5, 62.5 - size.bit_length() - floor.bit_length())

    def finest(self, needed: Decimal | None, size: int) -> int:
        return self.scale if needed is None else int(self.most_bits(size)) - 3 - math.ceil(needed)

    def fit(self, needed: Decimal | None, size: int) -> None:
        self.scale = self.finest(needed, size)

    def overflows(self, needed: Decimal | None, size: int) -> bool:
        return needed is not None and needed + self.scale > self.most_bits(size)

    # ---- the law ----

    def masses(self, scores: Sequence[float], retired: set[int]) -> list[int]:
        """What each id weighs in the next draw; 0 where it is retired."""
        live = [i for i in range(len(scores)) if i not in retired]
        plain = {i: mass(self.draw, scores[i], self.scale) for i in live if is_known(scores[i])}
        unseen = self.unseen_mass(list(plain.values()))
        total = sum(plain.values()) + unseen * (len(live) - len(plain))
        extra = 0
        if self.draw["floor"]:
            share = Fraction(self.draw["floor"])
            extra = max(1, round(share / (1 - share) * Fraction(total, max(len(live), 1))))
        return [0 if i in retired else plain.get(i, unseen) + extra for i in range(len(scores))]

    def unseen_mass(self, seen: list[int]) -> int:
        if self.draw["unseen"] == "mean" and seen:
            return max(1, sum(seen) // len(seen))
        # Where no id has a score now there is no mean of them: the greatest that any has had stands in.
        score = self.unseen_score()
        if score is None:
            return max(1, min(MAX_MASS, round(Fraction(2) ** self.scale)))
        return mass(self.draw, score, self.scale)

    # ---- the draw ----

    def batch(self, masses: list[int], batch_size: int, seed: int, step: int) -> list[tuple[int, float]]:
        """(id, probability) in batch order."""
        words, total = Words(seed, DRAW, step), sum(masses)
        if self.draw["sampling"] == "distinct":
            chosen = distinct(masses, batch_size, words)
        else:
            offsets = [words.below(total) for _ in range(batch_size)]
            if self.draw["sampling"] == "stratified":
                offsets = [(j * total + offset) // batch_size for j, offset in enumerate(offsets)]
            ids = [under(masses, target) for target in offsets]
            chosen = [(i, masses[i] / total) for i in ids]
        return [chosen[at] for at in Words(seed, ORDER, step).order(batch_size)]


def distinct(masses: list[int], batch_size: int, words: Words) -> list[tuple[int, float]]:
    """Ids of batch_size * p >= 1 for certain, which raises the share of the others; then one comb over the rest."""
    certain, rest = split(masses, batch_size)
    teeth = batch_size - len(certain)
    result = [(i, 1.0 / batch_size) for i in sorted(certain)]
    if teeth:
        total = sum(rest)
        offset = words.below(total)
        for tooth in range(teeth):
            i = under(rest, (tooth * total + offset) // teeth)
            # Rounded where the share of the rest becomes a double, and again in the division by the batch size.
            result.append((i, float(Fraction(rest[i] * teeth, total)) / batch_size))
    return result


def distinct_copies(masses: list[int], count: int) -> list[float]:
    """How likely each id is among `count` that are drawn so."""
    certain, rest = split(masses, count)
    teeth = count - len(certain)
    return [
        1.0 if i in certain else float(Fraction(one * teeth, sum(rest))) if teeth else 0.0
        for i, one in enumerate(rest)
    ]


def split(masses: list[int], count: int) -> tuple[set[int], list[int]]:
    """The ids that are drawn for certain, and the masses without theirs."""
    certain: set[int] = set()
    while True:
        rest = [0 if i in certain else one for i, one in enumerate(masses)]
        teeth = count - len(certain)
        more = {i for i, one in enumerate(rest) if teeth and one and one * teeth >= sum(rest)}
        if not more:
            return certain, rest
        certain |= more


def under(masses: list[int], target: int) -> int:
    """The id at a point of the line on which the masses lie end to end."""
    for i, one in enumerate(masses):
        if target < one:
            return i
        target -= one
    raise AssertionError(f"{target} beyond the line")
