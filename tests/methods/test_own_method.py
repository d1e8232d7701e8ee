"""The method of one's own in CONTRIBUTING.md works as printed: installed, served by a real server, and sound."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.errors import FailedPrecondition
from steelyard.testing import ServerProcess

PAGE = (Path(__file__).resolve().parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTION = re.search(r"^## A method of your own\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
SIZE = 300


@pytest.fixture
def blocks() -> dict[str, str]:
    """The draw, the lines of its package and its test; a weigh rule and a mix."""
    assert SECTION
    [method, test, rule, mix] = re.findall(r"```python\n(.*?)```", SECTION[1], re.DOTALL)
    [package] = re.findall(r"```toml\n(.*?)```", SECTION[1], re.DOTALL)
    return {"method": method, "package": package, "test": test, "rule": rule, "mix": mix}


@pytest.fixture
def installed(
    blocks: dict[str, str],
    install: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The folder it is installed in, which every process that this one starts knows too."""
    entries = tomllib.loads(blocks["package"])["project"]["entry-points"]["steelyard.methods"]
    install("middle", blocks["method"], entries)
    folder = tmp_path / "site"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
    return folder


def test_it_is_one_file_of_under_forty_lines(blocks: dict[str, str]) -> None:
    assert len(blocks["method"].splitlines()) < 40


def test_a_real_server_draws_by_it(installed: Path, tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "server") as process:
        client = process.client()
        client.create_dataset("d", size=SIZE)
        draw = {"method": "middle", "width": 0.2, "sampling": "independent", "refresh_steps": 10}
        run = client.create_run("r", dataset="d", batch_size=10, draw=draw, staleness=0)
        losses = np.linspace(0.0, 3.0, SIZE, dtype=np.float32)
        run.observe(np.arange(SIZE), losses)
        drawn = []
        with run.join() as session:
            for _ in range(60):
                batch = session.next()
                session.report(batch, losses[batch.ids])
                drawn.append(batch.ids)
        assert run.info().draw["width"] == 0.2
    low, middle, high = np.histogram(losses[np.concatenate(drawn)], [0.0, 1.0, 2.0, 3.0])[0]
    # By its weights 0.918 of them: 8 standard deviations of 600 draws are 0.09.
    assert middle > 500
    assert low + high > 10


def test_it_keeps_the_contract_by_the_test_as_printed(
    installed: Path, blocks: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "test_middle.py").write_text(blocks["test"])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            "test_middle.py",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


@pytest.mark.parametrize(("kind", "name"), [("rule", "Doubt"), ("mix", "Behind")])
def test_the_small_rule_and_the_small_mix_keep_the_contract(
    blocks: dict[str, str],
    kind: str,
    name: str,
    method_contract: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Types of a printed method are looked up in its module, as those of an imported one.
    module = types.ModuleType(f"printed_{kind}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(blocks[kind], module.__dict__)
    method_contract(getattr(module, name))
    assert len(blocks[kind].splitlines()) < 40


def test_the_small_rule_weighs_by_its_formula(blocks: dict[str, str]) -> None:
    printed: dict[str, Any] = {"__name__": __name__}
    exec(blocks["rule"], printed)
    weights = printed["Doubt"](scale=2.0).weights(np.array([0.0, 2.0, 6.0, np.nan]), printed["Context"]())
    assert weights.tolist() == [1.0, 0.5, 0.25, 0.0]


def test_it_is_listed_with_what_it_says_of_itself(installed: Path) -> None:
    command = [sys.executable, "-m", "steelyard_server", "methods", "middle"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("draw middle (from middle)\n    Prefers losses near the median.\n")
    assert "width = 0.5 (float 0.001 to 1e+06): In units of the loss" in done.stdout


def test_without_it_the_server_says_so_and_serves_the_rest(
    blocks: dict[str, str], installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose method was uninstalled is not lost: it goes on when the method is back."""
    with ServerProcess(tmp_path / "server") as process:
        client = process.client()
        client.create_dataset("d", size=SIZE)
        client.create_run("mine", dataset="d", batch_size=10, draw={"method": "middle"})
        client.create_run("plain", dataset="d", batch_size=10)
        process.terminate()
        monkeypatch.setenv("PYTHONPATH", "")
        process.start()
        with client.run("plain").join() as session:
            assert len(session.next().ids) == 10
        assert [run.draw["method"] for run in client.list_runs()] == ["middle", "shuffle"]
        with pytest.raises(
            FailedPrecondition, match=r"run 'mine' has a policy .* got 'middle'.* goes on where"
        ):
            client.run("mine").join()
        process.terminate()
        monkeypatch.setenv("PYTHONPATH", str(installed))
        process.start()
        with client.run("mine").join() as session:
            assert len(session.next().ids) == 10
