"""The kernels in machine code. Importing this compiles them, some seconds, or finds them in numba's cache."""

from steelyard_server.core.kernels.compiled.build import build, squares
from steelyard_server.core.kernels.compiled.find import find
from steelyard_server.core.kernels.compiled.permute import permute
from steelyard_server.core.kernels.compiled.prefix import at_least, masses, prefix
from steelyard_server.core.kernels.compiled.scores import leaves_at, leaves_of
from steelyard_server.core.kernels.compiled.update import ids_within, update
from steelyard_server.core.kernels.compiled.words import below, order

__all__ = [
    "at_least",
    "below",
    "build",
    "find",
    "ids_within",
    "leaves_at",
    "leaves_of",
    "masses",
    "order",
    "permute",
    "prefix",
    "squares",
    "update",
]
