"""Trainers import little: neither torch nor anything of the server comes along unasked."""

import json
import subprocess
import sys

import pytest

PROBE = """
import json, sys, time
begun = time.perf_counter()
import {modules}
print(json.dumps([time.perf_counter() - begun, sorted(sys.modules)]))
"""


@pytest.mark.parametrize(
    "modules", ["steelyard", "steelyard, steelyard.weigh, steelyard.wire, steelyard.errors, steelyard.batch"]
)
def test_the_client_imports_neither_torch_nor_the_server(modules: str) -> None:
    command = [sys.executable, "-c", PROBE.format(modules=modules)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seconds, loaded = json.loads(ran.stdout)
    tops = {name.split(".")[0] for name in loaded}
    assert "steelyard" in tops
    assert not tops & {"torch", "jax", "lmdb", "pydantic", "scipy", "steelyard_server"}
    print(f"import {modules}: {seconds:.3f} s")


def test_the_weigh_rules_need_numpy_alone() -> None:
    command = [sys.executable, "-c", PROBE.format(modules="steelyard.weigh.config")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    tops = {name.split(".")[0] for name in json.loads(ran.stdout)[1]}
    assert not tops & {"torch", "jax", "lmdb", "steelyard_server"}
