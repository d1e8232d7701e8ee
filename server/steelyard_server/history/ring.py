"""The last K (step, loss) of every example, in rows of as many ids as fit a page; losses.py says when they are written.

    key     = run_id u64 BE | chunk index u32 BE | seq u64 BE      (table HISTORY; versioned as in
    versions.py) content = K u8 | counts u8[n] | steps u32[n, K] | losses f32[n, K], little-endian, oldest
    first from the left

A chunk holds as many ids (n) as fit one page of the store with K entries each: rewriting scattered examples
costs a page a chunk, and a chunk a few bytes over one page would cost two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import numpy.typing as npt

from steelyard_server.core.events import Float32s, Ids

from .errors import RecordDamaged
from .ops import Op, Put, Table, prefix_range, u64
from .store import Store
from .versions import Versions

MAX_SIZE = 255
PAGE_BYTES = 4096
_OVERHEAD = 16 + 5 + 1
"""LMDB's page head, the seal and K."""

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


class History:
    """The per-example history of one run. Has no state of its own; what it reads is durable."""

    def __init__(self, store: Store, run_id: int, size: int) -> None:
        """`size` is K, 0..255; with 0 nothing is kept. It is fixed for the life of the run."""
        if not 0 <= size <= MAX_SIZE:
            raise ValueError(f"the history can keep 0..{MAX_SIZE} entries an example, not {size}")
        self._run_id = run_id
        self.size = size
        self.ids_per_chunk = (PAGE_BYTES - _OVERHEAD) // (1 + 8 * size)
        self._versions = Versions(store, Table.HISTORY, run_id)
        shape = (self.ids_per_chunk, size)
        self._layout = np.dtype(
            [("counts", "u1", shape[:1]), ("steps", "<u4", shape), ("losses", "<f4", shape)]
        )

    def merge(
        self, seq: int, ids: Ids, steps: npt.ArrayLike, losses: Float32s, *, since: int | None = None
    ) -> list[Op]:
        """Ops that append reports, given in fold order (an id may repeat), as of journal position `seq`.

        They are appended to what was kept at position `since` (None: last).

        ids int64[n], steps integers[n] or one for all, losses float32[n]. Only the chunks of these ids are
        read and written: some 5 KB of memory each. Every earlier merge must be durable. ValueError: counts
        differ, a negative id, a step of 2^32 or more.
        """
        steps = np.broadcast_to(np.asarray(steps, np.int64), ids.shape)
        self._check(ids, steps, losses)
        if not self.size or not ids.size:
            return []
        order = np.argsort(ids, kind="stable")
        last = np.flatnonzero(np.append(np.diff(ids[order]) != 0, True))
        touched = ids[order[last]]
        chunks, chunk = np.unique(touched // self.ids_per_chunk, return_inverse=True)
        table = self._load(chunks, since)
        self._push(table, chunk, touched % self.ids_per_chunk, last, steps[order], losses[order])
        return [self._put(int(chunks[i]), seq, table[i : i + 1].tobytes()) for i in range(chunks.size)]

    def read(self, ids: Ids, at_seq: int | None = None) -> tuple[Int64s, UInt64s, Float32s]:
        """(counts int64[n], steps uint64[sum], losses float32[sum]) of `ids` in the order asked, each oldest
        first.

        As of the newest merge at or below `at_seq`. ValueError: a negative id. RecordDamaged names the ids.
        """
        if ids.size and int(ids.min()) < 0:
            raise ValueError(f"expected ids of 0 or more, got {int(ids.min())}")
        if not self.size or not ids.size:
            return np.zeros(ids.size, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.float32)
        chunks, chunk = np.unique(ids // self.ids_per_chunk, return_inverse=True)
        table, slot = self._load(chunks, at_seq), ids % self.ids_per_chunk
        counts = table["counts"][chunk, slot].astype(np.int64)
        filled = np.arange(self.size) < counts[:, None]
        steps = table["steps"][chunk, slot][filled].astype(np.uint64)
        return counts, steps, table["losses"][chunk, slot][filled].astype(np.float32)

    def copy_to(self, run_id: int, at_seq: int, seq: int) -> list[Op]:
        """Ops that give another run of the same size what this one kept at `at_seq`, as of its own `seq`: a
        fork.
        """
        other = Versions(self._versions.store, Table.HISTORY, run_id)
        names = self._versions.names(at_seq)
        contents = self._versions.newest(
            names, [self._place(int.from_bytes(n, "big")) for n in names], at_seq
        )
        return [other.put(n, seq, c) for n, c in zip(names, contents, strict=True) if c is not None]

    def stored_bytes(self) -> int:
        """Keys and values, older versions included. Reads every one."""
        return self._versions.stored_bytes()

    def check(self) -> None:
        """RecordDamaged where a row, of any version, is not as it was written."""
        for name, seq in self._versions.all():
            index = int.from_bytes(name, "big")
            for content in self._versions.newest([name], [self._place(index)], seq):
                self._checked(index, content or b"")

    def drop_after(self, seq: int) -> Iterator[Op]:
        """Ops that forget every merge above `seq`, one by one. Reads every key of the run's history."""
        return self._versions.drop_after(seq)

    def is_empty(self) -> bool:
        return not self._versions.store.keys(Table.HISTORY, *prefix_range(u64(self._run_id)), limit=1)

    def prune(self, keep: Collection[int]) -> list[Op]:
        """Ops that delete what no reader at a seq of `keep` takes; the newest stays. Reads every key."""
        return self._versions.prune(sorted(keep))

    def _push(
        self,
        table: npt.NDArray[np.void],
        chunk: Int64s,
        slot: Int64s,
        last: Int64s,
        steps: Int64s,
        losses: Float32s,
    ) -> None:
        """Moves each touched row left by what no longer fits, and appends. steps, losses sorted by id; `last`
        is
        where each id's reports end among them."""
        begin = np.concatenate((last[:1] * 0, last[:-1] + 1))
        fresh = np.minimum(last + 1 - begin, self.size)
        old = table["counts"][chunk, slot].astype(np.int64)
        kept = np.minimum(old, self.size - fresh)
        place = np.arange(self.size)
        stays, filled = place < kept[:, None], place < (kept + fresh)[:, None]
        from_old = np.minimum(place + (old - kept)[:, None], self.size - 1)
        from_new = np.clip(place + (last + 1 - fresh - kept)[:, None], 0, steps.size - 1)
        table["counts"][chunk, slot] = kept + fresh
        for field, values in (("steps", steps), ("losses", losses)):
            row = np.take_along_axis(table[field][chunk, slot], from_old, axis=1)
            row = np.where(stays, row, values[from_new].astype(row.dtype))
            table[field][chunk, slot] = np.where(filled, row, 0)

    def _load(self, chunks: Int64s, at_seq: int | None) -> npt.NDArray[np.void]:
        """Rows of the layout, one a chunk; zeros where nothing was kept yet."""
        indices: list[int] = chunks.tolist()
        names = [index.to_bytes(4, "big") for index in indices]
        contents = self._versions.newest(names, [self._place(index) for index in indices], at_seq)
        nothing = bytes(self._layout.itemsize)
        parts = [
            nothing if content is None else self._checked(index, content)
            for index, content in zip(indices, contents, strict=True)
        ]
        return np.frombuffer(bytearray(b"".join(parts)), self._layout)

    def _checked(self, index: int, content: bytes) -> bytes:
        if content[:1] != bytes([self.size]) or len(content) != 1 + self._layout.itemsize:
            found = f"found {content[:1].hex()} and {len(content)} bytes"
            expected = f"expected K = {self.size} and {1 + self._layout.itemsize} bytes, {found}"
            raise RecordDamaged(self._place(index), expected)
        return content[1:]

    def _put(self, index: int, seq: int, rows: bytes) -> Put:
        return self._versions.put(index.to_bytes(4, "big"), seq, bytes([self.size]) + rows)

    def _place(self, index: int) -> str:
        first = index * self.ids_per_chunk
        return f"run {self._run_id}, history of ids {first}..{first + self.ids_per_chunk - 1}"

    @staticmethod
    def _check(ids: Ids, steps: Int64s, losses: Float32s) -> None:
        if losses.shape != ids.shape or ids.ndim != 1:
            raise ValueError(f"expected one loss for each of {ids.shape} ids, got {losses.shape}")
        if ids.size and int(ids.min()) < 0:
            raise ValueError(f"expected ids of 0 or more, got {int(ids.min())}")
        if ids.size and not 0 <= int(steps.min()) <= int(steps.max()) < 2**32:
            raise ValueError(f"the history holds steps 0..2^32-1, not {int(steps.min())}..{int(steps.max())}")
