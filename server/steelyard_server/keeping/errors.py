"""What can go wrong with keeping. Messages are for an operator.

KeepingError
├── NotWholeError   a backup is not all there, or not what its manifest says: it is not used
├── RefusedError    what was asked would overwrite something, or is not allowed: nothing was done
├── BusyError       the like of it is under way already
└── DiedError       the process that did it died
    └── BrokenOffError  it took too long, or was ended on purpose: nothing is known of what it looked at
"""

from __future__ import annotations


class KeepingError(Exception):
    """Anything that this package can say."""


class NotWholeError(KeepingError):
    """A backup without a whole manifest, or with parts that are not those of its manifest."""


class RefusedError(KeepingError):
    """Nothing was done."""


class BusyError(KeepingError):
    """One is under way; ask again."""


class DiedError(KeepingError):
    """The process that did the work ended otherwise than by saying how it went."""


class BrokenOffError(DiedError):
    """The work was ended before it was done."""


KINDS: dict[str, type[KeepingError]] = {
    kind.__name__: kind for kind in (KeepingError, NotWholeError, RefusedError, BusyError, DiedError)
}
