"""How many of a batch each group gives: one comb over integer masses, some groups capped.

Group g has the integer mass m_g, M is their sum. Systematic sampling gives it floor or ceil of B · m_g / M places,
and B · m_g / M of them on average over the M equally likely offsets of the comb, exactly.

A group that cannot fill its share (a draw without repeats has at most as many places as the group has examples) is
capped: it gives all that it can, and what it leaves is shared by the others in proportion to their masses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steelyard_server.core.random import Bits
from steelyard_server.core.sampling import comb

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]

_TOTAL_BITS = 42
"""Masses sum to less than 2^42: their products with a batch size, which is at most 2^20, fit 63 bits."""


def integer_masses(masses: Float64s) -> Int64s:
    """Masses in whole quanta, float64[K] -> int64[K]: the greatest is 2^42 / K or a little less, and one above 0 has
    a quantum at least. ValueError where one is negative or no number."""
    if not np.isfinite(masses).all() or (masses < 0).any():
        raise ValueError(f"expected finite masses of 0 and more; got {masses.tolist()}")
    greatest = masses.max(initial=0.0)
    if greatest == 0:
        return np.zeros(len(masses), np.int64)
    bits = _TOTAL_BITS - len(masses).bit_length()
    quanta = np.rint(masses / greatest * float(1 << bits)).astype(np.int64)
    return np.where(masses > 0, np.maximum(quanta, 1), 0)


@dataclass(frozen=True, slots=True, eq=False)
class Shares:
    """What each group gives: `fixed` places for certain, int64[K], and those of `teeth` that a comb over `masses`,
    int64[K], gives it. A group has one or the other."""

    fixed: Int64s
    masses: Int64s
    teeth: int

    @property
    def total(self) -> int:
        return int(self.masses.sum())

    @property
    def least(self) -> Int64s:
        """The number of places of each group that is certain, int64[K]; it has these or one more."""
        return self.fixed + self.teeth * self.masses // max(self.total, 1)

    @property
    def chance(self) -> Float64s:
        """How likely it is that a group has one place more than `least`, float64[K] in [0, 1)."""
        total = max(self.total, 1)
        return np.asarray((self.teeth * self.masses % total) / np.float64(total))

    @property
    def expected(self) -> Float64s:
        """The expected number of places of each group, float64[K]."""
        return np.asarray(self.fixed + self.teeth * self.masses / np.float64(max(self.total, 1)))

    def counts(self, lots: Bits) -> Int64s:
        """A number of places for each group, int64[K]; they sum to the batch size."""
        if not self.teeth:
            return self.fixed
        targets = comb(self.total, self.teeth, lots.below(self.total, 1)).astype(np.int64)
        groups = np.searchsorted(np.cumsum(self.masses), targets, side="right")
        return self.fixed + np.bincount(groups, minlength=len(self.masses))


def shares(masses: Int64s, sizes: Int64s, most: Int64s, batch_size: int) -> Shares:
    """Who gives how much of `batch_size` places: `masses` int64[K] of less than 2^42 in sum; `sizes`, int64[K], how
    many examples a group has; and `most`, int64[K], how many places it can fill. Where the groups that have a mass
    cannot fill the batch, the others fill it in proportion to their sizes.

    ValueError where all together cannot.
    """
    most = np.minimum(most, batch_size)
    if (there := int(most.sum())) < batch_size:
        raise ValueError(
            f"expected groups that can fill {batch_size} places, got {there} in all groups together"
        )
    comb_masses = np.where(most > 0, masses, 0)
    fixed = np.zeros(len(masses), np.int64)
    while (teeth := batch_size - int(fixed.sum())) > 0:
        total = int(comb_masses.sum())
        if total == 0:
            comb_masses = np.where((fixed == 0) & (most > 0), sizes, 0)
            continue
        # Capping a group raises what the others give, so it goes on until no more must be capped.
        over = teeth * comb_masses > np.minimum(most, teeth) * total
        if not over.any():
            break
        fixed = np.where(over, most, fixed)
        comb_masses = np.where(over, 0, comb_masses)
    return Shares(fixed, comb_masses if teeth else np.zeros_like(fixed), teeth)
