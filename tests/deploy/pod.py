"""A rendered StatefulSet as a process of this machine: what its manifest says, with folders for its volumes.

The container's arguments and environment are used as they are; its paths lie under a folder, and its addresses are free
ports of loopback. What only a kubelet does (the user, the file systems, resources, the network's policies) is not done.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy.prometheus import free_port

Objects = list[dict[str, Any]]
Secrets = dict[str, Mapping[str, bytes]]


def one(objects: Objects, kind: str) -> dict[str, Any]:
    [found] = [document for document in objects if document["kind"] == kind]
    return found


def project(folder: Path, files: Mapping[str, bytes]) -> None:
    """Files of a ConfigMap or Secret as a kubelet has them: links into a folder that one rename exchanges."""
    held = folder / f"..{time.time_ns()}"
    held.mkdir()
    for name, content in files.items():
        (held / name).write_bytes(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    new = folder / "..data_tmp"
    new.symlink_to(held.name)
    new.replace(folder / "..data")


class Pod:
    """The pod of `objects`' StatefulSet. `secrets`: by name, what the cluster would hold; by key, their contents.

    Volumes live as long as `root`, so a pod can be started again on them.
    """

    def __init__(
        self, objects: Objects, root: Path, secrets: Secrets, ports: dict[int, int] | None = None
    ) -> None:
        self._objects = objects
        self._root = root
        self._secrets = secrets
        self._spec = one(objects, "StatefulSet")["spec"]["template"]["spec"]
        [self.container] = self._spec["containers"]
        self._ports = ports or {port["containerPort"]: free_port() for port in self.container["ports"]}
        self._named = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        self._process: subprocess.Popen[bytes] | None = None
        self._mount(self._spec, self.container)

    def upgraded(self, objects: Objects) -> Pod:
        """The pod of later manifests, on the same volumes and behind the same Service."""
        assert self._process is None, "its volume can be had by one pod at a time"
        return Pod(objects, self._root, self._secrets, self._ports)

    def address(self, port: str) -> str:
        """Where the port of this name is."""
        return f"127.0.0.1:{self._ports[self._named[port]]}"

    def path(self, path: str) -> Path:
        """Where an absolute path of the container is."""
        return self._root / path.removeprefix("/")

    def start(self) -> None:
        with self.path("/pod.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(self.container), env=self._environment(self.container), stdout=log, stderr=log
            )

    def probe(self, name: str) -> bool:
        """What a kubelet would find by the probe `name` now."""
        what = self.container[name]
        port, service = what["grpc"]["port"], what["grpc"]["service"]
        with grpc.insecure_channel(f"127.0.0.1:{self._ports[port]}") as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=service), timeout=what["timeoutSeconds"]
                )
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def await_start(self) -> None:
        """As a kubelet: the startup probe, again and again, and no longer than it is allowed to fail."""
        what = self.container["startupProbe"]
        deadline = time.monotonic() + min(100.0, what["periodSeconds"] * what["failureThreshold"])
        while not self.probe("startupProbe"):
            assert self._process is not None
            assert self._process.poll() is None, self.log()
            assert time.monotonic() < deadline, f"not started in time: {self.log()}"
            time.sleep(0.1)

    def stop(self) -> int:
        """Ends it as a kubelet: the pause of preStop, the signal, and what is left of its grace; the exit status."""
        assert self._process is not None
        ends = time.monotonic() + self._spec["terminationGracePeriodSeconds"]
        time.sleep(
            self.container.get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})["sleep"]["seconds"]
        )
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(ends - time.monotonic())
        self._process = None
        return status

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def log(self) -> str:
        return self.path("/pod.log").read_text(errors="replace")[-4000:]

    def backup(self) -> str:
        """Runs the container of the CronJob beside the pod; what it printed."""
        return self._job(one(self._objects, "CronJob")["spec"]["jobTemplate"]["spec"])

    def restore(self) -> str:
        """Runs the container of the Job that there is while no pod is meant to run; what it printed."""
        assert self._process is None
        assert one(self._objects, "StatefulSet")["spec"]["replicas"] == 0
        return self._job(one(self._objects, "Job")["spec"])

    def _job(self, job: dict[str, Any]) -> str:
        spec = job["template"]["spec"]
        [container] = spec["containers"]
        self._mount(spec, container)
        done = subprocess.run(
            self._command(container),
            env=self._environment(container),
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr + self.log()
        return done.stdout

    def _command(self, container: dict[str, Any]) -> list[str]:
        """The image's entry point is steelyard; the container adds arguments to it, and no command of its own."""
        assert "command" not in container
        return [sys.executable, "-m", "steelyard_server", *map(self._here, container["args"])]

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        given = {item["name"]: self._here(item["value"]) for item in container.get("env", ())}
        kept = {name: value for name, value in os.environ.items() if not name.startswith("STEELYARD_")}
        # Batches are the same, and starts are cheaper.
        return {**kept, "STEELYARD_KERNELS": "numpy", **given}

    def _mount(self, spec: dict[str, Any], container: dict[str, Any]) -> None:
        """Folders where the container has its volumes; each mount must have one."""
        claims = one(self._objects, "StatefulSet")["spec"]["volumeClaimTemplates"]
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        volumes |= {claim["metadata"]["name"]: {} for claim in claims}
        for mount in container["volumeMounts"]:
            folder = self.path(mount["mountPath"])
            folder.mkdir(parents=True, exist_ok=True)
            if files := self._files(volumes[mount["name"]]):
                project(folder, files)

    def renew(self, secret: str, files: Mapping[str, bytes]) -> None:
        """Changes a Secret, and the folder at which the pod has it."""
        self._secrets[secret] = files
        [volume] = [
            volume["name"]
            for volume in self._spec["volumes"]
            if volume.get("secret", {}).get("secretName") == secret
        ]
        [mount] = [mount for mount in self.container["volumeMounts"] if mount["name"] == volume]
        project(self.path(mount["mountPath"]), files)

    def _files(self, volume: dict[str, Any]) -> Mapping[str, bytes]:
        if "configMap" in volume:
            [held] = [
                document["data"]
                for document in self._objects
                if document["kind"] == "ConfigMap"
                and document["metadata"]["name"] == volume["configMap"]["name"]
            ]
            return {name: self._here(text).encode() for name, text in held.items()}
        if "secret" in volume:
            return self._secrets[volume["secret"]["secretName"]]
        return {}

    def _here(self, text: str) -> str:
        """Paths and addresses of the container as they are on this machine."""
        text = re.sub(r"(?<![\w.:/])/(var|etc)/", rf"{self._root}/\1/", text)
        return re.sub(
            r"(?:0\.0\.0\.0|\[::\]|[a-z][a-z0-9-]*):(\d+)\b",
            lambda match: f"127.0.0.1:{self._ports.get(int(match[1]), match[1])}",
            text,
        )
