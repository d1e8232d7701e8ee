"""TLS and tokens from the client's side, at a real server: who is let in, what is said where not, files that change."""

from __future__ import annotations

import datetime
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme

import steelyard
from steelyard import Credentials, stream
from steelyard_server.config import Settings
from steelyard_server.server import Server

README = Path(__file__).parents[2] / "README.md"
PAST = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


def write(path: Path, *blobs: trustme.Blob) -> str:
    """Replaces the file as a whole."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(b"".join(blob.bytes() for blob in blobs))
    draft.replace(path)
    return str(path)


class Authority:
    """Certificates in files of one folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca = trustme.CA()
        self.file = write(folder / "ca.pem", self.ca.cert_pem)

    def issue(self, name: str, file: str, *, expired: bool = False) -> tuple[str, str]:
        """The files of a certificate and its key."""
        times: dict[str, Any] = {}
        if expired:
            times = {"not_before": PAST, "not_after": PAST + datetime.timedelta(days=1)}
        one = self.ca.issue_cert(name, **times)
        return (
            write(self.folder / f"{file}.crt", *one.cert_chain_pems),
            write(self.folder / f"{file}.key", one.private_key_pem),
        )


class Secured:
    """A server of this process that serves TLS, and lets in whom its access file names, where it has one."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.settings: dict[str, Any] = {
            "tls_cert": authority.folder / "server.crt",
            "tls_key": authority.folder / "server.key",
        }
        self._folder = folder

    def start(self) -> str:
        """Its address."""
        given = {"data_dir": self._folder, "listen": "127.0.0.1:0", "kernels": "numpy", **self.settings}
        self.server = Server(Settings(**given))
        self.server.start()
        return self.server.address


def access(path: Path, *tokens: str, more: str = "") -> Path:
    """An access file by which whoever shows one of the tokens may do everything, up to a quota in `more`."""
    hashes = [hashlib.sha256(token.encode()).hexdigest() for token in tokens]
    grants = (
        '[[principals.grants]]\nverbs = ["admin", "draw", "report", "read"]\nruns = ["*"]\ndatasets = ["*"]\n'
    )
    draft = path.with_suffix(".draft")
    draft.write_text(f'[[principals]]\nname = "p"\ntoken_sha256 = {json.dumps(hashes)}\n{more}\n{grants}')
    return draft.replace(path)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    one = Authority(tmp_path / "pki")
    one.issue("127.0.0.1", "server")
    return one


@pytest.fixture
def secured(tmp_path: Path, authority: Authority) -> Iterator[Secured]:
    one = Secured(tmp_path / "data", authority)
    yield one
    one.server.stop(1.0)


def run_of(client: steelyard.Client) -> steelyard.Run:
    client.create_dataset("d", 64, exist_ok=True)
    return client.create_run("r", dataset="d", batch_size=8, staleness=2, exist_ok=True)


def refused(address: str, credentials: Credentials | None) -> str:
    """What a client is told that has no TLS with the server."""
    with (
        steelyard.connect(address, credentials=credentials, timeout=60) as client,
        pytest.raises(steelyard.HandshakeFailed, match="listing the runs: ") as failed,
    ):
        client.list_runs()
    return str(failed.value).removeprefix("listing the runs: ")


def kept_out(address: str, credentials: Credentials) -> str:
    """What a session is told, as refused."""
    run = steelyard.Run(steelyard.connect(address, credentials=credentials), "r")
    with pytest.raises(steelyard.HandshakeFailed) as failed:
        run.join(timeout=60)
    return str(failed.value)


def test_a_run_is_made_trained_and_read_over_tls(secured, authority):
    secured.settings["tls_client_ca"] = authority.file
    cert, key = authority.issue("trainer@example.org", "trainer")
    credentials = Credentials(ca=authority.file, cert=cert, key=key)
    with steelyard.connect(secured.start(), credentials=credentials) as client:
        run = run_of(client)
        with run.join() as session:
            for _ in range(3):
                session.report(session.next(), np.ones(8))
        assert run.stats().reported_losses == 24
        assert sum(isinstance(event, steelyard.events.LossesReported) for event in run.events()) == 3


def test_a_handshake_that_fails_is_told_in_words_long_before_the_deadline(secured, authority, tmp_path):
    secured.settings["tls_client_ca"] = authority.file
    address, stranger = secured.start(), Authority(tmp_path / "other")
    cert, key = authority.issue("a@example.org", "good")
    good = {"ca": authority.file, "cert": cert, "key": key}
    assert f"is not signed by {stranger.file}" in refused(
        address, Credentials(**{**good, "ca": stranger.file})
    )
    named = refused(address, Credentials(**good, server_name="other.example"))
    assert f"the certificate of the server at {address} does not have the name 'other.example'" in named
    assert "ended the TLS handshake. It was shown no certificate" in refused(
        address, Credentials(ca=authority.file)
    )
    for cert, key in (
        stranger.issue("b@example.org", "b"),
        authority.issue("c@example.org", "c", expired=True),
    ):
        told = refused(address, Credentials(ca=authority.file, cert=cert, key=key))
        assert f"It was shown the certificate in {cert}, which may have expired" in told
    authority.issue("127.0.0.1", "server", expired=True)
    assert "has expired" in refused(address, Credentials(**good))


def test_plaintext_to_tls_and_tls_to_plaintext_say_so(secured, authority, tmp_path):
    address = secured.start()
    asks = (
        lambda client: client.list_runs(),
        lambda client: client.delete_run("r"),
        lambda client: list(steelyard.run.Run(client, "r").events()),
        lambda client: client.admin.check(timeout=60),
        lambda client: steelyard.run.Run(client, "r").join(timeout=60),
    )
    for ask in asks:
        began = time.monotonic()
        with (
            steelyard.connect(address, timeout=60.0) as client,
            pytest.raises(steelyard.Unavailable) as unmet,
        ):
            ask(client)
        assert time.monotonic() - began < 20
        assert f"{address} speaks TLS, and this client was given no credentials" in str(unmet.value)
    with steelyard.local(tmp_path / "plain", kernels="numpy") as plain:
        told = refused(plain.address, Credentials(ca=authority.file))
    assert told == f"{plain.address} does not speak TLS: a server without TLS, or another service"


def test_who_closes_connections_and_speaks_no_tls_is_waited_for(tmp_path):
    """As a proxy does whose server is not there yet."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        port, refusals = proxy.getsockname()[1], 6

        def refuse() -> None:
            for _ in range(refusals):
                proxy.accept()[0].close()
            proxy.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        with steelyard.connect(f"127.0.0.1:{port}", timeout=60.0) as client:
            waiting = ThreadPoolExecutor(1).submit(client.list_runs)
            thread.join(60)
            with steelyard.local(tmp_path / "late", kernels="numpy", listen=f"127.0.0.1:{port}"):
                assert waiting.result(60) == []


def test_files_that_are_no_good_are_named_before_anything_is_sent(authority, tmp_path):
    cert, _ = authority.issue("a@example.org", "one")
    _, other = authority.issue("b@example.org", "two")
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for given, words in (
        ({"ca": tmp_path / "none.pem"}, f"ca: cannot read {tmp_path / 'none.pem'}: No such file"),
        ({"ca": garbage}, f"ca: expected certificates in PEM form in {garbage}"),
        ({"cert": cert, "key": other}, f"a certificate in PEM form in {cert} and its key"),
        ({"cert": cert, "key": garbage}, f"in {garbage}; they do not go together or are neither"),
    ):
        with steelyard.connect("127.0.0.1:1", credentials=Credentials(**given)) as client:
            with pytest.raises(steelyard.InvalidArgument, match=words):
                client.list_runs()
            with pytest.raises(steelyard.InvalidArgument, match=words):
                steelyard.Run(client, "r").join()


def train(run: steelyard.Run, until: threading.Event, errors: list[BaseException]) -> None:
    """Trains, asks and reads events until it is told to stop; what it met goes to `errors`."""
    try:
        with run.join(timeout=30) as session:
            while not until.is_set():
                batch = session.next()
                session.report(batch, np.full(8, batch.step + 1))
                run.stats()
                list(run.events(max(0, batch.step - 2), batch.step))
    except BaseException as error:
        errors.append(error)


def test_certificates_and_the_authority_change_while_a_trainer_works_and_it_sees_nothing(
    secured, authority, tmp_path, eventually
):
    """New ones come beside the old ones, then the old ones go; connections end by age meanwhile."""
    clients = str(tmp_path / "clients.pem")
    trusted = str(tmp_path / "trusted.pem")
    secured.settings |= {
        "tls_client_ca": clients,
        "max_connection_age_seconds": 0.4,
        "max_connection_age_grace_seconds": 0.2,
    }
    cert, key = authority.issue("trainer@example.org", "trainer")
    for file in (clients, trusted):
        write(Path(file), authority.ca.cert_pem)
    client = steelyard.connect(
        secured.start(), credentials=Credentials(ca=trusted, cert=cert, key=key), timeout=30
    )
    run, stop, errors = run_of(client), threading.Event(), list[BaseException]()
    thread = threading.Thread(target=train, args=(run, stop, errors))
    thread.start()

    def goes_on() -> None:
        at = run.info().next_step
        eventually(lambda: errors or run.info().next_step > at + 20)
        assert not errors

    for _ in range(2):
        goes_on()
        old, new = authority.ca, trustme.CA()
        for file in (clients, trusted):
            write(Path(file), old.cert_pem, new.cert_pem)
        # The trainer's next connection, by which it knows the new authority: at this pace 20 steps may come before.
        time.sleep(1.5)
        goes_on()
        authority.ca = new
        authority.issue("127.0.0.1", "server")
        # The key first, alone for a moment: files that do not go together are not used.
        fresh = new.issue_cert("trainer@example.org")
        write(Path(key), fresh.private_key_pem)
        goes_on()
        write(Path(cert), *fresh.cert_chain_pems)
        goes_on()
        for file in (clients, trusted):
            write(Path(file), new.cert_pem)
        goes_on()
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert not errors
    stats = run.stats()
    assert stats.reported_losses == 8 * stats.closed_steps
    client.close()


def test_a_token_is_shown_with_every_call_and_a_renewed_one_counts_at_once(
    secured, authority, tmp_path, eventually
):
    """The server forgets the first token before the client has the second: its stream is ended, and waits for it."""
    secured.settings["access"] = access(tmp_path / "access.toml", "first")
    file = tmp_path / "token"
    file.write_text("first\n")
    address = secured.start()
    with steelyard.connect(address, credentials=Credentials(ca=authority.file, token_file=file)) as client:
        run = run_of(client)

        def is_refused() -> bool:
            try:
                run.stats()
            except steelyard.Unauthenticated:
                return True
            return False

        with run.join() as session:
            session.report(session.next(), np.ones(8))
            access(tmp_path / "access.toml", "second")
            eventually(is_refused)
            with pytest.raises(
                steelyard.Unauthenticated, match=r"that this server knows \(request [0-9a-f]{16}\)"
            ):
                list(run.events())
            with pytest.raises(steelyard.Unauthenticated, match="expected credentials"):
                run.join(timeout=60)
            session.report(session.next(), np.ones(8))
            eventually(lambda: not session._member._connected)
            file.write_text("second")
            session.report(session.next(), np.ones(8))
            session.flush()
            assert run.stats().reported_losses == 24


def trains_on(session: steelyard.Session) -> None:
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        session.report(session.next(), np.ones(8))
        session.flush()
        time.sleep(0.05)


def test_a_trainer_whose_token_is_no_good_any_more_says_so_once_and_names_the_file_at_the_end(
    secured, authority, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(stream, "_RENEWED_SECONDS", 2.0)
    secured.settings["access"] = access(tmp_path / "access.toml", "first")
    file = tmp_path / "token"
    file.write_text("first\n")
    address = secured.start()
    with steelyard.connect(address, credentials=Credentials(ca=authority.file, token_file=file)) as client:
        run = run_of(client)
        session = run.join()
        access(tmp_path / "access.toml", "second")
        named = f"in case that token_file {file} was renewed"
        with pytest.raises(steelyard.Unauthenticated, match=rf"Tried again for \d s, {named}"):
            trains_on(session)
        warned = [one.getMessage() for one in caplog.records if "in case that token_file" in one.getMessage()]
        assert len(warned) == 1
        assert "expected credentials that this server knows" in warned[0]
        assert "Trying again for 2 s at most" in warned[0]


def test_a_token_file_that_is_gone_for_a_moment_is_waited_for(secured, authority, tmp_path):
    secured.settings["access"] = access(tmp_path / "access.toml", "t")
    file = tmp_path / "token"
    file.write_text("t")
    credentials = Credentials(ca=authority.file, token_file=file)
    with steelyard.connect(secured.start(), credentials=credentials, timeout=30) as client:
        client.list_runs()
        file.unlink()
        back = threading.Timer(1.0, file.write_text, ["t"])
        back.start()
        assert client.list_runs() == []
        back.join()


def test_who_is_over_a_quota_waits_and_goes_on(secured, authority, tmp_path):
    secured.settings["access"] = access(tmp_path / "a.toml", "t", more="quota = {calls_per_second = 20}")
    credentials = Credentials(ca=authority.file, token="t")
    with steelyard.connect(secured.start(), credentials=credentials) as client:
        run = run_of(client)
        with ThreadPoolExecutor(8) as pool:
            done = [pool.submit(run.observe, [number], [1.0]) for number in range(50)]
            assert [one.result() for one in done] == [None] * 50
        with run.join() as session:
            session.report(session.next(), np.ones(8))
        seen = [one for one in run.events() if isinstance(one, steelyard.events.SignalsObserved)]
        assert sorted(int(one.ids[0]) for one in seen) == list(range(50))
    with (
        steelyard.connect(client.address, credentials=credentials, timeout=0.3) as hasty,
        ThreadPoolExecutor(40) as pool,
    ):
        asked = [pool.submit(hasty.list_runs) for _ in range(40)]
        errors = [error for one in asked if (error := one.exception()) is not None]
        assert errors
        assert {type(error) for error in errors} == {steelyard.ResourceExhausted}
        assert "over its quota of calls a second" in str(errors[0])


def _count(run: steelyard.Run, answer: Any) -> None:
    answer.put(run.stats().reported_losses)


def test_a_run_of_a_secured_server_travels_to_another_process(secured, authority, tmp_path):
    credentials = Credentials(ca=authority.file, token="t")
    secured.settings["access"] = access(tmp_path / "access.toml", "t")
    with steelyard.connect(secured.start(), credentials=credentials) as client:
        run = run_of(client)
        context = multiprocessing.get_context("spawn")
        answer = context.Queue()
        child = context.Process(target=_count, args=(run, answer))
        child.start()
        assert answer.get(timeout=60) == 0
        child.join(30)
        assert child.exitcode == 0


def test_a_token_goes_over_a_unix_socket(tmp_path):
    settings = Settings(
        data_dir=tmp_path / "data",
        listen=f"unix:{tmp_path}/s",
        kernels="numpy",
        access=access(tmp_path / "access.toml", "t"),
    )
    server = Server(settings)
    server.start()
    try:
        with steelyard.connect(server.address, credentials=Credentials(token="t")) as client:
            assert client.list_runs() == []
        with steelyard.connect(server.address) as client, pytest.raises(steelyard.Unauthenticated):
            client.list_runs()
    finally:
        server.stop(1.0)


def test_the_verbs_and_the_lines_of_the_readme_work_over_tls(secured, authority, tmp_path, monkeypatch):
    secured.settings |= {
        "tls_client_ca": authority.file,
        "access": access(tmp_path / "access.toml", "secret-token"),
    }
    address = secured.start()
    cert, key = authority.issue("trainer", "tls")
    token = tmp_path / "token"
    token.write_text("secret-token\n")
    flags = {"ca": authority.file, "cert": cert, "key": key, "token-file": str(token)}

    def ask(given: dict[str, str], **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "steelyard_server", "runs", "--json", "--address", address]
        command += [word for name, value in given.items() for word in (f"--{name}", value)]
        return subprocess.run(
            command, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, check=False
        )

    # As printed, in the folder with the files of those names.
    printed = re.search(r"steelyard\.connect\(address, credentials=.*?\)\)", README.read_text())
    assert printed is not None
    here = tmp_path / "here"
    here.mkdir()
    for name, source in (("ca.pem", authority.file), ("tls.crt", cert), ("tls.key", key), ("token", token)):
        shutil.copy(source, here / name)
    monkeypatch.chdir(here)
    with eval(printed[0], {"steelyard": steelyard, "address": address}) as client:
        run_of(client)

    by_flags = ask(flags)
    assert (by_flags.returncode, [one["name"] for one in json.loads(by_flags.stdout)]) == (0, ["r"])
    variables = {f"STEELYARD_{name.upper().replace('-', '_')}": value for name, value in flags.items()}
    assert json.loads(ask({}, **variables).stdout) == json.loads(by_flags.stdout)
    token.write_text("another-secret\n")
    refused = ask(flags)
    assert refused.returncode != 0
    assert "expected credentials that this server knows" in refused.stderr
    assert "secret" not in refused.stdout + refused.stderr
