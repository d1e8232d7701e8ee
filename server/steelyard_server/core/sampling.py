"""Which ids a batch takes from the mass line, and the exact probability of each.

The three modes differ in how B targets are laid on the line [0, M), M being the total mass; the id under a
target is drawn. In each, the expected number of copies of an id of mass w is in integers what `probability`
says, times B.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from steelyard_server.core.random import Bits
from steelyard_server.core.tree import Law, MassTree

MAX_BATCH = 2**31
"""Above this the 64-bit products of the targets could wrap."""

_Words = npt.NDArray[np.uint64]


class Sampling(enum.StrEnum):
    """How the targets of a batch are laid on the mass line."""

    INDEPENDENT = "independent"
    """With replacement, each target uniform on the whole line."""
    STRATIFIED = "stratified"
    """With replacement, one target uniform in each of B equal parts of the line."""
    DISTINCT = "distinct"
    """No id twice: ids of B * w >= M for certain, the others by one comb of equally spaced targets."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A drawn batch, in batch order.

    `ids` is int64[B]; `probability` float64[B] is the expected number of copies of the id in the batch,
    divided by B.
    """

    ids: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]


def sample(tree: MassTree, law: Law, batch_size: int, mode: Sampling, draw: Bits, order: Bits) -> Sample:
    """A batch of `batch_size` ids, drawn with `draw` and put in a random order with `order`.

    ValueError when nothing can be drawn, when `distinct` is to draw more ids than can be drawn, when the
    total mass is not below 2**63, or unless 1 <= batch_size <= 2**31.
    """
    if not 1 <= batch_size <= MAX_BATCH:
        raise ValueError(f"expected a batch size in 1..2**31, got {batch_size}")
    total = tree.total(law)
    if total == 0:
        raise ValueError(
            f"expected an id that can be drawn, got none: {tree.live} of {tree.size} live, total mass 0"
        )
    if mode is Sampling.DISTINCT:
        ids, probability = _distinct(tree, law, batch_size, draw)
    else:
        if mode is Sampling.INDEPENDENT:
            targets = draw.below(total, batch_size)
        else:
            targets = comb(total, batch_size, draw.below(total, batch_size))
        ids, masses = tree.find_with_mass(targets, law)
        probability = masses / np.float64(total)
    shuffled = order.order(batch_size)
    return Sample(ids.take(shuffled), probability.take(shuffled))


def distinct_copies(
    tree: MassTree, law: Law, ids: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """How likely each of `ids` is among `count` distinct ones: min(1, count * p) after capping, float64[n].

    ValueError where fewer than `count` ids can be drawn.
    """
    if count == 0:
        return np.zeros(len(ids))
    _check_enough(tree, law, count)
    certain, rest = _certain(tree, law, count)
    teeth = count - certain.size
    copies = np.where(np.isin(ids, certain), 1.0, 0.0)
    if teeth:
        others = copies == 0
        copies[others] = tree.effective(ids[others], law) * np.uint64(teeth) / np.float64(rest)
    return copies


def comb(total: int, teeth: int, offset: _Words) -> _Words:
    """floor((j * total + offset_j) / teeth) for j = 0..teeth-1, exact, as uint64[teeth], ascending.

    `offset` is uint64[teeth] or one number for all, uint64[1], below `total`; total < 2**63, teeth <= 2**31.

    Let total = q * teeth + r with r < teeth. Then j * total + offset = teeth * (j * q) + (j * r + offset),
    so the floor is j * q + floor((j * r + offset) / teeth). With j < teeth: j * q <= total < 2**63; j * r <
    teeth**2 <= 2**62 and offset < 2**63, so their sum is below 2**64; the result is at most (teeth * total -
    1) / teeth < total. Nothing wraps.
    """
    quotient, remainder = divmod(total, teeth)
    tooth = np.arange(teeth, dtype=np.uint64)
    return tooth * np.uint64(quotient) + (tooth * np.uint64(remainder) + offset) // np.uint64(teeth)


def law_for(tree: MassTree, unseen: int, floor: float) -> Law:
    """The law that gives never-reported ids the mass `unseen` and mixes in a share `floor` of uniform.

    With W the mass before mixing, a share f of uniform over the live ids needs an extra mass c on each such
    that c * live / (W + c * live) = f. c is the nearest integer, and at least 1 when f > 0, so that no live
    id is out of reach. Exact rational arithmetic: the same c on every machine. ValueError unless 0 <= floor
    < 1.
    """
    if not 0.0 <= floor < 1.0:
        raise ValueError(f"expected a floor in [0, 1), got {floor}")
    if floor == 0.0:
        return Law(unseen=unseen)
    over, under = _odds(floor)
    mass = tree.mass + unseen * tree.unseen
    extra = _nearest(over * mass, under * max(tree.live, 1))
    return Law(unseen=unseen, extra=max(extra, 1))


@lru_cache(maxsize=64)
def _odds(share: float) -> tuple[int, int]:
    """share / (1 - share) as a fraction of integers."""
    odds = Fraction(share) / (1 - Fraction(share))
    return odds.numerator, odds.denominator


def _nearest(over: int, under: int) -> int:
    """over / under rounded to the nearest integer, half to even."""
    whole, rest = divmod(2 * over + under, 2 * under)
    return whole - (1 if rest == 0 and whole % 2 else 0)


def _distinct(
    tree: MassTree, law: Law, batch_size: int, draw: Bits
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Systematic sampling: inclusion probability min(1, B * p) after capping, no id twice.

    Once no id is left with teeth * w >= rest, the teeth of the comb stand at least the widest id apart, so
    none is hit twice, and an id of mass w is hit for teeth * w of the `rest` equally likely offsets.
    """
    _check_enough(tree, law, batch_size)
    total = tree.total(law)
    # An id that is taken for certain is as wide as the teeth of a comb over all ids stand apart, so the comb hits it:
    # mostly there is none, and the comb is the batch.
    start = draw.position
    ids, masses, greatest = tree.comb(batch_size, int(draw.below(total, 1)[0]), law)
    if greatest * batch_size < total:
        return ids, masses * np.uint64(batch_size) / np.float64(total) / batch_size
    draw.go_back(start)
    certain, rest = _certain(tree, law, batch_size)
    teeth = batch_size - certain.size
    sure = np.full(certain.size, 1.0 / batch_size)
    if teeth == 0:
        return certain, sure
    targets = comb(rest, teeth, draw.below(rest, 1))
    ids, masses = tree.find_with_mass(_past(targets, certain, tree, law), law)
    # teeth * w < rest < 2**63 for every id that is not certain.
    probability = masses * np.uint64(teeth) / np.float64(rest) / batch_size
    if certain.size == 0:
        return ids, probability
    return np.concatenate([certain, ids]), np.concatenate([sure, probability])


def _check_enough(tree: MassTree, law: Law, batch_size: int) -> None:
    drawable = tree.live if law.unseen + law.extra else tree.live - tree.unseen
    if drawable < batch_size:
        raise ValueError(
            f"expected at least {batch_size} ids that can be drawn for a distinct batch, got {drawable}"
        )


def _certain(tree: MassTree, law: Law, batch_size: int) -> tuple[npt.NDArray[np.int64], int]:
    """The ids taken for certain, ascending, and the mass of all others.

    Taking an id for certain raises the share of the others, so it goes on until no more qualify. The
    threshold never rises: removing w >= rest / teeth leaves (rest - w) / (teeth - 1) <= rest / teeth.
    """
    total = tree.total(law)
    certain = np.zeros(0, np.int64)
    rest = total
    while (teeth := batch_size - certain.size) > 0:
        grown = tree.at_least(-(-rest // teeth), law, limit=batch_size)
        if grown.size == certain.size:
            break
        certain = grown
        rest = total - int(tree.effective(certain, law).sum(dtype=np.uint64))
    return certain, rest


def _past(targets: _Words, certain: npt.NDArray[np.int64], tree: MassTree, law: Law) -> _Words:
    """Targets on the mass line with the certain ids cut out, as targets on the whole line."""
    if certain.size == 0:
        return targets
    masses = tree.effective(certain, law)
    skipped = np.zeros(certain.size + 1, np.uint64)
    np.cumsum(masses, out=skipped[1:])
    # Where each cut is on the shortened line: a target there or beyond lies past the id that was cut out.
    cuts = tree.prefix(certain, law) - skipped[:-1]
    return targets + skipped[np.searchsorted(cuts, targets, side="right")]
