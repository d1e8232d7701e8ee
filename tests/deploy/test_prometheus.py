"""A real Prometheus scrapes a real server: rules and dashboard are asked of it, and answered."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.testing import ServerProcess
from tests.deploy.prometheus import MONITORING, free_port, tool

CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: steelyard
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    """One that runs here, and its answers."""

    def __init__(self, address: str) -> None:
        self._address = address

    def ask(self, path: str, **arguments: str) -> Any:
        """The data of an answer of its API; AssertionError with its text where it refuses."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{arguments}: {error.read().decode()}") from error

    def answers(self) -> bool:
        try:
            return bool(self.ask("query", query="1"))
        except (OSError, AssertionError):  # it is not there yet, or still starts (503)
            return False

    def series(self, query: str) -> list[Any]:
        found: list[Any] = self.ask("query", query=query)["result"]
        return found


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    address = f"127.0.0.1:{free_port()}"
    config = folder / "prometheus.yaml"
    config.write_text(CONFIG.format(rules=MONITORING / "rules.yaml", target=target))
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                tool("prometheus"),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield Prometheus(address)
        finally:
            process.kill()
            process.wait(30)


@pytest.fixture
def seen(tmp_path: Path, eventually: Callable[..., Any]) -> Iterator[tuple[Prometheus, ServerProcess]]:
    """A server with a run that has trained a little, seen by Prometheus."""
    http = f"127.0.0.1:{free_port()}"
    with (
        ServerProcess(tmp_path / "server", http=http) as process,
        prometheus(tmp_path, http) as watching,
        process.client() as client,
    ):
        client.create_dataset("d", size=1000)
        run = client.create_run(
            "r", dataset="d", batch_size=32, draw={"method": "scored", "score": "last_loss", "floor": 0.1}
        )
        with run.join(rank=0, world_size=1) as session:
            for _ in range(5):
                session.report(session.next(), np.ones(32, np.float32))
            eventually(watching.answers)
            eventually(lambda: watching.series("steelyard_run_closed_steps >= 5"))
            yield watching, process


def filled(query: str) -> str:
    """A query of the dashboard with its variables as Grafana would fill them in for all."""
    return re.sub(r"\$(job|instance|run)\b", ".*", query.replace("$__rate_interval", "1m"))


def test_prometheus_takes_every_rule_and_every_panel_and_no_alert_fires_before_the_server_is_killed(
    seen: tuple[Prometheus, ServerProcess], eventually: Callable[..., Any]
) -> None:
    watching, process = seen

    def judged() -> list[dict[str, Any]]:
        rules = [rule for group in watching.ask("rules")["groups"] for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else []

    rules = eventually(judged)
    assert len(rules) > 30
    assert [rule["lastError"] for rule in rules if rule["health"] != "ok"] == []
    # It has no backup, which is only said after a day.
    assert [
        alert["labels"]["alertname"]
        for alert in watching.ask("alerts")["alerts"]
        if alert["state"] == "firing"
    ] == []
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]

    # What this server has nothing to tell of.
    silent = {
        "Last backup",
        "Last restore that was verified",
        "First certificate ends in",
        "Reports refused, late or sent again, a second",
        "Calls refused for who calls, a second",
        "Calls refused for how much was used, a second",
        # Of less than two scrapes.
        "Steps closed a second",
        "Slowest commits (p99)",
        "Unary calls, p99",
    }

    def empty() -> set[str]:
        """Panels of which a query brings nothing: rates take two scrapes."""
        shown = [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]
        return {title for title, query in shown if not watching.series(filled(query))}

    eventually(lambda: empty() <= silent)
    process.kill()
    eventually(
        lambda: [a for a in watching.ask("alerts")["alerts"] if a["labels"]["alertname"] == "SteelyardDown"]
    )
