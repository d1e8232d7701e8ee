"""What the chart renders, run as processes: probed, trained with, backed up by its job, lost, restored."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trustme

import steelyard
from tests.deploy.pod import Pod
from tests.deploy.programs.train import train

ACCESS = """
[[principals]]
name = "trainers"
certificates = ["trainer.internal"]

[[principals.grants]]
verbs = ["draw", "report", "read", "admin"]
runs = ["r"]
datasets = ["d"]

[[principals]]
name = "keeper"
certificates = ["keeper.internal"]

[[principals.grants]]
verbs = ["admin"]
runs = ["*"]
datasets = ["*"]
"""


class Authority:
    """Certificates of a server and of its callers, as Secrets hold them."""

    def __init__(self) -> None:
        self._ca = trustme.CA()

    def secret(self, *names: str) -> dict[str, bytes]:
        issued = self._ca.issue_cert(*names)
        return {
            "ca.crt": self._ca.cert_pem.bytes(),
            "tls.crt": b"".join(blob.bytes() for blob in issued.cert_chain_pems),
            "tls.key": issued.private_key_pem.bytes(),
        }


def credentials(folder: Path, secret: dict[str, bytes]) -> steelyard.Credentials:
    folder.mkdir()
    for name, content in secret.items():
        (folder / name).write_bytes(content)
    return steelyard.Credentials(ca=folder / "ca.crt", cert=folder / "tls.crt", key=folder / "tls.key")


@pytest.mark.timeout(400)
def test_the_rendered_server_is_probed_trained_with_backed_up_lost_and_restored(
    charts: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with steelyard.local(tmp_path_factory.mktemp("twin")) as client:
        undisturbed = dict(train(client, 30))
    authority = Authority()
    secrets = {
        "sampler-tls": authority.secret("localhost", "127.0.0.1"),
        "sampler-access": {"access.toml": ACCESS.encode()},
        "sampler-backup-client": authority.secret("keeper.internal"),
    }
    trainer = credentials(tmp_path / "trainer", authority.secret("trainer.internal"))
    pod = Pod(charts["secret"].objects, tmp_path, secrets)

    def trained(steps: int) -> dict[int, list[int]]:
        with steelyard.connect(pod.address("grpc"), credentials=trainer) as client:
            return dict(train(client, steps))

    try:
        pod.start()
        pod.await_start()
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        served = trained(10)

        # A pod that is moved: drained within its time, started again on its volume.
        assert pod.stop() == 0, pod.log()
        assert not pod.probe("readinessProbe")
        pod.start()
        pod.await_start()
        served |= trained(5)

        assert "1 runs" in pod.job()
        assert trained(5) == {step: undisturbed[step] for step in range(15, 20)}
        pod.kill()
        shutil.rmtree(pod.path("/var/lib/steelyard"))
        pod.path("/var/lib/steelyard").mkdir()
        subprocess.run(
            [
                *(sys.executable, "-m", "steelyard_server", "restore"),
                *("--from", pod.path("/var/backups/steelyard")),
                *("--data-dir", pod.path("/var/lib/steelyard/data")),
            ],
            check=True,
            timeout=100,
        )
        pod.start()
        pod.await_start()
        assert pod.probe("readinessProbe"), pod.log()
        served |= trained(15)
    finally:
        pod.kill()
    assert served == undisturbed
