"""The ranks that are connected to a run, and who may join."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from steelyard.split import split
from steelyard_server.runs.errors import Exhausted, Exists, Invalid, Superseded, Unready
from steelyard_server.runs.messages import Join, Outbox
from steelyard_server.runs.state import Attempts


@dataclass(slots=True, eq=False)
class Rank:
    """One live stream. `cursor` is the next step to send, `credit` how many batches its trainer can still hold."""

    session: str
    rank: int
    replica: int
    world_size: int
    outbox: Outbox
    cursor: int
    credit: int
    weigher_step: int = -1
    """The step since when the weigh rule that the trainer knows has been in force."""
    told: set[str] = field(default_factory=set)
    """The inputs that it knows are missing."""
    told_of_policy: int = -1
    """The step since when the policy is in force of which it was told what is missing in the end."""

    def slice_of(self, batch_size: int) -> tuple[int, int]:
        return split(batch_size, self.world_size, self.rank)


class Ranks:
    """Streams by (rank, replica) and by outbox. Not thread-safe."""

    def __init__(self) -> None:
        self._by_seat: dict[tuple[int, int], Rank] = {}
        self._by_outbox: dict[Outbox, Rank] = {}
        self._seen: set[tuple[int, int]] = set()  # seats taken since end_all

    def __iter__(self) -> Iterator[Rank]:
        return iter(list(self._by_seat.values()))

    def __len__(self) -> int:
        return len(self._by_seat)

    def seat(self, rank: Rank) -> Rank | None:
        """Seats `rank`; returns the stream of the same session that it takes over from, if there is one."""
        before = self._by_seat.get((rank.rank, rank.replica))
        if before is not None:
            del self._by_outbox[before.outbox]
        self._by_seat[rank.rank, rank.replica] = rank
        self._seen.add((rank.rank, rank.replica))
        self._by_outbox[rank.outbox] = rank
        return before

    def of(self, outbox: Outbox) -> Rank | None:
        """The rank that this stream seats; None once it has left or was taken over from."""
        return self._by_outbox.get(outbox)

    def leave(self, outbox: Outbox) -> None:
        rank = self._by_outbox.pop(outbox, None)
        if rank is not None:
            del self._by_seat[rank.rank, rank.replica]

    def check_free(self, join: Join) -> None:
        holder = self._by_seat.get((join.rank, join.replica))
        if holder is None or holder.session == join.session:
            return
        if join.resume_step is not None:
            raise Superseded(
                f"rank {join.rank} (replica {join.replica}) of attempt {join.attempt!r} was taken by the newer session "
                f"{holder.session!r} while session {join.session!r} had no connection; this trainer must stop"
            )
        raise Exists(
            f"rank {join.rank} (replica {join.replica}) of attempt {join.attempt!r} is held by the live session "
            f"{holder.session!r}; session {join.session!r} must take another rank"
        )

    def all_connected(self, world_size: int) -> bool:
        """Whether every rank of the attempt has a live stream, and every replica that ever had one: among those that
        share a slice, only one may be the one that reports."""
        ranks = {rank for rank, _ in self._by_seat}
        return len(ranks) >= world_size > 0 and self._seen <= self._by_seat.keys()

    def end_all(self, error: Exception | None) -> None:
        for rank in self:
            rank.outbox.end(error)
        self._by_seat.clear()
        self._by_outbox.clear()
        self._seen.clear()


def check_credit(credit: int, window: int) -> None:
    """Invalid above the steps whose reports the run takes: so what waits for a trainer is bounded, and no trainer is
    so far ahead that steps of the others are given up."""
    if credit > window:
        raise Invalid(f"expected credit for at most {window} batches at a time; got {credit}")


def check_draws(credit: int, slice_size: int, most: int) -> None:
    """Exhausted where so many slices hold more than `most` examples: it bounds what waits for a trainer in bytes. One
    may always be asked for."""
    if credit > max(1, most // max(1, slice_size)):
        raise Exhausted(
            f"expected credit for at most {most} examples at a time (max_draws_per_call); got {credit} batches of"
            f" {slice_size}"
        )


def check_join(join: Join) -> None:
    if join.world_size < 1 or not 0 <= join.rank < join.world_size:
        raise Invalid(
            f"expected 0 <= rank < world_size; got rank {join.rank} of world_size {join.world_size}"
        )
    if not join.attempt or len(join.attempt) > 256 or not join.session or len(join.session) > 256:
        raise Invalid(
            f"expected an attempt token and a session of 1..256 characters; got {join.attempt!r}, {join.session!r}"
        )


def check_attempt(join: Join, attempts: Attempts) -> bool:
    """Whether the join begins a new attempt. RunError where it may neither begin nor belong to one."""
    if join.attempt not in attempts.tokens:
        return True
    if join.attempt != attempts.current:
        why = (
            f"attempt {attempts.current!r} has begun"
            if attempts.current
            else "the run was rewound and goes on"
        )
        raise Superseded(
            f"attempt {join.attempt!r} is over: {why} at step {attempts.start_step}; this trainer belongs to an older "
            "launch and must stop"
        )
    if join.world_size != attempts.world_size:
        raise Unready(
            f"attempt {join.attempt!r} began with world_size {attempts.world_size}; rank {join.rank} joined it with "
            f"{join.world_size}; another world size needs a new attempt"
        )
    if join.start_step is not None and join.resume_step is None and join.start_step != attempts.start_step:
        raise Unready(
            f"attempt {join.attempt!r} began at step {attempts.start_step}; rank {join.rank} asks for step "
            f"{join.start_step}; all ranks of an attempt start at the same step"
        )
    return False
