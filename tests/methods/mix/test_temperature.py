"""Temperature mixing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steelyard_server.policies.mix.temperature import Temperature

SIZES = np.array([100, 10_000, 1_000_000])


def rates(rule: Temperature, sizes: Any = SIZES) -> Any:
    masses = rule.masses(rule.start(sizes), sizes, 0)
    return masses / masses.sum()


@pytest.mark.parametrize("temperature", [1, 2])
def test_the_rates_are_those_of_the_authors_code(golden: Callable[[str], Any], temperature: int) -> None:
    want = golden(f"t5/rates 100,1e4,1e6 T={temperature} K=None")
    np.testing.assert_allclose(rates(Temperature(temperature=temperature)), want, atol=5e-7)


def test_the_formula_holds_with_a_limit_and_a_scale() -> None:
    rule = Temperature(temperature=3, maximum=4096, scale=0.5)
    plain = np.minimum(SIZES * 0.5, 4096) ** (1 / 3)
    np.testing.assert_allclose(rates(rule), plain / plain.sum(), rtol=1e-12)


def test_temperature_one_is_proportional_and_a_large_one_uniform() -> None:
    np.testing.assert_allclose(rates(Temperature(temperature=1)), SIZES / SIZES.sum(), rtol=1e-12)
    np.testing.assert_allclose(rates(Temperature(temperature=1e9)), np.full(3, 1 / 3), rtol=1e-6)
    assert rates(Temperature(temperature=1))[0] < 1e-4, "proportional is far from uniform here"


def test_the_limit_stops_one_large_group_from_taking_all() -> None:
    np.testing.assert_allclose(rates(Temperature(temperature=1, maximum=100)), np.full(3, 1 / 3))


def test_an_empty_group_has_no_mass_and_a_cold_temperature_does_not_overflow() -> None:
    sizes = np.array([0, 7, 1 << 40])
    masses = Temperature(temperature=0.01).masses({}, sizes, 0)
    assert np.isfinite(masses).all()
    assert masses[0] == 0
    assert masses[2] > 0


@pytest.mark.parametrize("field", ["temperature", "maximum", "scale"])
def test_what_is_not_above_zero_is_refused(field: str) -> None:
    with pytest.raises(ValidationError):
        Temperature.parse({field: 0})
