"""The image, the compose file, the systemd unit and the example job, beside what they start."""

from __future__ import annotations

import configparser
import json
import re
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from steelyard_server.config import Settings, load

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def locked(name: str) -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package of a lock."""
    text = (DEPLOY / "image" / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found: dict[str, tuple[str, int]] = {}
    for line in lines:
        match = re.match(r"([\w.-]+)(?:\[[^]]*\])?==([^\s;]+)", line)
        assert match, f"expected NAME==VERSION, got {line!r}"
        found[canonicalize_name(match[1])] = (match[2], line.count("--hash=sha256:"))
    return found


def test_the_image_installs_what_the_server_needs_by_hash_and_nothing_of_training() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [Requirement(text) for text in [*project["dependencies"], *extras["server"], *extras["otel"]]]
    found = locked("requirements.lock.txt")
    for requirement in wanted:
        version, _ = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement
    assert all(hashes for _, hashes in found.values())
    assert not {"torch", "matplotlib", "pytest"} & found.keys()


def test_the_image_with_s3_is_the_other_one_and_what_fsspec_needs_for_it() -> None:
    """Where backups may go to s3:// by the chart's own example, an image can be had that does it."""
    text = (DEPLOY / "Dockerfile").read_text()
    assert "ARG LOCK=requirements\n" in text
    assert '-r "${LOCK}.lock.txt"' in text
    plain, whole = locked("requirements.lock.txt"), locked("s3.lock.txt")
    assert plain.items() <= whole.items()
    assert "s3fs" in whole.keys() - plain.keys()
    assert all(hashes for _, hashes in whole.values())


def test_volumes_of_what_runs_as_somebody_are_that_ones_own(yaml: Any) -> None:
    """A new volume is root's unless the image has the folder, whose owner it then takes over."""
    [compose] = yaml("compose.yaml")
    built = [service for service in compose["services"].values() if "build" in service]
    assert len(built) == 2
    for service in built:
        text = (ROOT / service["build"]["dockerfile"]).read_text()
        [user] = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
        owned = re.findall(rf"chown {user} (\S+)", text)
        for volume in service["volumes"]:
            assert volume.split(":")[1] in owned, volume


def test_the_wheel_of_the_image_is_built_by_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]
    found = locked("build.lock.txt")
    for text in project["build-system"]["requires"]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(found[canonicalize_name(requirement.name)][0])
    assert all(hashes for _, hashes in found.values())


def test_images_are_given_all_that_they_copy_and_that_the_wheel_is_made_of() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for file in ("Dockerfile", "examples/trainer.Dockerfile"):
        copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / file).read_text(), re.MULTILINE)
        assert {part for line in copied for part in line.split()} <= kept
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        path.split("/")[0] for path in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    }
    files = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    assert packages | files <= kept


def test_the_image_is_started_as_it_is_by_its_number_and_by_no_shell() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    final = text.rpartition("FROM ")[2]
    assert "USER 65532:65532" in final
    assert 'ENTRYPOINT ["/opt/steelyard/bin/steelyard"]' in final
    assert "RUN" not in final
    # What kernels were compiled for must be what the server looks for.
    [cpu] = {*re.findall(r"NUMBA_CPU_NAME=(\S+)", text)}
    assert cpu == "generic"


def test_flags_of_the_compose_file_are_the_servers(yaml: Any, options: Any) -> None:
    [compose] = yaml("compose.yaml")
    server = compose["services"]["server"]
    verb, *flags = server["command"]
    assert {flag.partition("=")[0] for flag in flags} <= options(verb)
    given = dict(flag.removeprefix("--").replace("-", "_").split("=", 1) for flag in flags if "=" in flag)
    switches = {flag.removeprefix("--").replace("-", "_"): True for flag in flags if "=" not in flag}
    settings = load({**given, **switches}, environ={})
    assert settings.http is not None
    assert str(settings.data_dir).startswith(server["volumes"][0].partition(":")[2])
    grace = int(server["stop_grace_period"].removesuffix("s"))
    assert grace > settings.grace_seconds
    assert f":{settings.http.rpartition(':')[2]}/readyz" in server["healthcheck"]["test"][-1]
    [prometheus] = yaml("compose/prometheus.yaml")
    [scrape] = prometheus["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"server:{settings.http.rpartition(':')[2]}"]}]
    assert "steelyard" in scrape["job_name"]


def test_ports_of_the_compose_file_are_on_loopback_and_its_files_are_there(yaml: Any) -> None:
    [compose] = yaml("compose.yaml")
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DEPLOY / source).is_file(), volume
        if "build" in service:
            assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_grafana_finds_the_dashboard_and_its_source_where_it_is_told_to_look(yaml: Any) -> None:
    [compose], [sources], [providers] = map(
        yaml, ("compose.yaml", "compose/datasource.yaml", "compose/dashboards.yaml")
    )
    mounts = {
        Path(target): (DEPLOY / source).resolve()
        for source, target, *_ in (
            volume.split(":") for volume in compose["services"]["grafana"]["volumes"] if volume[0] == "."
        )
    }
    [provider] = providers["providers"]
    assert provider["type"] == "file"
    shown = [file for target, file in mounts.items() if target.parent == Path(provider["options"]["path"])]
    assert shown == [DEPLOY / "monitoring" / "dashboard.json"]
    # Where Grafana's image looks for provisioning, by its default.
    told = {target.parent: file for target, file in mounts.items() if file.suffix == ".yaml"}
    folder = Path("/etc/grafana/provisioning")
    assert told[folder / "datasources"] == DEPLOY / "compose" / "datasource.yaml"
    assert told[folder / "dashboards"] == DEPLOY / "compose" / "dashboards.yaml"
    [source] = sources["datasources"]
    host, _, port = source["url"].removeprefix("http://").partition(":")
    prometheus = compose["services"][host]
    assert any(published.endswith(f":{port}") for published in prometheus["ports"])
    assert set(prometheus["networks"]) & set(compose["services"]["grafana"]["networks"])
    dashboard = json.loads(shown[0].read_text())
    [variable] = [one for one in dashboard["templating"]["list"] if one["type"] == "datasource"]
    assert variable["query"] == source["type"]
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"] if "datasource" in panel}
    assert used <= {f"${{{variable['name']}}}"}
    [scraping] = yaml("compose/prometheus.yaml")
    inside = {volume.split(":")[1] for volume in prometheus["volumes"]}
    assert set(scraping["rule_files"]) <= inside
    assert (
        f"--config.file={next(path for path in inside if path.endswith('prometheus.yaml'))}"
        in (prometheus["command"])
    )


def test_the_unit_leaves_a_server_the_time_to_drain(options: Any) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "systemd" / "steelyard.service")
    service = unit["Service"]
    assert int(service["TimeoutStopSec"]) > Settings.model_fields["grace_seconds"].default
    _, verb, *flags = service["ExecStart"].split()
    assert {flag for flag in flags if flag.startswith("--")} <= options(verb)


def test_the_unit_may_write_where_the_runbook_has_backups_go() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "systemd" / "steelyard.service")
    place = "/var/backups/steelyard"
    assert unit["Service"]["ProtectSystem"] == "strict"
    assert unit["Service"]["ReadWritePaths"] == f"-{place}"
    assert f"--backup-to {place}`" in (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8")
    assert f"d {place} 0700 steelyard steelyard -" in (
        (DEPLOY / "systemd" / "steelyard.tmpfiles").read_text().splitlines()
    )


def test_the_example_job_starts_what_the_example_is(yaml: Any) -> None:
    service, policy, claim, job = yaml("examples/trainer-job.yaml")
    spec = job["spec"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    flags = dict(part.removeprefix("--").split("=", 1) for part in container["args"] if "=" in part)
    assert spec["completionMode"] == "Indexed"
    assert int(flags["nnodes"]) == spec["completions"] == spec["parallelism"]
    # Pod 0 by the name that the headless Service gives it.
    name = job["metadata"]["name"]
    assert flags["rdzv-endpoint"] == f"{name}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}"
    assert service["spec"]["clusterIP"] == "None"
    assert service["metadata"]["name"] == pod["subdomain"]
    assert spec["template"]["metadata"]["labels"]["steelyard-client"] == "true"
    assert (
        policy["spec"]["podSelector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    )
    text = (ROOT / "trainer_example" / "train.py").read_text()
    script = container["args"].index("/opt/trainer/train.py")
    own = [part.partition("=")[0] for part in container["args"][script + 1 :]]
    assert own
    assert container["args"][script - 1] == "--"
    assert all(f'"{flag}"' in text for flag in own)
    variables = {variable["name"] for variable in container["env"]}
    assert {"STEELYARD_CA", "STEELYARD_CERT", "STEELYARD_KEY"} <= variables
    [claimed] = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert claimed["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_server_has_the_versions_that_were_tried_here() -> None:
    """Else the image holds other libraries than the tests: make lock, or install anew."""
    found = locked("requirements.lock.txt")
    for name in ("grpcio", "lmdb", "protobuf"):
        if metadata.version(name).split(".")[0] != found[name][0].split(".")[0]:
            pytest.fail(f"{name}: {metadata.version(name)} here, {found[name][0]} in the image")
