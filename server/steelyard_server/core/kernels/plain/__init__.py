"""The kernels in NumPy: what runs where nothing compiled can, and what the compiled ones are held against."""

from steelyard_server.core.kernels.plain.build import build, squares
from steelyard_server.core.kernels.plain.find import comb, find
from steelyard_server.core.kernels.plain.permute import permute
from steelyard_server.core.kernels.plain.prefix import at_least, masses, prefix
from steelyard_server.core.kernels.plain.reweigh import reweigh
from steelyard_server.core.kernels.plain.scores import leaves_of
from steelyard_server.core.kernels.plain.update import ids_within, update
from steelyard_server.core.kernels.plain.words import below, order

__all__ = [
    "at_least",
    "below",
    "build",
    "comb",
    "find",
    "ids_within",
    "leaves_of",
    "masses",
    "order",
    "permute",
    "prefix",
    "reweigh",
    "squares",
    "update",
]
