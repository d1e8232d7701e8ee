"""The sampling core by itself: draws and updates of the tree, the keyed permutation, a whole drawer, each on compiled
kernels beside the same on plain ones; and what others take for the same."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator

import numpy as np

from steelyard_server.core import kernels
from steelyard_server.core.kernels import plain
from steelyard_server.core.kernels.contract import Kernels
from steelyard_server.core.permutation import permute
from steelyard_server.core.random import Purpose, bits
from steelyard_server.core.sampling import Sampling, law_for, sample
from steelyard_server.core.tree import MassTree
from steelyard_server.policies.draw.contract import Examples
from steelyard_server.policies.draw.scored import Scored
from tests.benchmarks import own_kernels
from tests.benchmarks.measure import Options, Series, Table, in_turns, seconds_a_call

BATCH = 1024
_FLOOR = 0.05
_TORCH_LIMIT = 2**24
"""torch.multinomial takes no more categories."""


def measure(options: Options) -> Iterator[Table]:
    told = own_kernels.take()
    sizes = [10_000] if options.quick else [10_000, 1_000_000, 10_000_000]
    for size in [*sizes, 100_000_000] if options.large else sizes:
        yield _tree(options, size, told)


def _tree(options: Options, size: int, told: str) -> Table:
    own_kernels.take()
    compiled = kernels.active
    rng = np.random.default_rng(1)
    weights = rng.lognormal(size=size).astype(np.float32)
    leaves = np.maximum(weights * 2.0**20, 1).astype(np.uint32)
    tree = MassTree(leaves)
    law = law_for(tree, unseen=0, floor=_FLOOR)
    ids = rng.choice(size, BATCH, replace=False)
    changes = [(ids, leaves[ids]), (ids, leaves[ids] // 2 + 1)]
    index = rng.integers(0, size, BATCH, dtype=np.uint64)
    step = iter(range(2**62))

    def draw(mode: Sampling) -> Callable[[], object]:
        def one() -> object:
            at = next(step)
            draws, order = bits(1, Purpose.DRAW, at), bits(1, Purpose.ORDER, at)
            return sample(tree, law, BATCH, mode, draws, order)

        return one

    def sums_and_search() -> object:
        ends = np.cumsum(weights, dtype=np.float64)
        return np.searchsorted(ends, rng.random(BATCH) * ends[-1], side="right")

    ready = np.cumsum(weights, dtype=np.float64)
    cases: dict[str, Callable[[], object]] = {
        "numpy: cumsum, searchsorted": sums_and_search,
        "numpy: searchsorted on ready sums": lambda: np.searchsorted(ready, rng.random(BATCH) * ready[-1]),
        **_torch_cases(weights),
    }
    own: dict[str, Callable[[], object]] = {
        **{f"draw {mode.value}": draw(mode) for mode in Sampling},
        "set": lambda: tree.set(*changes[next(step) % 2]),
        "permute": lambda: permute(index, size, key=1, tweak=2),
        **_drawer_cases(weights),
    }
    for name, action in own.items():
        cases[f"{name}, plain"] = _with(plain, action)
        cases[name] = _with(compiled, action)
    reference = next(iter(cases))
    found = in_turns(options.repeats, {name: _timer(action) for name, action in cases.items()})
    series = [
        Series(name, "ms", values, f"{name}, plain" if name in own else reference)
        for name, values in found.items()
    ]
    bytes_an_id = round(tree.nbytes / size, 2)
    return Table(
        "core: tree",
        series,
        {"ids": size, "batch": BATCH, "floor": _FLOOR, "bytes/id": bytes_an_id},
        [f"plain: the same on NumPy's kernels, beside {told}"],
    )


def _with(which: Kernels, action: Callable[[], object]) -> Callable[[], object]:
    """The action on one set of kernels."""

    def one() -> object:
        kernels.use(which)
        return action()

    return one


def _drawer_cases(weights: np.ndarray) -> dict[str, Callable[[], object]]:
    """All that a run does in memory to draw a batch and to take its new scores, without the fold of the reports."""
    examples = Examples(weights.size, np.empty(0, np.int64), {"score": weights.copy()})
    policy = Scored.parse({"method": "scored", "score": "score", "floor": _FLOOR})
    drawer = policy.drawer(examples, seed=1, batch_size=BATCH)
    step = iter(range(2**62))
    ids = np.sort(drawer.draw(0).ids)

    def changed() -> None:
        examples.columns["score"][ids] *= np.float32(0.5 if next(step) % 2 else 2.0)
        drawer.changed(ids)

    return {"drawer: draw": lambda: drawer.draw(next(step)), "drawer: new scores": changed}


def _torch_cases(weights: np.ndarray) -> dict[str, Callable[[], object]]:
    """On as many threads as torch takes by itself."""
    if importlib.util.find_spec("torch") is None or weights.size > _TORCH_LIMIT:
        return {}
    import torch

    tensor = torch.from_numpy(weights)
    return {
        "torch.multinomial, replacement": lambda: torch.multinomial(tensor, BATCH, replacement=True),
        "torch.multinomial, distinct": lambda: torch.multinomial(tensor, BATCH, replacement=False),
    }


def _timer(action: Callable[[], object]) -> Callable[[], float]:
    return lambda: 1e3 * seconds_a_call(action)
