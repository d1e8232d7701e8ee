"""Logarithm and power from IEEE arithmetic alone: close to NumPy's, and the same bytes everywhere."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard_server.core import exact
from steelyard_server.core.exact import MAX_LEAF, exp2, log2, quantise

PINNED = ["9506bb5b04ac4d43", "d3fd85ef6397e3b2", "6690e2245a04ab83"]
"""Pinned: a run that is continued by another version or on another machine must draw the same."""


def floats(*values: float) -> npt.NDArray[np.float64]:
    return np.array(values, np.float64)


def relative_error(got: npt.NDArray[np.float64], right: npt.NDArray[np.float64]) -> float:
    return float(np.max(np.abs(got - right) / np.maximum(np.abs(right), 1e-300)))


def test_log2_agrees_with_numpy_over_the_whole_range() -> None:
    random = np.random.default_rng(0)
    wide = 2.0 ** random.uniform(-1073, 1023, 20_000)
    near_one = 1.0 + random.uniform(-1, 1, 20_000) * 10.0 ** random.uniform(-15, -1, 20_000)
    for x in (wide, near_one):
        assert relative_error(log2(x), np.log2(x)) < 1e-14


def test_exp2_agrees_with_numpy_over_the_whole_range() -> None:
    x = np.random.default_rng(1).uniform(-1021, 1023.9, 40_000)
    assert relative_error(exp2(x), np.exp2(x)) < 1e-14


def test_powers_of_two_are_exact() -> None:
    exponents = np.arange(-1074.0, 1024.0)
    powers = np.ldexp(1.0, exponents.astype(np.int32))
    assert np.array_equal(log2(powers), exponents)
    assert np.array_equal(exp2(exponents), powers)


def test_exp_log_and_power_agree_with_numpy() -> None:
    random = np.random.default_rng(2)
    x = random.uniform(-600, 600, 20_000)
    assert relative_error(exact.exp(x), np.exp(x)) < 1e-12
    y = 2.0 ** random.uniform(-1000, 1000, 20_000)
    assert relative_error(exact.log(y), np.log(y)) < 1e-14
    z = 2.0 ** random.uniform(-100, 100, 20_000)
    assert relative_error(exact.power(z, 0.37), z**0.37) < 1e-12
    assert exact.power(floats(0.0, 2.0, -1.0), 0.0).tolist()[:2] == [1.0, 1.0]
    assert exact.power(floats(0.0), 0.5).tolist() == [0.0]
    assert np.isnan(exact.power(floats(-1.0, np.nan), 0.0)).all()


def test_special_values_are_those_of_the_real_functions() -> None:
    x = floats(0.0, -0.0, np.inf, -1.0, -np.inf, np.nan, 1.0)
    assert np.array_equal(
        log2(x), floats(-np.inf, -np.inf, np.inf, np.nan, np.nan, np.nan, 0.0), equal_nan=True
    )
    x = floats(-np.inf, -2000.0, np.inf, 2000.0, np.nan, 0.0)
    assert np.array_equal(exp2(x), floats(0.0, 0.0, np.inf, np.inf, np.nan, 1.0), equal_nan=True)


def test_larger_arguments_never_give_smaller_results_by_more_than_rounding() -> None:
    x = np.sort(np.random.default_rng(2).uniform(0.4, 3.0, 50_000))
    for function in (log2, exp2):
        y = function(x)
        assert np.all(y[1:] - y[:-1] >= -4 * np.spacing(np.abs(y[1:]) + 1e-3))


def digests() -> list[str]:
    """One digest each of logarithms, powers and leaves over a fixed grid."""
    grid = np.ldexp(1.0 + np.arange(4096) / 4096, (np.arange(4096) * 7919 % 200 - 100).astype(np.int32))
    powers = np.arange(-4096, 4096) / 61.0
    leaves = quantise(np.arange(-2000, 2000) / 97.0, 12)
    parts = (log2(grid).astype("<f8"), exp2(powers).astype("<f8"), leaves.astype("<u4"))
    return [hashlib.blake2b(part.tobytes(), digest_size=8).hexdigest() for part in parts]


def test_the_bytes_are_pinned() -> None:
    assert digests() == PINNED


def test_the_bytes_do_not_depend_on_the_vector_units_of_the_processor() -> None:
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    script = f"import runpy; print(*runpy.run_path({__file__!r})['digests']())"
    plain = subprocess.run(
        [sys.executable, "-c", script],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "NPY_DISABLE_CPU_FEATURES": " ".join(found),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert plain.stdout.split() == PINNED, plain.stderr


def test_only_functions_that_ieee_754_fixes_are_called() -> None:
    exact_functions = {
        *(
            "frexp",
            "ldexp",
            "rint",
            "where",
            "clip",
            "minimum",
            "maximum",
            "isnan",
            "any",
            "errstate",
            "full_like",
        ),
        *("inf", "nan", "float64", "uint32", "int32"),
    }
    tree = ast.parse(inspect.getsource(exact))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "np"
    }
    assert used <= exact_functions
    # ** is NumPy's power; on Python's integers it is exact.
    powers = [n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.Pow)]
    assert all(isinstance(n.left, ast.Constant) and isinstance(n.left.value, int) for n in powers)


def test_quantise_keeps_inside_the_masses() -> None:
    assert quantise(floats(-1.0, 0.0, 1.0), 0).tolist() == [1, 1, 2]
    assert quantise(floats(-np.inf, np.inf, 32.0, 31.0), 0).tolist() == [1, MAX_LEAF, MAX_LEAF, 2**31]
    assert quantise(floats(-40.0, 0.0), 20).tolist() == [1, 2**20]
    assert quantise(floats(), 3).dtype == np.uint32


@given(st.floats(-50, 50), st.integers(-40, 40))
def test_quantise_is_the_nearest_integer_to_the_power(weight: float, scale: int) -> None:
    leaf = int(quantise(floats(weight), scale)[0])
    power = float(np.exp2(weight + scale))
    assert 1 <= leaf <= MAX_LEAF
    assert leaf == 1 or leaf == MAX_LEAF or abs(leaf - power) <= 0.5 + 1e-12 * power


def test_a_weight_that_is_not_a_number_is_refused_with_their_count() -> None:
    with pytest.raises(ValueError, match="got 2 NaN of 3"):
        quantise(floats(np.nan, 1.0, np.nan), 0)
