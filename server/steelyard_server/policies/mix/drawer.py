"""Draws a batch by groups: how many places each group has, then each group's share by a draw over its own rows.

Each group is a small dataset with a drawer of the policy's draw and a seed of its own. A batch takes its groups by one
comb over integer masses (counts.py), asks each group's drawer for so many, and shuffles what came, so that slices are
exchangeable. The probability of an id is exact: its expected copies over all counts that its group may have, over B.

Where groups change while the run goes on, those that lost an example, or got one between two of theirs, begin anew:
their `generation` goes up, and with it their seed, and what the draw keeps in columns of its own is unknown again. One
that got examples behind its last goes on as a dataset that grew. The others notice nothing. Everything follows from the
columns and the state.

Costs: 8 bytes an example, 4 more for each column that the draw reads or keeps, and what the draw itself takes; some
kilobytes a group. A draw takes O(B) and one draw of each group that has places in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from steelyard_server.core.random import Purpose, bits
from steelyard_server.policies.draw.contract import Draw, Drawer, Drawn, Examples, Float32s, Ids, LawSummary
from steelyard_server.policies.draw.engines.sparse import SparseDrawer
from steelyard_server.policies.mix.contract import Float64s, GroupReport, Int64s, Mix
from steelyard_server.policies.mix.counts import Shares, integer_masses, shares
from steelyard_server.policies.mix.groups import GroupIds, Members, by_group, chosen, group_ids
from steelyard_server.policies.mix.looks import Looks

KEPT = "own:mix_kept"
"""What a mix that selects has kept: 1 or 0; NaN where it has not looked yet. No uploaded column has such a name."""


def chooses(mix: Mix) -> bool:
    """Whether the mix selects examples within the groups."""
    return type(mix).keep is not Mix.keep


def columns_of(draw: Draw) -> tuple[str, ...]:
    """The columns that a group's drawer reads."""
    derived = [name for column in draw.derived for name in column.columns]
    return tuple(dict.fromkeys([*derived, *draw.static, *draw.own]))


@dataclass(slots=True, eq=False)
class _Group:
    """A group that has examples. `batch_size` is its share of a batch by size, of when it began: what a draw that goes
    by epochs counts them with."""

    batch_size: int
    members: Members
    drawer: Drawer


class MixDrawer(Drawer):
    """As the module says. `state`: what `get_state` told; without its "mix", the mix alone begins anew."""

    def __init__(
        self,
        mix: Mix,
        draw: Draw,
        examples: Examples,
        *,
        seed: int,
        batch_size: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._mix = mix
        self._draw = draw
        self._examples = examples
        self._seed = seed
        self._batch_size = batch_size
        self._names = columns_of(draw)
        self._groups: dict[int, _Group] = {}
        self._looks = Looks()
        self._group_of = self._groups_now()
        # What the column says of those too that the mix does not keep.
        self._stated = group_ids(examples.columns[mix.group]) if chooses(mix) else None
        saved = state or {}
        self._generations: dict[int, int] = {int(k): g for k, g in saved.get("generations", {}).items()}
        self._step: int = saved.get("step", 0)
        # The first step under this mix; unknown before its draw.
        self._since: int | None = saved.get("since") if "mix" in saved else None
        self._chosen: bool = saved.get("chosen", not chooses(mix))
        count = max(int(self._group_of.max(initial=-1)) + 1, int(saved.get("groups", 0)))
        self._sizes = np.zeros(count, np.int64)
        grouped = saved.get("drawers", {})
        total = int(np.count_nonzero(self._group_of >= 0))
        for group, places in by_group(self._group_of):
            own = grouped.get(str(group), {})
            share = own.get("batch_size", self._share(len(places), total))
            self._begin(group, places.astype(np.int32), share, own.get("state"))
        self._state = saved["mix"] if "mix" in saved else self._start()

    # ---- drawing ----

    def prepare(self, step: int) -> None:
        self._step = step
        if self._since is None:
            self._since = step
        self._state = self._mix.prepared(self._state, self._sizes, step)
        if not self._chosen:
            self._choose(step)
        for group in self._groups.values():
            # Most draws prepare nothing, and groups can be many.
            if type(group.drawer).prepare is not Drawer.prepare:
                group.drawer.prepare(step)
        self._fill_up()

    def _fill_up(self) -> None:
        """Where the groups' draws leave out so much that a batch could not be filled, they take it in. A group minds
        its own share, which was that of when it began."""
        sparse = [group.drawer for group in self._groups.values() if isinstance(group.drawer, SparseDrawer)]
        if sparse and int(self._most(self._batch_size).sum()) < self._batch_size:
            for drawer in sparse:
                drawer.spread()

    def draw(self, step: int, count: int | None = None) -> Drawn:
        count = self._batch_size if count is None else count
        given = self._shares(step, count)
        counts = given.counts(bits(self._seed, Purpose.MIX, step))
        least, chance, expected = given.least, given.chance, given.expected
        parts: list[Drawn] = []
        copies: list[Float64s] = []
        states: dict[str, Any] = {}
        for number in np.flatnonzero(counts).tolist():
            group = self._groups[number]
            part = group.drawer.draw(step, int(counts[number]))
            odds = int(least[number]), float(chance[number]), float(expected[number])
            copies.append(_copies(group.drawer, part, *odds))
            parts.append(_of_whole(part, group.members))
            if part.draw_state:
                states[str(number)] = dict(part.draw_state)
        order = bits(self._seed, Purpose.ORDER, step).order(count)
        return Drawn(
            np.concatenate([part.ids for part in parts])[order],
            np.concatenate(copies)[order] / count,
            1.0 / self.drawable,
            {"groups": states} if states else {},
            _weights(parts, order),
        )

    def _shares(self, step: int, count: int) -> Shares:
        """What each group gives of a batch of `count`. ValueError where they cannot fill it."""
        if not self._groups:
            raise ValueError(f"no example is in a group: column {self._mix.group!r} has no values")
        return shares(integer_masses(self._masses(step)), self._sizes, self._most(count), count)

    def _masses(self, step: int) -> Float64s:
        """The mass of each group, float64[K]: 0 where nothing is left to draw; the sizes where no other has any."""
        masses = np.asarray(self._mix.masses(self._state, self._sizes, step), np.float64)
        if masses.shape != self._sizes.shape or not np.isfinite(masses).all() or (masses < 0).any():
            raise ValueError(
                f"expected mix method {self._mix.method!r} to give {len(self._sizes)} finite masses of 0 and more; "
                f"got {masses.tolist()}"
            )
        masses = np.where(self._sizes > 0, masses, 0.0)
        return masses if masses.any() else self._sizes.astype(np.float64)

    def _most(self, count: int) -> Int64s:
        """How many of `count` places each group can fill, int64[K]."""
        most = np.zeros(len(self._sizes), np.int64)
        for number, group in self._groups.items():
            if group.members.live and group.drawer.drawable:
                bound = group.drawer.most
                most[number] = count if bound is None else min(bound, count)
        return most

    def set_draw_state(self, state: Mapping[str, Any]) -> None:
        for number, of_group in state.get("groups", {}).items():
            self._groups[int(number)].drawer.set_draw_state(of_group)

    # ---- what is told ----

    def folded(self, step: int, ids: Ids, signals: Mapping[str, Float32s]) -> None:
        groups = self._group_of[ids]
        heard = {name: signals[name] for name in self._draw.listens if name in signals}
        if heard:
            for number, at in by_group(groups):
                group = self._groups[number]
                group.drawer.folded(
                    step, group.members.places(ids[at]), {name: values[at] for name, values in heard.items()}
                )
        if any(name in signals for name in self._mix.signals):
            unknown = np.full(len(ids), np.nan)
            values = {name: signals[name].astype(np.float64) for name in self._mix.signals if name in signals}
            values |= {name: unknown for name in self._mix.signals if name not in signals}
            values |= {
                name: self._examples.columns[name][ids].astype(np.float64) for name in self._mix.columns
            }
            # What is observed between two draws comes with the step of the later one, and belongs to the earlier.
            since = step if self._since is None else self._since
            last = step if self._since is None else min(step, self._step)
            report = GroupReport(last, groups.astype(np.int64), values, self._sizes, since)
            self._state = self._mix.update(self._state, report)

    def changed(self, ids: Ids) -> None:
        now = self._groups_now(ids)
        before = self._group_of[ids]
        for number, at in by_group(before):
            stays = at[now[at] == number]
            if len(stays):
                group = self._groups[number]
                places = group.members.places(ids[stays])
                group.members.refresh(places)
                group.drawer.changed(places)
        moved = now != before
        if moved.any():
            self._move(ids[moved], before[moved], now[moved])
        if self._stated is not None:
            stated = group_ids(self._examples.columns[self._mix.group][ids])
            # Whatever moved, the selection is another one; it is made before the next draw.
            self._chosen = self._chosen and np.array_equal(stated, self._stated[ids])
            self._stated[ids] = stated

    def grew(self) -> None:
        """New examples are in no group until they have one."""
        added = self._examples.size - len(self._group_of)
        self._group_of = np.concatenate([self._group_of, np.full(added, -1, np.int32)])
        if self._stated is not None:
            self._stated = np.concatenate([self._stated, np.full(added, -1, np.int32)])
        new = np.arange(self._examples.size - added, self._examples.size)
        self.changed(new)

    def retired(self, ids: Ids) -> None:
        for number, at in by_group(self._group_of[ids]):
            group = self._groups[number]
            places = np.sort(group.members.places(ids[at]))
            group.members.retire(places)
            group.drawer.retired(places)
            self._sizes[number] = group.members.live
        self._state = self._mix.grown(self._state, self._sizes)

    # ---- the groups ----

    def _groups_now(self, ids: Ids | None = None) -> GroupIds:
        """The group that the columns state for `ids`, or for all."""
        at = slice(None) if ids is None else ids
        groups = group_ids(self._examples.columns[self._mix.group][at])
        if chooses(self._mix):
            groups[self._examples.columns[KEPT][at] == 0] = -1
        return groups

    def _choose(self, step: int) -> None:
        """Has the mix select within the groups, among all that are in one and not retired."""
        examples = self._examples
        groups = group_ids(examples.columns[self._mix.group])
        kept = chosen(self._mix, groups, examples.columns, examples.retired, step) >= 0
        # A retired one stays where it is: it is counted nowhere.
        kept[examples.retired] = True
        before, after = examples.columns[KEPT], np.where(groups < 0, np.nan, kept).astype(np.float32)
        at = np.flatnonzero((before != after) & ~(np.isnan(before) & np.isnan(after)))
        examples.put(KEPT, at, after[at])
        self.changed(at)
        self._chosen = True

    def _move(self, ids: Ids, before: GroupIds, now: GroupIds) -> None:
        """Takes over that `ids` have other groups."""
        self._group_of[ids] = now
        largest = int(now.max(initial=-1)) + 1
        if largest > len(self._sizes):
            self._sizes = np.concatenate([self._sizes, np.zeros(largest - len(self._sizes), np.int64)])
        lost = {number for number, _ in by_group(before)}
        total = int(np.count_nonzero(self._group_of >= 0))
        for number, at in by_group(now):
            if number not in lost and not self._extend(number, np.sort(ids[at])):
                lost.add(number)
        for number in sorted(lost):
            self._rebuild(number, total)
        self._state = self._mix.grown(self._state, self._sizes)

    def _extend(self, number: int, ids: Ids) -> bool:
        """Appends ascending `ids` to a group that goes on; False where it must begin anew."""
        group = self._groups.get(number)
        if group is None or ids[0] <= group.members.ids[-1] or np.isin(ids, self._examples.retired).any():
            return False
        self._forget_own(ids.astype(np.int32))
        first = group.members.size
        group.members.append(ids.astype(np.int32))
        group.drawer.grew()
        places = np.arange(first, group.members.size)
        group.members.refresh(places)
        group.drawer.changed(places)
        self._sizes[number] = group.members.live
        return True

    def _rebuild(self, number: int, total: int) -> None:
        """A group begins anew with those that are in it now."""
        ids = np.flatnonzero(self._group_of == number).astype(np.int32)
        self._generations[number] = self._generations.get(number, 0) + 1
        self._groups.pop(number, None)
        self._sizes[number] = 0
        if len(ids):
            self._forget_own(ids)
            self._begin(number, ids, self._share(len(ids), total), None)

    def _forget_own(self, ids: GroupIds) -> None:
        """What a draw keeps in columns of its own is unknown where it begins."""
        for name in self._draw.own:
            known = ids[~np.isnan(self._examples.columns[name][ids])].astype(np.int64)
            if len(known):
                self._examples.put(name, known, np.full(len(known), np.nan, np.float32))

    def _begin(self, number: int, ids: GroupIds, share: int, state: Mapping[str, Any] | None) -> None:
        members = Members.of(ids, self._examples, self._names)
        seed = group_seed(self._seed, number, self._generations.get(number, 0))
        drawer = self._draw.drawer(members, seed=seed, batch_size=share, state=state)
        self._groups[number] = _Group(share, members, drawer)
        self._sizes[number] = members.live

    def _share(self, size: int, total: int) -> int:
        """What a group of `size` of all `total` examples in groups has of a batch, at least 1."""
        return max(1, -(-self._batch_size * size // total))

    def _start(self) -> Any:
        try:
            return self._mix.start(self._sizes)
        except ValueError:
            # Groups came, or went, since the run was checked: a list then goes as far as it goes.
            return self._mix.fresh(self._sizes)

    # ---- the state, and what it tells ----

    def get_state(self) -> Mapping[str, Any]:
        return {
            "mix": {name: list(values) for name, values in self._state.items()},
            "groups": len(self._sizes),
            "step": self._step,
            "since": self._since,
            "chosen": self._chosen,
            "generations": {str(number): one for number, one in sorted(self._generations.items())},
            "drawers": {
                str(number): {"batch_size": group.batch_size, "state": dict(group.drawer.get_state())}
                for number, group in sorted(self._groups.items())
            },
        }

    @property
    def drawable(self) -> int:
        return sum(group.drawer.drawable for group in self._groups.values())

    @property
    def most(self) -> int | None:
        bounds = [group.drawer.most for group in self._groups.values()]
        known = [bound for bound in bounds if bound is not None]
        return sum(known) if len(known) == len(bounds) else None

    @property
    def never_reported(self) -> int | None:
        counts = [group.drawer.never_reported for group in self._groups.values()]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    @property
    def ungrouped(self) -> int:
        """How many examples that are not retired are in no group, or not kept in it."""
        return self._examples.size - len(self._examples.retired) - int(self._sizes.sum())

    def masses(self) -> Float64s:
        """The share of each group in the batch last prepared, float64[K], before any is capped."""
        masses = self._masses(self._step)
        return np.asarray(masses / max(float(masses.sum()), 1e-300))

    def effective_sample_ratio(self) -> float:
        """Of the law before groups are capped."""
        if not self._groups:
            return math.nan
        squares = whole = 0.0
        for number, share in enumerate(self.masses().tolist()):
            group = self._groups.get(number)
            # Where all that a group's epoch has left is retired, its next one is chosen before the next draw.
            if group is not None and share > 0 and group.drawer.drawable:
                squares += share**2 / (group.drawer.drawable * group.drawer.effective_sample_ratio())
                whole += share
        return whole**2 / (self.drawable * squares) if squares else math.nan

    def summary(self, most: int) -> LawSummary:
        """Of the law before groups are capped. Where there are many, not known before each was looked at once."""
        squares = whole = largest = unknown = known = 0.0
        groups = [
            (share, int(self._sizes[number]), self._groups[number].drawer)
            for number, share in enumerate(self.masses().tolist() if self._groups else ())
            if share > 0 and number in self._groups and self._groups[number].drawer.drawable
        ]
        looks = self._looks.at([drawer for _, _, drawer in groups], most)
        if looks is None:
            return LawSummary(math.nan, math.nan, math.nan)
        for (share, size, drawer), one in zip(groups, looks, strict=True):
            squares += share**2 / (drawer.drawable * one.effective_sample_ratio)
            whole += share
            largest = max(largest, share * one.largest_share)
            if one.never_reported_share is not None:
                unknown += one.never_reported_share * size
                known += size
        return LawSummary(
            whole**2 / (self.drawable * squares) if squares else math.nan,
            largest / whole if whole else math.nan,
            unknown / known if known else None,
        )

    def check(self) -> None:
        assert np.array_equal(self._group_of, self._groups_now()), "groups differ from their column"
        live = np.ones(self._examples.size, np.bool_)
        live[self._examples.retired] = False
        found = dict(by_group(self._group_of))
        assert set(found) == set(self._groups), (sorted(found), sorted(self._groups))
        for number, group in self._groups.items():
            members = group.members
            assert np.array_equal(members.ids, found[number]), f"members of group {number}"
            assert self._sizes[number] == np.count_nonzero(live[members.ids]) == members.live
            assert np.array_equal(members.retired, np.flatnonzero(~live[members.ids]))
            for name in self._names:
                whole = self._examples.columns[name][members.ids]
                assert np.array_equal(members.columns[name], whole, equal_nan=True), (number, name)
            group.drawer.check()
        assert int(self._sizes.sum()) == sum(group.members.live for group in self._groups.values())


def group_seed(seed: int, group: int, generation: int) -> int:
    """The seed of a group's own draw, so that no two groups share their lots, nor one before and after it changed."""
    return int(bits(seed, Purpose.GROUP, (generation << 20) | group).below(1 << 63, 1)[0])


def _copies(drawer: Drawer, part: Drawn, least: int, chance: float, expected: float) -> Float64s:
    """The expected copies of what a group drew, float64[m], where it has `least` places or, by `chance`, one more:
    `expected` on average."""
    count = len(part.ids)
    probability = part.probability
    if probability is None:
        probability = np.full(count, part.uniform_probability)
    # What it drew tells those of the count that it had.
    if not chance:
        return count * probability
    other = drawer.copies(part.ids, least if count > least else least + 1)
    if other is None:
        return expected * probability
    had = chance if count > least else 1.0 - chance
    return had * (count * probability) + (1.0 - had) * other


def _of_whole(part: Drawn, members: Members) -> Drawn:
    ids = members.ids[part.ids].astype(np.int64)
    return Drawn(ids, part.probability, part.uniform_probability, part.draw_state, part.weight)


def _weights(parts: Iterable[Drawn], order: Ids) -> Float32s | None:
    parts = list(parts)
    if all(part.weight is None for part in parts):
        return None
    ones = [np.ones(len(part.ids), np.float32) if part.weight is None else part.weight for part in parts]
    return np.concatenate(ones)[order]
