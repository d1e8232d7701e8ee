"""What the chart promises beside a cluster: that its objects agree with each other, and with the server."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

import steelyard
from steelyard_server.config import Settings
from steelyard_server.service import probes
from tests.deploy.conftest import tool

ROOT = Path(__file__).parents[2]
CASES = ("plain", "secret", "certificate")
SECONDS = 60
NAMES = {"startupProbe": probes.STARTUP, "readinessProbe": probes.READINESS, "livenessProbe": probes.LIVENESS}
KEYS = {"grpc": "listen", "http": "http", "health": "health"}


@pytest.mark.parametrize("case", CASES)
def test_probes_ask_the_health_port_for_names_that_the_server_has(charts: Any, case: str) -> None:
    container = charts[case].container
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    config = tomllib.loads(charts[case].toml)
    for probe, name in NAMES.items():
        assert container[probe]["grpc"] == {"port": ports["health"], "service": name}
    assert {name: int(config[key].rpartition(":")[2]) for name, key in KEYS.items()} == ports


@pytest.mark.parametrize("case", CASES)
def test_a_server_runs_by_the_rendered_file_answers_each_probe_and_a_client_and_drains(
    charts: Any, tmp_path: Path, eventually: Callable[..., Any], case: str
) -> None:
    chart = charts[case]
    arguments, config = here(chart, tmp_path)
    credentials = None
    if case != "plain":
        credentials = secrets(chart, tmp_path)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "steelyard_server", *arguments], stdout=log, stderr=log
        )
    try:
        for probe in NAMES:
            service = chart.container[probe]["grpc"]["service"]
            eventually(lambda service=service: status(config["health"], service) == "SERVING", SECONDS)
        with steelyard.connect(config["listen"], credentials=credentials) as client:
            client.create_dataset("stdlib", size=100)
            run = client.create_run("gpt-a", dataset="stdlib", batch_size=8)
            with run.join() as session:
                assert len(session.next().ids) == 8
        if case != "plain":
            stranger = steelyard.Credentials(ca=tmp_path / "tls" / "ca.crt")
            with (
                steelyard.connect(config["listen"], credentials=stranger, timeout=2) as client,
                pytest.raises(steelyard.SteelyardError, match="certificate|credentials"),
            ):
                client.list_runs()
        server.send_signal(signal.SIGTERM)
        assert server.wait(chart.pod["terminationGracePeriodSeconds"]) == 0
    except BaseException:
        print((tmp_path / "log").read_text())
        raise
    finally:
        server.kill()
        server.wait(SECONDS)


def here(chart: Any, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """The container's arguments and settings, with its folders below `folder` and its addresses on loopback."""
    config = tomllib.loads(chart.toml)
    for key in KEYS.values():
        config[key] = f"127.0.0.1:{free_port()}"
    # Loopback needs neither.
    config.pop("insecure", None)
    assert config.pop("http_anywhere")
    config["kernels"] = "numpy"
    places = {mount["mountPath"]: folder / mount["name"] for mount in chart.container["volumeMounts"]}
    for place in places.values():
        place.mkdir()
    config = {key: moved(value, places) for key, value in config.items()}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in config.items())
    (folder / "config" / "steelyard.toml").write_text(text)
    return [moved(part, places) for part in chart.container["args"]], config


def moved(value: Any, places: dict[str, Path]) -> Any:
    """A path below one of the container's folders as it is here; anything else as it is."""
    for folder, place in places.items():
        if isinstance(value, str) and Path(value).is_relative_to(folder):
            return str(place / Path(value).relative_to(folder))
    return value


def secrets(chart: Any, folder: Path) -> steelyard.Credentials:
    """What the Secrets of the two cases hold, in their folders; and what a client of the table shows."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "tls" / "ca.crt")
    server = authority.issue_cert("127.0.0.1")
    server.private_key_pem.write_to_path(folder / "tls" / "tls.key")
    (folder / "tls" / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    table = folder / "access" / "access.toml"
    if chart.all("Secret"):
        table.write_text(chart.one("Secret")["stringData"]["access.toml"])
        return steelyard.Credentials(ca=folder / "tls" / "ca.crt", token="of-no-use-outside-of-a-test")
    table.write_text(
        'principals = [{name = "t", certificates = ["trainer.example"], grants ='
        ' [{verbs = ["draw", "report", "read", "admin"], runs = ["*"], datasets = ["*"]}]}]'
    )
    trainer = authority.issue_cert("trainer.example")
    trainer.private_key_and_cert_chain_pem.write_to_path(folder / "trainer.pem")
    return steelyard.Credentials(
        ca=folder / "tls" / "ca.crt", cert=folder / "trainer.pem", key=folder / "trainer.pem"
    )


def status(address: str, service: str) -> str:
    with grpc.insecure_channel(address) as channel:
        try:
            asked = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=5)
        except grpc.RpcError as error:
            return str(error)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.mark.parametrize("case", CASES)
def test_a_pod_has_the_time_of_its_pause_and_its_drain(charts: Any, case: str) -> None:
    pod, container = charts[case].pod, charts[case].container
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace = tomllib.loads(charts[case].toml)["grace_seconds"]
    assert pod["terminationGracePeriodSeconds"] == pause + grace + 15
    assert (pause, grace) == {"certificate": (0, 120)}.get(case, (5, 60))


@pytest.mark.parametrize("case", CASES)
def test_a_pod_may_do_no_more_than_the_restricted_standard_allows(charts: Any, case: str) -> None:
    pods = [charts[case].pod]
    pods += [job["spec"]["jobTemplate"]["spec"]["template"]["spec"] for job in charts[case].all("CronJob")]
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 65532
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert "hostNetwork" not in pod
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            assert limits == {"memory": requests["memory"]}
            assert not any("subPath" in mount for mount in container["volumeMounts"])
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            assert mounted - set(volumes) <= {"data"}
            kinds = {next(kind for kind in volume if kind != "name") for volume in volumes.values()}
            assert kinds <= {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}


@pytest.mark.parametrize("case", CASES)
def test_the_volume_is_one_pods_own_and_stays(charts: Any, case: str) -> None:
    spec = charts[case].one("StatefulSet")["spec"]
    assert spec["replicas"] == 1
    assert spec["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    [claim] = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    [headless] = [
        service for service in charts[case].all("Service") if service["spec"].get("clusterIP") == "None"
    ]
    assert spec["serviceName"] == headless["metadata"]["name"]
    data = tomllib.loads(charts[case].toml)["data_dir"]
    mounts = {mount["mountPath"]: mount["name"] for mount in charts[case].container["volumeMounts"]}
    assert mounts[str(Path(data).parent)] == "data"


def test_every_selector_finds_the_pod_that_it_is_for(charts: Any) -> None:
    for chart in charts.values():
        labels = chart.one("StatefulSet")["spec"]["template"]["metadata"]["labels"]
        selectors = [service["spec"]["selector"] for service in chart.all("Service")]
        selectors += [one["spec"]["selector"]["matchLabels"] for one in chart.all("PodMonitor")]
        selectors += [chart.one("StatefulSet")["spec"]["selector"]["matchLabels"]]
        for job in chart.all("CronJob"):
            # Trainers must not be sent to a pod that makes a backup.
            theirs = job["spec"]["jobTemplate"]["spec"]["template"]["metadata"]["labels"]
            assert not any(selector.items() <= theirs.items() for selector in selectors)
        assert all(selector.items() <= labels.items() for selector in selectors)


def test_only_clients_with_the_label_reach_it_and_it_reaches_nothing(charts: Any) -> None:
    policy = charts["plain"].one("NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    clients, metrics = policy["ingress"]
    assert clients["from"][0] == {"podSelector": {"matchLabels": {"steelyard-client": "true"}}}
    assert [port["port"] for port in clients["ports"]] == ["grpc"]
    assert metrics["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]
    assert [port["port"] for port in metrics["ports"]] == ["http"]
    opened = charts["certificate"].all("NetworkPolicy")[0]["spec"]
    assert opened["egress"][0]["to"] == [{"ipBlock": {"cidr": "192.0.2.0/24"}}]
    assert opened["ingress"][0]["from"][0]["namespaceSelector"] == {"matchLabels": {"team": "training"}}


def test_what_is_said_after_an_install_holds_for_it(tmp_path: Path) -> None:
    """In a pod the command line has no credentials: nothing is advised that a certificate would refuse."""
    tool("deploy/check.py", "--only", "render", "--out", tmp_path)
    said = {case: (tmp_path / f"{case}.txt").read_text() for case in CASES}
    for text in said.values():
        assert "demo-steelyard-0:7078/proxy/readyz" in text or "sampler-0:7078/proxy/readyz" in text
        assert "exec" not in text
    assert "in the namespace sampling;" in said["plain"]
    assert "namespace with the labels  team=training" in said["certificate"]
    assert "No backups are made." in said["plain"]
    assert "No backups" not in said["secret"]


def test_alerts_are_those_of_the_rules_file_and_made_only_where_an_operator_reads_them(
    charts: Any, yaml: Any
) -> None:
    assert not charts["plain"].all("PrometheusRule") + charts["plain"].all("PodMonitor")
    [rules] = yaml("monitoring/rules.yaml")
    assert charts["secret"].one("PrometheusRule")["spec"] == rules
    [endpoint] = charts["secret"].one("PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in charts["secret"].container["ports"]}
    # The word that the rules know a server by.
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "steelyard"}]


def test_a_certificate_names_what_trainers_and_backups_connect_to(charts: Any, options: Any) -> None:
    chart = charts["certificate"]
    names = chart.one("Certificate")["spec"]["dnsNames"]
    services = {service["metadata"]["name"] for service in chart.all("Service")}
    assert services <= set(names)
    assert {f"{service}.sampling.svc.cluster.local" for service in services} <= set(names)
    assert "sampler.example.com" in names
    volumes = {volume["name"]: volume for volume in chart.pod["volumes"]}
    assert volumes["tls"]["secret"]["secretName"] == chart.one("Certificate")["spec"]["secretName"]
    [job] = chart.all("CronJob")
    [container] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    address = container["args"][container["args"].index("--address") + 1]
    verb, *flags = container["args"]
    assert {flag for flag in flags if flag.startswith("--")} <= options(verb)
    assert address.rpartition(":")[0] in names
    assert {variable["name"]: variable["value"] for variable in container["env"]} == {
        "STEELYARD_CA": "/etc/steelyard/client/ca.crt",
        "STEELYARD_TOKEN_FILE": "/etc/steelyard/client/token",
    }


def test_the_table_of_principals_is_a_secret_and_in_no_other_object(charts: Any) -> None:
    chart = charts["certificate"]
    table = tomllib.loads(chart.one("Secret")["stringData"]["access.toml"])
    assert [principal["name"] for principal in table["principals"]] == ["trainers"]
    others = [found for found in chart.objects if found["kind"] != "Secret"]
    assert "token_sha256" not in json.dumps(others)


def test_a_changed_setting_restarts_the_pod(charts: Any) -> None:
    sums = {
        chart.one("StatefulSet")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for name, chart in charts.items()
        # A folder is restored into before a server is started on it.
        if name != "secret.restoring"
    }
    assert len(sums) == len(charts) - 1


def test_while_a_backup_is_brought_back_no_server_runs_and_the_next_one_has_the_folder(charts: Any) -> None:
    restoring, restored = charts["secret.restoring"], charts["secret.restored"]
    assert restoring.one("StatefulSet")["spec"]["replicas"] == 0
    assert restored.one("StatefulSet")["spec"]["replicas"] == 1
    assert not restored.all("Job")
    assert [chart.one("CronJob")["spec"]["suspend"] for chart in (restoring, restored)] == [True, False]
    pod = restoring.one("Job")["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["args"][-2:] == ["--data-dir", tomllib.loads(restored.toml)["data_dir"]]
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"][:1]}
    assert claims == {"data": f"data-{restoring.one('StatefulSet')['metadata']['name']}-0"}
    shut = [policy["spec"] for policy in restoring.all("NetworkPolicy")]
    labels = restoring.one("Job")["spec"]["template"]["metadata"]["labels"]
    [own] = [spec for spec in shut if spec["podSelector"]["matchLabels"].items() <= labels.items()]
    assert (own["ingress"], own["egress"]) == ([], [])
    keeping = {"nodeSelector", "tolerations", "securityContext", "imagePullSecrets", "priorityClassName"}
    nodes = restored.pod["affinity"]["nodeAffinity"]
    job = restored.one("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["affinity"] == job["affinity"] == {"nodeAffinity": nodes}
    assert {key: pod[key] for key in keeping} == {key: restored.pod[key] for key in keeping}


def test_what_a_platform_asks_for_is_where_it_looks(charts: Any) -> None:
    chart = charts["platform"]
    kept = [found["metadata"]["labels"]["example.com/cost-centre"] for found in chart.objects]
    assert set(kept) == {"4711"}
    assert "example.com/cost-centre" not in chart.one("StatefulSet")["spec"]["selector"]["matchLabels"]
    assert tomllib.loads(chart.toml)["tls_client_ca"] == "/etc/steelyard/client-ca/bundle.pem"
    mounts = {mount["name"]: mount["mountPath"] for mount in chart.container["volumeMounts"]}
    assert mounts["client-ca"] == "/etc/steelyard/client-ca"
    assert mounts["company"] == "/etc/company"
    assert chart.container["resources"]["limits"]["cpu"] == "4"
    assert "runAsUser" not in json.dumps(chart.objects)
    assert {service["spec"].get("type") for service in chart.all("Service")} == {None, "LoadBalancer"}
    policy = chart.all("NetworkPolicy")[0]["spec"]["ingress"][0]["from"]
    assert policy[-1] == {"ipBlock": {"cidr": "192.0.2.0/24"}}
    alerts = [rule for group in chart.one("PrometheusRule")["spec"]["groups"] for rule in group["rules"]]
    pages = [rule["annotations"]["runbook_url"] for rule in alerts if "alert" in rule]
    assert all(page.startswith("https://wiki.example.com/steelyard#steelyard") for page in pages)
    [dashboard] = [
        found for found in chart.all("ConfigMap") if "grafana_dashboard" in found["metadata"]["labels"]
    ]
    assert json.loads(dashboard["data"]["steelyard.json"]) == json.loads(
        (ROOT / "deploy/monitoring/dashboard.json").read_text()
    )


def test_settings_of_the_chart_are_those_of_the_server() -> None:
    schema = json.loads((ROOT / "deploy/chart/steelyard/values.schema.json").read_text())
    offered = set(schema["properties"]["config"]["properties"])
    assert offered <= set(Settings.model_fields)
    assert not offered & {"data_dir", "listen", "http", "health", "insecure", "grace_seconds", "port_file"}
    assert schema["additionalProperties"] is False


def test_versions_are_the_packages(yaml: Any) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    [chart] = yaml("chart/steelyard/Chart.yaml")
    assert chart["appVersion"] == version
    # A chart's version is semantic: 0.2.0.dev0 is 0.2.0-dev0 there.
    assert chart["version"] == re.sub(r"\.?(dev|a|b|rc)(\d+)$", r"-\1\2", version)
    [compose] = yaml("compose.yaml")
    built = {service["image"] for service in compose["services"].values() if "build" in service}
    assert {image.rpartition(":")[2] for image in built} == {version}
    job = yaml("examples/trainer-job.yaml")[-1]["spec"]["template"]["spec"]["containers"][0]
    assert job["image"].partition("@")[0].endswith(f":{version}")
