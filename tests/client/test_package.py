"""The names of the package, what importing it costs, and handles that travel."""

import json
import pickle
import statistics
import subprocess
import sys

import pytest

import steelyard


def test_every_public_name_is_there():
    for name in steelyard.__all__:
        assert getattr(steelyard, name) is not None
        assert name in dir(steelyard)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        steelyard.conect  # noqa: B018


def test_local_is_the_function_also_when_its_module_is_imported_first():
    source = "import steelyard.local, steelyard.testing, steelyard; assert callable(steelyard.local)"
    subprocess.run([sys.executable, "-c", source], check=True, timeout=60)


def test_importing_the_package_takes_less_than_three_tenths_of_a_second():
    source = (
        "import time; began = time.perf_counter(); import steelyard; bare = time.perf_counter() - began\n"
        "steelyard.connect; print(bare, time.perf_counter() - began)"
    )
    runs = [
        json.loads("[" + subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=60,
                                        check=True).stdout.strip().replace(" ", ",") + "]")
        for _ in range(3)
    ]  # fmt: skip
    bare, whole = (statistics.median(column) for column in zip(*runs, strict=True))
    print(f"import steelyard: {bare:.3f} s; with the client: {whole:.3f} s")
    assert bare < 0.3


def test_a_handle_travels_with_its_address_and_timeout_and_without_a_connection():
    client = steelyard.connect("sampler:7077", timeout=5.0)
    run = pickle.loads(pickle.dumps(steelyard.Run(client, "gpt-a")))
    assert (run.name, run.client.address, run.client.timeout) == ("gpt-a", "sampler:7077", 5.0)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), None])
def test_a_timeout_is_a_positive_number(timeout):
    with pytest.raises(steelyard.InvalidArgument, match="timeout: expected a positive number"):
        steelyard.connect("sampler:7077", timeout=timeout)
