"""How much a principal may ask for: calls and bytes a second, as token buckets. Pure: the time comes from outside.

A bucket of our own, since the libraries for it count hits in a store of theirs: here a message costs its size, which
may be more than the bucket holds, a stream has to know how long to wait, and one event loop needs no store.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """None: as much as the server can."""

    calls_per_second: float | None = None
    bytes_per_second: float | None = None


UNLIMITED = Quota()


class Bucket:
    """Fills by `rate` a second up to one second's worth (at least 1). What is spent may exceed what is there: the debt
    is waited for by who comes next."""

    __slots__ = ("_at", "_level", "capacity", "rate")

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.capacity = max(rate, 1.0)
        self._level = self.capacity
        self._at = now

    def wait(self, now: float, amount: float = 0.0) -> float:
        """Seconds until `amount` (at most the capacity) is there, or, for 0, until there is no debt."""
        if now > self._at:
            self._level = min(self.capacity, self._level + (now - self._at) * self.rate)
            self._at = now
        return max(0.0, (min(amount, self.capacity) - self._level) / self.rate)

    def spend(self, amount: float) -> None:
        self._level -= amount


class Account:
    """What one principal has used of its quota. For one thread."""

    def __init__(self, quota: Quota, now: float) -> None:
        self.quota = quota
        self._calls = Bucket(quota.calls_per_second, now) if quota.calls_per_second else None
        self._bytes = Bucket(quota.bytes_per_second, now) if quota.bytes_per_second else None

    def begin_call(self, now: float) -> tuple[str, float] | None:
        """Counts a call; or, where it is over the quota, which part of it, and the seconds after which it would not
        be. A call that is refused is not counted."""
        if self._calls is not None and (wait := self._calls.wait(now, 1.0)) > 0:
            return "calls", wait
        if self._bytes is not None and (wait := self._bytes.wait(now)) > 0:
            return "bytes", wait
        if self._calls is not None:
            self._calls.spend(1.0)
        return None

    def spend_bytes(self, size: int) -> None:
        if self._bytes is not None:
            self._bytes.spend(size)

    def wait_for_bytes(self, now: float) -> float:
        """Seconds for which a stream must not be read."""
        return 0.0 if self._bytes is None else self._bytes.wait(now)


class Accounts:
    """By the name of the principal; one whose quota was changed begins anew. For one thread."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def of(self, principal: str, quota: Quota, now: float) -> Account:
        account = self._accounts.get(principal)
        if account is None or account.quota != quota:
            account = self._accounts[principal] = Account(quota, now)
        return account
