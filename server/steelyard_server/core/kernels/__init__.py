"""The inner loops of the core, in NumPy and compiled; `active` is the set in use.

    from steelyard_server.core import kernels
    kernels.active.find(...)

Both sets give the same bits, so it does not matter to any result which is in use, nor when that changes: a process
begins with NumPy and takes over what is compiled once that is ready (`use`). Look it up at each call.
"""

from __future__ import annotations

from steelyard_server.core.kernels import plain
from steelyard_server.core.kernels.contract import Kernels

active: Kernels = plain


def use(kernels: Kernels) -> None:
    """Takes `kernels` for every call from here on, in all threads."""
    global active
    active = kernels


def load() -> Kernels:
    """The compiled kernels, proven equal to the plain ones on a small tree.

    The first time in a process this imports numba and reads its cache, half a second; without a cache it compiles, ten
    seconds and more with the interpreter lock held. ImportError where numba is not there or cannot work, RuntimeError
    where the kernels do not give the same bits.
    """
    from steelyard_server.core.kernels import compiled as found
    from steelyard_server.core.kernels.proof import differences

    wrong = differences(found, plain)
    if wrong:
        raise RuntimeError(f"the compiled kernels and NumPy disagree here on {', '.join(wrong)}")
    return found
