"""How a score becomes a weight: three rules, each monotone, of which the kernels take the number.

POWER     score**factor, a negative score counting as 0; factor above 0
FLAT      1 for every score
SOFTMAX   2**(score * factor), factor above 0
"""

from __future__ import annotations

POWER = 0
FLAT = 1
SOFTMAX = 2

MAX_LOG2 = 2.0**40
"""Weights of 2**(score * factor) further out than this are as good as equal; it keeps every scale an exact float."""
