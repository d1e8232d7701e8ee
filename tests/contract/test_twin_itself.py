"""The twin is worth its words: it borrows nothing, its numbers are exact, and a fault planted in it is found."""

from __future__ import annotations

import random
import subprocess
import sys
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
from twin import masses, shuffle

TWIN = Path(masses.__file__).parent


def test_the_twin_imports_nothing_of_ours() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(TWIN.parent)!r})\n"
        "import twin.run, twin.seats\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('steelyard', 'steelyard_server')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
    assert len(list(TWIN.glob("*.py"))) >= 9


TRANSFORMS = [
    {"transform": "identity", "alpha": 1.0, "temperature": 1.0},
    {"transform": "power", "alpha": 0.5, "temperature": 1.0},
    {"transform": "power", "alpha": 3.0, "temperature": 1.0},
    {"transform": "softmax", "alpha": 1.0, "temperature": 0.7},
]


@pytest.mark.parametrize("draw", TRANSFORMS, ids=lambda draw: f"{draw['transform']}-{draw['alpha']:g}")
def test_the_recipe_in_doubles_rounds_as_the_exact_number_does(draw: dict[str, float | str]) -> None:
    """So the mass of a score is a matter of arithmetic, and the recipe only decides where two answers are near."""
    numbers = random.Random(5)
    scores = [float(np.float32(numbers.lognormvariate(0, 2))) for _ in range(500)]
    for score in [*scores, 0.0, 1e-30, 1e30, 0.125, -1.0]:
        for scale in (28, 20, -72):
            assert masses.mass(draw, score, scale) == masses.recipe(
                masses.recipe_log2_weight(draw, score), scale
            ), (score, scale)


def test_the_exact_number_is_right_where_it_is_rational() -> None:
    for score, scale in ((3.5, 28), (2.75, 1), (1.0, 31), (0.125, 2), (1e30, 28), (0.0, 28)):
        draw = {"transform": "identity", "alpha": 1.0, "temperature": 1.0}
        with localcontext(masses.DIGITS):
            expected = max(1, min(2**32 - 2, round(Decimal(score) * Decimal(2) ** scale)))
        assert masses.mass(draw, score, scale) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 100, 1500])
def test_a_keyed_order_holds_every_id_once_and_differs_by_key_and_tweak(size: int) -> None:
    orders = [shuffle.keyed_order(size, key, tweak) for key, tweak in ((3, 0), (3, 1), (4, 0))]
    for order in orders:
        assert sorted(order) == list(range(size))
    assert size < 12 or orders[0] != orders[1] != orders[2] != orders[0]
