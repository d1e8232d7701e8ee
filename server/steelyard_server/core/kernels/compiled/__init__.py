"""The kernels in machine code. Importing this compiles them, some seconds, or finds them in numba's cache."""

from steelyard_server.core.kernels.compiled.build import build, squares
from steelyard_server.core.kernels.compiled.find import comb, find
from steelyard_server.core.kernels.compiled.permute import permute
from steelyard_server.core.kernels.compiled.prefix import at_least, masses, prefix
from steelyard_server.core.kernels.compiled.reweigh import reweigh
from steelyard_server.core.kernels.compiled.scores import leaves_of
from steelyard_server.core.kernels.compiled.update import ids_within, update
from steelyard_server.core.kernels.compiled.words import below, order

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
