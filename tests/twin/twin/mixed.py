"""A draw by groups: how many places each has, and each group as a small dataset with a draw of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from twin.bits import GROUP, MIX, ORDER, Words
from twin.scored import Scored, distinct_copies, under
from twin.shuffle import Shuffle

TOTAL_BITS = 42


def group_of(value: float) -> int | None:
    return None if math.isnan(value) else int(value)


class Part:
    """One group: its ids in ascending order, and the scores and the retired ones by their places in it."""

    def __init__(
        self, draw: Mapping[str, Any], ids: list[int], seed: int, scores: list[float], retired: set[int]
    ) -> None:
        self.ids, self.seed, self.scores = ids, seed, scores
        self.retired = {place for place, example in enumerate(ids) if example in retired}
        self.drawer: Shuffle | Scored
        if draw["method"] == "shuffle":
            self.drawer = Shuffle(seed, len(ids))
        else:
            self.drawer = Scored(draw, scores, self.retired)

    @property
    def live(self) -> int:
        return len(self.ids) - len(self.retired)

    def append(self, ids: list[int], scores: list[float]) -> None:
        before = len(self.ids)
        self.ids += ids
        if isinstance(self.drawer, Shuffle):
            self.drawer.grow(len(self.ids))
            return
        self.scores += [math.nan] * len(ids)
        self.drawer.grew(before, self.scores, self.retired)
        self.scores[before:] = scores
        self.changed(list(range(before, len(self.ids))))

    def changed(self, places: list[int]) -> None:
        if isinstance(self.drawer, Scored):
            self.drawer.changed(places, self.scores, self.retired)

    def retire(self, ids: set[int]) -> None:
        self.retired |= {self.ids.index(example) for example in ids}
        if isinstance(self.drawer, Scored):
            self.drawer.settle(None, self.scores, self.retired)


class Mixed:
    def __init__(
        self,
        mix: Mapping[str, Any],
        draw: Mapping[str, Any],
        seed: int,
        batch_size: int,
        groups: Sequence[float],
        scores: Sequence[float] | None,
        retired: set[int],
    ) -> None:
        self.mix, self.draw, self.seed, self.batch_size = mix, draw, seed, batch_size
        self.groups = [group_of(value) for value in groups]
        self.generations: dict[int, int] = {}
        self.parts: dict[int, Part] = {}
        for number in sorted({one for one in self.groups if one is not None}):
            self.begin(number, scores, retired)
        self.count = max(self.parts, default=-1) + 1

    def begin(self, number: int, scores: Sequence[float] | None, retired: set[int]) -> None:
        ids = [i for i, one in enumerate(self.groups) if one == number]
        self.parts.pop(number, None)
        if ids:
            place = (self.generations.get(number, 0) << 20) | number
            seed = Words(self.seed, GROUP, place).below(1 << 63)
            mine = [scores[i] for i in ids] if scores is not None else []
            self.parts[number] = Part(self.draw, ids, seed, mine, retired)

    @property
    def grouped(self) -> int:
        return sum(part.live for part in self.parts.values())

    # ---- what has changed ----

    def changed(
        self, ids: Sequence[int], groups: Sequence[float], scores: Sequence[float] | None, retired: set[int]
    ) -> None:
        """Columns of `ids` have other values. Who stays tells its group; then those that move do."""
        now = {i: group_of(groups[i]) for i in ids}
        before = {i: self.groups[i] for i in ids}
        for number, part in self.parts.items():
            places = [part.ids.index(i) for i in sorted(now) if before[i] == now[i] == number]
            if places:
                if scores is not None:
                    for place in places:
                        part.scores[place] = scores[part.ids[place]]
                part.changed(places)
        self.move({i: (before[i], now[i]) for i in now if before[i] != now[i]}, scores, retired)

    def move(
        self,
        moves: Mapping[int, tuple[int | None, int | None]],
        scores: Sequence[float] | None,
        retired: set[int],
    ) -> None:
        """A group begins anew that loses one, or gets one that is retired or not behind its last."""
        anew = {before for before, _ in moves.values() if before is not None}
        for example, (_, now) in moves.items():
            self.groups[example] = now
        for number in sorted({now for _, now in moves.values() if now is not None}):
            self.count = max(self.count, number + 1)
            ids = sorted(i for i, (_, now) in moves.items() if now == number)
            part = self.parts.get(number)
            if number in anew or part is None or ids[0] <= part.ids[-1] or retired & set(ids):
                anew.add(number)
            else:
                part.append(ids, [scores[i] for i in ids] if scores is not None else [])
        for number in sorted(anew):
            self.generations[number] = self.generations.get(number, 0) + 1
            self.begin(number, scores, retired)

    def grow(self, size: int) -> None:
        self.groups += [None] * (size - len(self.groups))

    def retire(self, ids: set[int]) -> None:
        """`ids` were not retired before."""
        for part in self.parts.values():
            mine = ids & set(part.ids)
            if mine:
                part.retire(mine)

    # ---- drawing ----

    def masses(self) -> list[float]:
        sizes = [self.parts[k].live if k in self.parts else 0 for k in range(self.count)]
        if self.mix["method"] == "group_balanced":
            return [float(size > 0) for size in sizes]
        shares = self.mix["shares"]
        if shares is None:
            return [float(size) for size in sizes]
        given = [float(shares[k]) if k < len(shares) and sizes[k] else 0.0 for k in range(self.count)]
        return given if any(given) else [float(size) for size in sizes]

    def draw_batch(self, step: int) -> list[tuple[int, float]]:
        """(id, probability) in batch order."""
        share = self.shares()
        counts = self.counts(share, step)
        chosen: list[tuple[int, float]] = []
        for number, count in enumerate(counts):
            if count:
                chosen += self.of_group(number, count, share[number], step)
        return [chosen[at] for at in Words(self.seed, ORDER, step).order(self.batch_size)]

    def shares(self) -> list[tuple[int, int, int, int]]:
        """For each group: its places for certain, its mass in the comb, the comb's teeth, and its total."""
        masses = self.masses()
        top, bits = max(masses), TOTAL_BITS - self.count.bit_length()
        comb = [max(1, round(one / top * 2**bits)) if one else 0 for one in masses]
        live = [self.parts[k].live if k in self.parts else 0 for k in range(self.count)]
        most = live if self.draw.get("sampling") == "distinct" else [self.batch_size * (n > 0) for n in live]
        fixed = [0] * self.count
        while (teeth := self.batch_size - sum(fixed)) > 0:
            total = sum(comb)
            if not total:
                comb = [0 if fixed[k] else live[k] for k in range(self.count)]
                continue
            over = [k for k in range(self.count) if Fraction(teeth * comb[k], total) > most[k]]
            if not over:
                break
            for k in over:
                fixed[k], comb[k] = most[k], 0
        return [(fixed[k], comb[k], teeth, sum(comb)) for k in range(self.count)]

    def counts(self, share: list[tuple[int, int, int, int]], step: int) -> list[int]:
        counts = [one[0] for one in share]
        _, _, teeth, total = share[0]
        if teeth:
            offset = Words(self.seed, MIX, step).below(total)
            for tooth in range(teeth):
                counts[under([one[1] for one in share], (tooth * total + offset) // teeth)] += 1
        return counts

    def of_group(
        self, number: int, count: int, share: tuple[int, int, int, int], step: int
    ) -> list[tuple[int, float]]:
        fixed, comb, teeth, total = share
        part, drawer = self.parts[number], self.parts[number].drawer
        least = fixed + (teeth * comb // total if total else 0)
        chance = teeth * comb % total / total if total else 0.0
        expected = fixed + (teeth * comb / total if total else 0)
        if isinstance(drawer, Shuffle):
            drawn = [(place, 1 / part.live) for place in drawer.draw(count, part.retired)]
            masses = None
        else:
            masses = drawer.masses(part.scores, part.retired)
            drawn = drawer.batch(masses, count, part.seed, step)
        chosen = []
        for place, probability in drawn:
            if not chance:
                copies = count * probability
            elif masses is None or self.draw["sampling"] != "distinct":
                copies = expected * probability
            else:
                other = distinct_copies(masses, least if count > least else least + 1)[place]
                had = chance if count > least else 1.0 - chance
                copies = had * (count * probability) + (1.0 - had) * other
            chosen.append((part.ids[place], copies / self.batch_size))
        return chosen
