"""What the chart and the other files of deploy/ say, read by the tools that `make deploy-check` installs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer.main

from steelyard_server.cli.verbs import cli

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".venv" / "deploy" / "bin" / "python"
SECONDS = 100


class Chart:
    """The manifests of one file of values, by kind and name."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.objects = objects

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str) -> dict[str, Any]:
        [found] = self.all(kind)
        return found

    @property
    def pod(self) -> dict[str, Any]:
        found: dict[str, Any] = self.one("StatefulSet")["spec"]["template"]["spec"]
        return found

    @property
    def container(self) -> dict[str, Any]:
        [found] = self.pod["containers"]
        return dict(found)

    @property
    def toml(self) -> str:
        held = [found["data"] for found in self.all("ConfigMap")]
        [text] = [data["steelyard.toml"] for data in held if "steelyard.toml" in data]
        return str(text)


def tool(*command: object) -> str:
    """What a command of the tools' environment wrote."""
    if not TOOLS.exists():
        assert os.environ.get("CI") != "true", f"expected {TOOLS}, which make deploy-check makes"
        pytest.skip("make deploy-check installs what renders the chart")
    done = subprocess.run(
        [str(TOOLS), *map(str, command)], capture_output=True, text=True, timeout=SECONDS, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def charts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Chart]:
    """The chart rendered with each file of deploy/chart/ci."""
    out = tmp_path_factory.mktemp("charts")
    tool("deploy/check.py", "--only", "render", "--out", out)
    return {path.stem: Chart(json.loads(path.read_text())) for path in out.glob("*.json")}


@pytest.fixture(scope="session")
def yaml() -> Any:
    """Reads a YAML file of deploy/, all its documents."""

    def read(path: str) -> list[Any]:
        code = "import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)"
        found: list[Any] = json.loads(tool("-c", code, ROOT / "deploy" / path))
        return found

    return read


@pytest.fixture(scope="session")
def options() -> Callable[[str], set[str]]:
    """The flags of a verb of the command line."""

    def of(verb: str) -> set[str]:
        command = typer.main.get_command(cli)
        found = command.get_command(None, verb)  # type: ignore[attr-defined, arg-type]
        assert found is not None, f"expected a verb {verb!r}"
        return {flag for parameter in found.params for flag in [*parameter.opts, *parameter.secondary_opts]}

    return of
