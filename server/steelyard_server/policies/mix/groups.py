"""Which group each example is in, and one group as a draw sees it: a small dataset of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from steelyard_server.policies.draw.contract import Examples, Float32s, Ids
from steelyard_server.policies.mix.contract import Mix

MAX_GROUPS = 1 << 16
"""Each group that has examples takes some kilobytes, and has its turn at every step."""

GroupIds = npt.NDArray[np.int32]
"""int32[n]: the group of each example; -1: in none."""


def objection(column: str, values: Float32s) -> str | None:
    """Why finite `values` are no group ids, with the first position; None where they are."""
    bad = np.flatnonzero((values < 0) | (values >= MAX_GROUPS) | (values != np.floor(values)))
    if not len(bad):
        return None
    return (
        f"expected the groups in {column!r} to be whole numbers 0..{MAX_GROUPS - 1}, or NaN for an example that is in "
        f"none; got {values[bad[0]]:g} at position {int(bad[0])}"
    )


def group_ids(values: Float32s) -> GroupIds:
    """The groups that a column states; what is no group id is in none."""
    known = (values >= 0) & (values < MAX_GROUPS) & (values == np.floor(values))
    return np.where(known, values, -1).astype(np.int32)


def sizes_of(groups: GroupIds, retired: Ids) -> npt.NDArray[np.int64]:
    """How many examples of each group may be drawn, int64[K]; K is the largest group id + 1."""
    live = groups.copy()
    live[retired[retired < len(live)]] = -1
    size = int(groups.max(initial=-1)) + 1
    return np.bincount(live[live >= 0], minlength=size).astype(np.int64)


def chosen(mix: Mix, groups: GroupIds, columns: Mapping[str, Float32s], retired: Ids, step: int) -> GroupIds:
    """The groups with -1 for what a mix does not keep of those that are in one and not retired."""
    live = groups.astype(np.int64)
    live[retired] = -1
    kept = mix.keep(live, columns, step)
    return groups if kept is None else np.where(kept, groups, np.int32(-1))


def by_group(groups: GroupIds, *, skip: int = -1) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Each group in ascending order, `skip` left out, and the places where it stands, ascending."""
    if not len(groups):
        return
    order = np.argsort(groups, kind="stable")
    ranked = groups[order]
    starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
    for start, places in zip(starts, np.split(order, starts[1:]), strict=True):
        if (group := int(ranked[start])) != skip:
            yield group, places


@dataclass(slots=True, eq=False, kw_only=True)
class Members(Examples):
    """One group as examples of its own: its i-th example is `ids[i]` of `whole`, ascending, int32[size]. The columns
    are copies; what the group's draw puts into one also reaches the whole."""

    ids: GroupIds
    whole: Examples

    @classmethod
    def of(cls, ids: GroupIds, whole: Examples, names: Iterable[str]) -> Members:
        columns = {name: whole.columns[name][ids] for name in names}
        return cls(len(ids), _places(ids, whole.retired), columns, ids=ids, whole=whole)

    def put(self, name: str, ids: Ids, values: Float32s) -> None:
        self.columns[name][ids] = values
        self.whole.put(name, self.ids[ids].astype(np.int64), values)

    def places(self, ids: Ids) -> Ids:
        """Where `ids`, all of this group, stand in it."""
        return np.searchsorted(self.ids, ids.astype(np.int32)).astype(np.int64)

    def refresh(self, places: Ids) -> None:
        """Takes the values at `places` from the whole again."""
        ids = self.ids[places]
        for name, column in self.columns.items():
            column[places] = self.whole.columns[name][ids]

    def append(self, ids: GroupIds) -> None:
        """Adds ids behind the last, with no values yet."""
        self.ids = np.concatenate([self.ids, ids])
        self.size = len(self.ids)
        unknown = np.full(len(ids), np.nan, np.float32)
        for name, column in self.columns.items():
            self.columns[name] = np.concatenate([column, unknown])

    def retire(self, places: Ids) -> None:
        self.retired = np.union1d(self.retired, places)

    @property
    def live(self) -> int:
        return self.size - len(self.retired)


def _places(ids: GroupIds, wanted: Ids) -> Ids:
    """Where those of `wanted` that are among ascending `ids` stand there."""
    if not len(ids):
        return np.empty(0, np.int64)
    at = np.searchsorted(ids, wanted.astype(np.int32))
    found = ids[np.minimum(at, len(ids) - 1)] == wanted
    places: Ids = at[found].astype(np.int64)
    return places
