"""Alert rules, dashboard and runbook hold together: with each other, and with what a server exports."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import steelyard
from steelyard_server.cli.verbs import cli
from steelyard_server.config import Settings
from steelyard_server.observing.names import BY_NAME
from tests.deploy.prometheus import MONITORING, ROOT, tool

RULES = MONITORING / "rules.yaml"
TRIED = ("rules.test.yaml", "rules.days.test.yaml")
DASHBOARD = MONITORING / "dashboard.json"
RUNBOOK = ROOT / "deploy" / "RUNBOOK.md"
ALWAYS_THERE = {"up", "ALERTS", "process_start_time_seconds", "process_resident_memory_bytes"} | {
    "process_open_fds",
    "process_cpu_seconds_total",
}
"""Prometheus's own, and those of its client library."""


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def exported(name: str) -> bool:
    """Whether a server exports it: a family, or a series of a histogram."""
    family = BY_NAME.get(re.sub(r"_(bucket|sum|count)$", "", name))
    return name in BY_NAME or (family is not None and family.kind == "histogram")


def unknown(text: str) -> set[str]:
    """Names in `text` that look like metrics, and that no server exports and no rule records."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    named = set(re.findall(r"\b(?:steelyard_[a-z0-9_]+|process_[a-z_]+|steelyard:[a-z0-9_:]+)", text))
    packages = {"steelyard_server"}
    return {
        name
        for name in named - recorded - ALWAYS_THERE - packages
        if not exported(name) and not name.endswith("_")
    }


def anchors(page: str) -> set[str]:
    """What headings of a page can be linked to by."""
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def run(*command: object, cwd: Path = MONITORING) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize(
    "text", ["rate(steelyard_run_steps[5m])", "steelyard:no_such:ratio", "process_no_such"]
)
def test_a_name_that_no_server_exports_is_found(text: str) -> None:
    assert unknown(text)


def test_every_metric_of_the_rules_is_exported() -> None:
    assert unknown(" ".join(rule["expr"] for rule in rules())) == set()


def test_every_metric_of_the_dashboard_is_exported() -> None:
    assert len(queries()) > 40
    assert unknown(DASHBOARD.read_text()) == set()


def test_every_metric_of_the_runbook_is_exported() -> None:
    assert unknown(RUNBOOK.read_text()) == set()


def test_labels_that_rules_and_dashboard_select_by_are_exported() -> None:
    ours = {"job", "instance", "pod", "le"}
    selected = [
        (name, label)
        for text in [*(rule["expr"] for rule in rules()), *queries()]
        for name, inside in re.findall(r"(steelyard_[a-z_]+)\{([^}]*)\}", text)
        for label in re.findall(r"(\w+)\s*(?:=~|=|!~|!=)", inside)
    ]
    assert selected
    for name, label in selected:
        family = BY_NAME.get(name) or BY_NAME[re.sub(r"_(bucket|sum|count)$", "", name)]
        assert label in {*ours, *family.labels}, f"{name} has no label {label}"


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_how_bad_it_is_what_it_means_and_where_to_read_on(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert {"summary", "description", "runbook"} <= set(rule["annotations"])
    file, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert ROOT / file == RUNBOOK
    assert anchor == name.lower()
    assert anchor in anchors(RUNBOOK.read_text())


def test_the_runbook_has_no_alert_that_is_none() -> None:
    assert set(re.findall(r"^#+ (Steelyard[A-Z]\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)) == set(
        alerts()
    )


def test_verbs_and_settings_that_the_runbook_names_are_there() -> None:
    page = RUNBOOK.read_text()
    verbs = set(re.findall(r"(?:`|/|-- |^)steelyard ([a-z]+)", page, flags=re.MULTILINE))
    assert {"serve", "backup", "restore"} <= verbs
    assert verbs <= {
        command.name or command.callback.__name__ for command in cli.registered_commands if command.callback
    }
    settings = set(re.findall(r"`(backup_\w+|checkpoint_\w+|max_\w+|grace_\w+)`", page))
    events = {name for name in settings if name.endswith("_failed")}
    assert settings - events
    assert settings - events <= set(Settings.model_fields)


@pytest.mark.parametrize("name", alerts())
def test_the_runbook_says_of_an_alert_what_it_means_where_to_look_and_what_to_do(name: str) -> None:
    _, _, rest = RUNBOOK.read_text().partition(f"### {name}\n")
    said = re.findall(r"^\* \*(.+?)\*: (.+)$", rest.partition("\n### ")[0], flags=re.MULTILINE)
    assert [head for head, _ in said] == ["Means", "First look", "Do"]
    # Whoever comes by a link from an alert has not read what stands above.
    assert not [text for _, text in said if "s above" in text]


def test_what_the_runbook_links_to_and_points_at_is_there() -> None:
    page = RUNBOOK.read_text()
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= anchors(page)
    titles = {panel["title"] for panel in json.loads(DASHBOARD.read_text())["panels"]}
    shown = re.findall(r"[Dd]ashboard, ((?:\*[^*]+\*(?: and )?)+)", page)
    named = {title for part in shown for title in re.findall(r"\*([^*]+)\*", part)}
    assert len(named) > 5
    assert named <= titles
    values = yaml.safe_load((ROOT / "deploy" / "chart" / "steelyard" / "values.yaml").read_text())
    given = re.findall(r"`([\w.]+)` of the chart", page) + re.findall(r"--set ([\w.]+)=", page)
    assert len(given) > 5
    for path in given:
        held = values
        for key in path.split("."):
            assert key in held, path
            held = held[key]
    for name, kind in (("client", steelyard.Client), ("run", steelyard.Run)):
        called = set(re.findall(rf"`{name}\.(\w+)", page))
        assert called
        assert called <= set(dir(kind))


def test_what_the_runbook_looks_for_in_the_log_is_logged() -> None:
    sought = set(re.findall(r"`(\w+)` in the log", RUNBOOK.read_text())) | set(
        re.findall(r"The log \(`(\w+)`", RUNBOOK.read_text())
    )
    source = "".join(path.read_text() for path in (ROOT / "server").rglob("*.py"))
    assert len(sought) > 3
    assert {event for event in sought if f'"{event}"' not in source} == set()


def test_every_alert_is_seen_to_fire_and_to_be_silent_before() -> None:
    fired: set[str] = set()
    for file in TRIED:
        for case in yaml.safe_load((MONITORING / file).read_text())["tests"]:
            moments = [
                {re.findall(r'alertname="(\w+)"', one["labels"])[0] for one in moment["exp_samples"]}
                for moment in case["promql_expr_test"]
            ]
            assert moments[0] == set(), f"{case['name']}: the first moment is one at which nothing fires"
            fired |= set().union(*moments)
    assert fired == set(alerts())


def test_promtool_takes_the_rules_and_every_alert_fires_where_it_should_and_nowhere_else() -> None:
    assert "SUCCESS" in run(tool("promtool"), "check", "rules", RULES.name)
    assert run(tool("promtool"), "test", "rules", *TRIED).count("SUCCESS") == len(TRIED)


def test_the_tests_of_the_rules_notice_an_alert_that_no_longer_fires(tmp_path: Path) -> None:
    spoiled = RULES.read_text().replace(
        "steelyard_backup_timestamp_seconds > 26 *", "steelyard_backup_timestamp_seconds > 99 *"
    )
    assert spoiled != RULES.read_text()
    (tmp_path / RULES.name).write_text(spoiled)
    (tmp_path / TRIED[1]).write_text((MONITORING / TRIED[1]).read_text())
    with pytest.raises(AssertionError, match="SteelyardBackupStale"):
        run(tool("promtool"), "test", "rules", TRIED[1], cwd=tmp_path)


def test_the_dashboard_is_what_its_code_makes(tmp_path: Path) -> None:
    program = [sys.executable, str(MONITORING / "dashboard.py"), "--check"]
    run(*program)
    (tmp_path / "old.json").write_text(DASHBOARD.read_text().replace("Takes work", "Works"))
    stale = subprocess.run(
        [*program, "--to", tmp_path / "old.json"], capture_output=True, text=True, timeout=60
    )
    assert (stale.returncode, "make gen" in stale.stderr) == (1, True)
