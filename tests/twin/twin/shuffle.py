"""A plain shuffle with its orders written out.

An epoch is a pool of ids in a keyed order. Where the dataset grows, what is left of the pool and the new ids are
shuffled together, as the next level of the epoch.
"""

from __future__ import annotations

import math

MASK = 2**64 - 1


def mix(word: int) -> int:
    """The finaliser of SplitMix64."""
    word &= MASK
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK
    return word ^ (word >> 31)


def keyed_order(size: int, key: int, tweak: int) -> list[int]:
    """Where each of range(size) is sent: a Feistel network on (row, column), walked until it lands inside, rotated."""
    golden = 0x9E3779B97F4A7C15
    state = mix(mix(key + golden) ^ tweak)
    half_rounds = 16 if size < 1024 else 10
    rotation, *round_keys = [mix(state + i * golden) for i in range(1, half_rounds + 2)]
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)

    def once(pair: int) -> int:
        row, column = divmod(pair, columns)
        for number, round_key in enumerate(round_keys):
            if number % 2 == 0:
                row = (row + (mix(column ^ round_key) >> 21) * rows // 2**43) % rows
            else:
                column = (column + (mix(row ^ round_key) >> 21) * columns // 2**43) % columns
        return row * columns + column

    order = []
    for index in range(size):
        image = once(index)
        while image >= size:
            image = once(image)
        order.append((image + rotation) % size)
    return order


class Shuffle:
    def __init__(self, seed: int, size: int) -> None:
        self.seed, self.size = seed, size
        self.begin(0)

    def begin(self, epoch: int) -> None:
        self.epoch, self.level, self.taken = epoch, 0, 0
        self.pool = list(range(self.size))
        self.put_in_order()

    def put_in_order(self) -> None:
        tweak = self.epoch * 2**20 + self.level
        self.order = [self.pool[at] for at in keyed_order(len(self.pool), self.seed, tweak)]

    def grow(self, size: int) -> None:
        if self.taken:
            self.pool, self.taken, self.level = self.order[self.taken :], 0, self.level + 1
        self.pool = self.pool + list(range(self.size, size))
        self.size = size
        self.put_in_order()

    def draw(self, batch_size: int, retired: set[int]) -> list[int]:
        ids: list[int] = []
        while len(ids) < batch_size:
            if self.taken == len(self.order):
                self.begin(self.epoch + 1)
            if (example := self.order[self.taken]) not in retired:
                ids.append(example)
            self.taken += 1
        return ids
