"""steelyard methods: what there is, from the classes themselves."""

import json
import subprocess
import sys
from typing import Any

import pytest

from steelyard import weigh
from steelyard_server.policies import draw, mix


def steelyard(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steelyard_server", "methods", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def listed() -> list[dict[str, Any]]:
    done = steelyard("--json")
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_every_method_of_every_family_is_listed_with_source_and_parameters(
    listed: list[dict[str, Any]],
) -> None:
    names: dict[str, set[str]] = {family: set() for family in ("draw", "mix", "weigh")}
    for entry in listed:
        names[entry["family"]].add(entry["name"])
        assert entry["summary"], entry["name"]
        assert entry["source"]["paper"], entry["name"]
        assert entry["source"]["where"], entry["name"]
        assert entry["never_reported"], entry["name"]
        assert entry["origin"] == "built in"
    assert names == {"draw": set(draw.METHODS), "mix": set(mix.METHODS), "weigh": set(weigh.METHODS)}


def test_defaults_are_those_of_the_policy(listed: list[dict[str, Any]]) -> None:
    [linupper] = [entry for entry in listed if entry["name"] == "linupper"]
    told = {one["name"]: one["default"] for one in linupper["parameters"]}
    canonical = weigh.to_config(weigh.parse({"method": "linupper"}))
    assert {name: value for name, value in told.items() if value is not None} == {
        name: value for name, value in canonical.items() if name != "method"
    }
    [scored] = [entry for entry in listed if entry["name"] == "scored"]
    assert {one["name"]: one["default"] for one in scored["parameters"]} == {
        name: value
        for name, value in draw.METHODS["scored"].parse({}).canonical().items()
        if name != "method"
    }


def test_one_method_is_told_whole_and_a_family_by_itself() -> None:
    told = steelyard("linupper").stdout
    assert told.startswith("weigh linupper\n")
    for part in ("Never reported: ", "Source: ", "r = 1.0 (float): Temperature of the softmax"):
        assert part in told
    heads = [line for line in steelyard("--family", "draw").stdout.splitlines() if line and line[0] != " "]
    assert heads == [f"draw {name}" for name in sorted(draw.METHODS)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["linuper"], "did you mean 'linupper'"),
        (["linupper", "--family", "draw"], "expected the name of a draw method"),
        (["--plot", "a.png"], "expected the name of a method: steelyard methods NAME --plot FILE"),
        (["linupper", "--plot", "a.gif"], "a file whose name ends in .png, .svg or .pdf; got a.gif"),
        (["--family", "wiegh"], "expected one of the families draw, mix, weigh; got 'wiegh'"),
    ],
)
def test_bad_usage_is_told_and_is_status_2(words: list[str], message: str) -> None:
    done = steelyard(*words)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())


def test_no_parameter_is_described_by_what_is_not_printed(listed: list[dict[str, Any]]) -> None:
    texts = [parameter["doc"] for entry in listed for parameter in entry["parameters"]]
    assert texts
    assert not [text for text in texts if "above;" in text or "see above" in text.lower()]
