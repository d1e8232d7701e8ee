"""A server in this process that is watched, and what a scrape of it says."""

from __future__ import annotations

import importlib.util
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from steelyard_server.config import Settings
from steelyard_server.server import Server


class Scrape:
    """What /metrics said at one moment."""

    def __init__(self, text: str) -> None:
        self.families = {one.name: one for one in text_string_to_metric_families(text)}
        self.samples: list[Sample] = [sample for one in self.families.values() for sample in one.samples]

    def all(self, name: str, **labels: str) -> dict[tuple[str, ...], float]:
        """The samples of that name with these labels, by the values of the labels that are left, in the order of the
        labels' names."""
        return {
            tuple(value for key, value in sorted(one.labels.items()) if key not in labels): one.value
            for one in self.samples
            if one.name == name and labels.items() <= one.labels.items()
        }

    def one(self, name: str, **labels: str) -> float:
        found = self.all(name, **labels)
        assert set(found) == {()}, (name, labels, found)
        return found[()]


class Watched:
    """`get` reads a path over HTTP: status and body."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.server.http_address}{path}", timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def scrape(self) -> Scrape:
        status, text = self.get("/metrics")
        assert status == 200, text
        return Scrape(text)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Starts a server with settings as given."""
    running: list[Server] = []

    def start(**settings: Any) -> Watched:
        given = {
            "data_dir": tmp_path / "data",
            "listen": "127.0.0.1:0",
            "http": "127.0.0.1:0",
            "grace_seconds": 20,
        }
        running.append(Server(Settings(**{**given, "kernels": "numpy", **settings})))
        running[-1].start()
        return Watched(running[-1])

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def raw_of() -> Iterator[Callable[[str], Any]]:
    """Bare calls to any address: those that the tests of the server use."""
    name = "steelyard_integration_conftest"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, Path(__file__).parents[1] / "integration" / "conftest.py"
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    made: list[Any] = []

    def make(address: str) -> Any:
        made.append(sys.modules[name].Raw(address))
        return made[-1]

    yield make
    for bare in made:
        bare.close()
