"""What the chart renders, run as processes: probed, trained with, upgraded, backed up by its job, lost, restored."""

from __future__ import annotations

import shutil
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

import steelyard
from tests.deploy.authority import Authority, laid
from tests.deploy.pod import Pod, Secrets
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


class Trainer:
    """One client that trains for as long as it is let, whatever becomes of the server; what it was served."""

    def __init__(self, address: str, credentials: steelyard.Credentials) -> None:
        self.served: dict[int, list[int]] = {}
        self._client = steelyard.connect(address, credentials=credentials)
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._train)

    def _train(self) -> None:
        for step, ids in train(self._client, 10_000):
            self.served[step] = ids
            if self._enough.wait(0.2):
                return

    def __enter__(self) -> Trainer:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._enough.set()
        self._thread.join(60)
        self._client.close()

    def goes_on(self) -> None:
        """Waits for two more steps."""
        wanted, deadline = len(self.served) + 2, time.monotonic() + 60
        while len(self.served) < wanted:
            assert time.monotonic() < deadline, f"no more than {len(self.served)} steps"
            assert self._thread.is_alive(), "it has ended"
            time.sleep(0.05)


def presented(address: str, shown: steelyard.Credentials) -> object:
    """When the certificate ends that the server shows now."""
    context = ssl.create_default_context(cafile=shown.ca)
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(str(shown.cert), str(shown.key))
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname=host) as secure,
    ):
        found = secure.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found).not_valid_after_utc


def end_of(certificate: bytes) -> object:
    return x509.load_pem_x509_certificate(certificate).not_valid_after_utc


@pytest.mark.timeout(400)
def test_the_rendered_server_is_trained_with_upgraded_backed_up_lost_and_restored(
    charts: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority = Authority()
    server = "localhost", "127.0.0.1"
    secrets: Secrets = {
        "sampler-tls": authority.secret(*server),
        "sampler-access": {"access.toml": ACCESS.encode()},
        "sampler-backup-client": authority.secret("keeper.internal"),
    }
    shown = laid(tmp_path / "trainer", authority.secret("trainer.internal"))
    pod = Pod(charts["secret"].objects, tmp_path, secrets)

    def trained(steps: int) -> dict[int, list[int]]:
        with steelyard.connect(pod.address("grpc"), credentials=shown) as client:
            return dict(train(client, steps))

    try:
        pod.start()
        pod.await_start()
        assert pod.probe("readinessProbe")
        assert pod.probe("livenessProbe")
        with Trainer(pod.address("grpc"), shown) as trainer:
            trainer.goes_on()
            # Secrets are renewed: nobody who is connected notices, and who comes next is shown the new certificate.
            pod.renew("sampler-tls", authority.secret(*server, days=50))
            laid(tmp_path / "trainer", authority.secret("trainer.internal"))
            trainer.goes_on()
            assert presented(pod.address("grpc"), shown) == end_of(secrets["sampler-tls"]["tls.crt"])

            # helm upgrade: the pod serves on in its pause, drains, and another one is made on its volume.
            before = len(trainer.served)
            assert pod.stop() == 0, pod.log()
            assert len(trainer.served) > before + 2
            assert not pod.probe("readinessProbe")
            pod = pod.upgraded(charts["secret.upgraded"].objects)
            pod.start()
            pod.await_start()
            trainer.goes_on()
        served = dict(trainer.served)

        assert "1 runs" in pod.backup()
        lost = trained(5)
        pod.kill()
        shutil.rmtree(pod.path("/var/lib/steelyard"))

        pod = pod.upgraded(charts["secret.restoring"].objects)
        assert "is as backup-" in pod.restore()
        pod = pod.upgraded(charts["secret.restored"].objects)
        pod.start()
        pod.await_start()
        assert pod.probe("readinessProbe"), pod.log()
        again = trained(10)
    finally:
        pod.kill()
    with steelyard.local(tmp_path_factory.mktemp("twin")) as client:
        undisturbed = dict(train(client, len(served) + len(again)))
    assert served | again == undisturbed
    assert lost == {step: undisturbed[step] for step in range(len(served), len(served) + 5)}
