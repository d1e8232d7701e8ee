"""TLS at a real server: certificates looked at, rotated under load, a CA that is dropped."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import grpc
import pytest
import trustme

from steelyard.v1 import datasets_pb2
from steelyard_server.config import ConfigError

from .conftest import AUDIENCE, refusal, replace, serving, tls_channel

LIST = datasets_pb2.ListDatasetsRequest()
ONE_CALL_EACH = (("grpc.max_reconnect_backoff_ms", 100),)


def served_over_tls(server, ca, leaf=None):
    with tls_channel(server, ca, leaf) as stubs:
        stubs.datasets.ListDatasets(LIST, timeout=20)


def expiries(server):
    assert server.tls is not None
    return server.tls.certificate_expiries()


def test_a_server_over_tls_answers_on_a_port_it_chose_itself(tmp_path, files):
    with serving(tmp_path / "data", **files.settings()) as server:
        served_over_tls(server, files.ca)
        assert list(expiries(server)) == [str(files.cert)]
        with grpc.insecure_channel(server.address) as channel:
            code, _ = refusal(
                channel.unary_unary("/steelyard.v1.DatasetService/ListDatasets"), b"", timeout=2
            )
            assert code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


def test_who_connects_must_show_a_certificate_of_the_client_ca(tmp_path, files):
    stranger = trustme.CA()
    expired = files.ca.issue_cert("trainer.internal", not_before=_days(-2), not_after=_days(-1))
    with serving(tmp_path / "data", **files.settings(clients=True)) as server:
        served_over_tls(server, files.ca, files.ca.issue_cert("trainer.internal"))
        for leaf in (None, stranger.issue_cert("trainer.internal"), expired):
            with tls_channel(server, files.ca, leaf) as stubs:
                assert refusal(stubs.datasets.ListDatasets, LIST, timeout=3)[0] in (
                    "UNAVAILABLE",
                    "DEADLINE_EXCEEDED",
                )
        assert set(expiries(server)) == {str(files.cert), str(files.client_ca)}


def _days(number):
    import datetime

    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=number)


class Callers:
    """Call and call again, each time on a connection of their own; every error is kept."""

    def __init__(self, server, ca, leaves, count=2):
        self.server, self.ca, self.leaves = server, ca, leaves
        self.errors, self.calls = [], 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]

    def _call(self):
        with tls_channel(self.server, self.ca, self.leaves[0]) as lasting:
            while not self._stop.is_set():
                try:
                    lasting.datasets.ListDatasets(LIST, timeout=20)
                    with tls_channel(self.server, self.ca, self.leaves[0]) as fresh:
                        fresh.datasets.ListDatasets(LIST, timeout=20)
                except grpc.RpcError as error:
                    self.errors.append(error)
                self.calls += 2

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)


def test_rotating_certificates_and_client_cas_under_load_fails_no_call(tmp_path, files, eventually):
    with serving(tmp_path / "data", **files.settings(clients=True)) as server:
        leaves = [files.ca.issue_cert("trainer.internal")]
        newer = trustme.CA()
        with Callers(server, files.ca, leaves) as callers:

            def some_more():
                start = callers.calls
                eventually(lambda: callers.calls > start + 8)

            for round_ in range(3):
                before = expiries(server)
                files.issue_server(days=100 + round_)
                some_more()
                assert expiries(server) != before
            files.trust(files.ca, newer)
            some_more()
            leaves[0] = newer.issue_cert("trainer.internal")
            some_more()
            files.trust(newer)
            some_more()
        assert callers.errors == []
        with tls_channel(server, files.ca, files.ca.issue_cert("trainer.internal")) as stubs:
            assert refusal(stubs.datasets.ListDatasets, LIST, timeout=3)[0] in (
                "UNAVAILABLE",
                "DEADLINE_EXCEEDED",
            )


def test_a_connection_made_under_a_ca_that_was_dropped_ends_within_age_and_grace(tmp_path, files):
    age, grace = 1.0, 0.5
    limits = {"max_connection_age_seconds": age, "max_connection_age_grace_seconds": grace}
    with (
        serving(tmp_path / "data", **files.settings(clients=True), **limits) as server,
        tls_channel(server, files.ca, files.ca.issue_cert("trainer.internal")) as stubs,
    ):
        answers = stubs.trainers.Train(_never_ending(), timeout=60)
        stubs.datasets.ListDatasets(LIST, timeout=20)
        files.trust(trustme.CA())
        dropped = time.monotonic()
        # The stream lives on the old connection until that is cut; from then on no call is answered.
        with pytest.raises(grpc.RpcError) as cut:
            next(answers)
        assert cut.value.code().name == "UNAVAILABLE"
        # A tenth more, and what a busy machine takes.
        assert time.monotonic() - dropped < 1.1 * age + grace + 10
        assert refusal(stubs.datasets.ListDatasets, LIST, timeout=3)[0] in (
            "UNAVAILABLE",
            "DEADLINE_EXCEEDED",
        )


def _never_ending():
    threading.Event().wait(60)
    yield from ()


def test_a_bad_rotation_keeps_what_was_there(tmp_path, files, caplog):
    with serving(tmp_path / "data", **files.settings()) as server:
        replace(files.cert, trustme.CA().issue_cert("localhost", "127.0.0.1").cert_chain_pems[0].bytes())
        served_over_tls(server, files.ca)
        files.key.write_bytes(b"half a k")
        served_over_tls(server, files.ca)
        files.cert.unlink()
        served_over_tls(server, files.ca)
        assert "file_not_reloaded" in caplog.text
        assert "PRIVATE" not in caplog.text
        files.issue_server()
        served_over_tls(server, files.ca)


def test_a_pair_that_does_not_match_or_cannot_be_read_is_refused_at_start(tmp_path, files):
    def refused(match, **settings):
        with pytest.raises(ConfigError, match=match), serving(tmp_path / "data", **settings):
            pass

    other = trustme.CA().issue_cert("localhost")
    replace(files.key, other.private_key_pem.bytes())
    refused("expected the key of the first certificate", **files.settings())
    replace(files.key, b"nothing")
    refused("expected an unencrypted private key in PEM", **files.settings())
    files.issue_server()
    replace(files.client_ca, b"nothing")
    refused("expected certificates in PEM in .*clients.pem", **files.settings(clients=True))
    files.cert.unlink()
    refused("cannot read .*cert.pem: No such file", **files.settings())
    assert not (tmp_path / "data").exists(), "nothing is touched before that"


def test_a_daemon_logs_json_alone_also_where_a_handshake_fails(tmp_path, files):
    port, log = tmp_path / "port", tmp_path / "log"
    flags = {"data-dir": tmp_path / "data", "listen": "127.0.0.1:0", "port-file": port, "log-format": "json"}
    flags |= {"tls-cert": files.cert, "tls-key": files.key, "kernels": "numpy"}
    command = [sys.executable, "-m", "steelyard_server", "serve"]
    command += [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    with log.open("wb") as stderr:
        server = subprocess.Popen(command, stderr=stderr, env=environment)
    try:
        deadline = time.monotonic() + 60
        while not port.exists():
            assert time.monotonic() < deadline, log.read_text()
            assert server.poll() is None, log.read_text()
            time.sleep(0.02)
        with socket.create_connection(("127.0.0.1", int(port.read_text())), timeout=20) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            while plain.recv(4096):
                pass
    finally:
        server.terminate()
        server.wait(30)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    [serving] = [line for line in lines if line["event"] == "serving"]
    assert (serving["tls"], serving["access"], serving["http"], serving["health"]) == ("on", None, None, None)


def test_a_faulty_file_is_noticed_where_nobody_calls(tmp_path, files, issuer):
    access, keys = tmp_path / "access.toml", tmp_path / "keys.pem"
    access.write_text("")
    keys.write_bytes(issuer.public_pem)
    settings = files.settings() | {"access": access, "http": "127.0.0.1:0"}
    settings |= {"jwt_keys": str(keys), "jwt_audience": "here"}
    with serving(tmp_path / "data", **settings) as server:

        def faulty():
            with urllib.request.urlopen(f"http://{server.http_address}/metrics", timeout=20) as page:
                lines = [line for line in page.read().decode().splitlines() if "file_not_reloaded{" in line]
            return {line.split('"')[1] for line in lines if line.endswith(" 1.0")}, len(lines)

        def becomes(expected):
            deadline = time.monotonic() + 30
            while faulty() != (expected, 4):
                assert time.monotonic() < deadline, faulty()
                time.sleep(0.1)

        becomes(set())
        replace(access, b"no table")
        becomes({str(access)})
        replace(files.key, b"no key")
        becomes({str(access), str(files.cert), str(files.key)})
        keys.unlink()
        becomes({str(access), str(keys), str(files.cert), str(files.key)})
        replace(keys, issuer.public_pem)
        becomes({str(access), str(files.cert), str(files.key)})
        replace(access, b"")
        files.issue_server()
        becomes(set())


@pytest.mark.parametrize("which", ["access", "jwt_keys", "tls_cert"])
def test_a_file_whose_file_system_hangs_holds_up_no_call_and_no_scrape(tmp_path, files, issuer, which):
    """A pipe that nobody writes to stands for it: reading it never ends."""
    access, keys = tmp_path / "access.toml", tmp_path / "keys.pem"
    access.write_text("")
    keys.write_bytes(issuer.public_pem)
    settings = files.settings() | {"access": access, "http": "127.0.0.1:0"}
    settings |= {"jwt_keys": str(keys), "jwt_audience": AUDIENCE}
    with serving(tmp_path / "data", **settings) as server, tls_channel(server, files.ca) as stubs:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "pipe").replace(settings[which])
        until = time.monotonic() + 2.5
        while time.monotonic() < until:  # for longer than two looks at it
            told = refusal(
                stubs.datasets.ListDatasets,
                LIST,
                timeout=5,
                metadata=(("authorization", f"Bearer {issuer.token()}"),),
            )
            assert told[0] == "UNAUTHENTICATED"
            urllib.request.urlopen(f"http://{server.http_address}/metrics", timeout=5).close()
            time.sleep(0.05)
