"""Credentials: what goes together, what travels, and what the environment adds. Nothing connects here."""

import pickle
from pathlib import Path

import pytest

import steelyard
from steelyard import Credentials
from steelyard.credentials import resolve
from steelyard.handshake import token_of


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cert": "c.pem"}, "cert and key go together: expected both or neither, got cert without key"),
        ({"key": "k.pem"}, "got key without cert"),
        ({"token": "t", "token_file": "f"}, "expected one of token and token_file, got both"),
        ({"ca": 7}, "ca: expected a path, got int"),
        ({"token": " "}, "token: expected a string that is not empty"),
        ({"server_name": ""}, "server_name: expected a string that is not empty, got ''"),
        ({"tls": "yes"}, "tls: expected True or False, got 'yes'"),
    ],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(steelyard.InvalidArgument, match=words):
        Credentials(**given)


@pytest.mark.parametrize("given", [{"token": "s3cret"}, {"token_file": "f"}])
def test_a_token_is_not_for_plaintext_tcp_and_is_for_tls_and_unix(given):
    bare = Credentials(**given)
    with pytest.raises(steelyard.InvalidArgument, match="never sent over plaintext TCP") as refused:
        steelyard.connect("127.0.0.1:7077", credentials=bare)
    assert "s3cret" not in str(refused.value)
    assert steelyard.connect("unix:/tmp/s", credentials=bare).credentials == bare
    steelyard.connect("a:1", credentials=Credentials(**given, tls=True))


def test_a_name_without_tls_and_tls_on_a_socket_of_this_machine_are_refused():
    with pytest.raises(steelyard.InvalidArgument, match="server_name without TLS"):
        steelyard.connect("a:1", credentials=Credentials(server_name="b"))
    with pytest.raises(steelyard.InvalidArgument, match="speaks no TLS"):
        steelyard.connect("unix:/tmp/s", credentials=Credentials(ca="c.pem"))


def test_they_pickle_with_paths_that_hold_elsewhere_and_show_no_token(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one = Credentials(ca="ca.pem", cert=Path("c.pem"), key="k.pem", token="s3cret", server_name="s")
    assert one.ca == str(tmp_path / "ca.pem")
    assert "s3cret" not in repr(one)
    client = pickle.loads(pickle.dumps(steelyard.connect("a:1", credentials=one, timeout=3)))
    assert (client.credentials, client.timeout) == (one, 3)
    assert "s3cret" not in repr(client)


def test_the_environment_gives_what_the_argument_does_not():
    environ = {
        "STEELYARD_CA": "/e/ca",
        "STEELYARD_CERT": "/e/cert",
        "STEELYARD_KEY": "/e/key",
        "STEELYARD_TOKEN_FILE": "/e/token",
        "STEELYARD_SERVER_NAME": "e",
    }
    whole = Credentials(ca="/e/ca", cert="/e/cert", key="/e/key", token_file="/e/token", server_name="e")
    assert resolve(None, "a:1", environ) == whole
    own = Credentials(cert="/own/cert", key="/own/key", token="t", server_name="own")
    assert resolve(own, "a:1", environ) == Credentials(
        ca="/e/ca",
        cert="/own/cert",
        key="/own/key",
        token="t",
        server_name="own",
    )
    assert resolve(None, "unix:/s", environ) == Credentials(token_file="/e/token")
    assert resolve(None, "a:1", {"STEELYARD_CA": ""}) is None
    with pytest.raises(steelyard.InvalidArgument, match=r"\(token_file from STEELYARD_TOKEN_FILE\)"):
        resolve(None, "a:1", {"STEELYARD_TOKEN_FILE": "/e/token"})


def test_a_token_is_read_anew_and_what_is_none_is_refused_without_being_shown(tmp_path):
    file = tmp_path / "token"
    one = Credentials(token_file=file)
    with pytest.raises(steelyard.InvalidArgument, match="token_file: cannot read"):
        token_of(one)
    for token in ("first", "second"):
        file.write_text(f"{token}\n")
        assert token_of(one) == token
    for bad in ("", "two words", "pässword"):
        file.write_text(bad)
        with pytest.raises(steelyard.InvalidArgument, match="expected one token of visible ASCII") as refused:
            token_of(one)
        assert not bad or bad not in str(refused.value)


def test_a_token_file_that_holds_none_is_told_at_once_and_nothing_is_dialled(tmp_path):
    """Nobody listens there: whoever dialled would be told that."""
    file = tmp_path / "token"
    with steelyard.connect("127.0.0.1:1", credentials=Credentials(token_file=file, tls=True)) as client:
        run = steelyard.Run(client, "r")
        for words in (f"listing the runs: credentials: token_file: cannot read {file}", "expected one token"):
            with pytest.raises(steelyard.InvalidArgument, match=words):
                client.list_runs()
            with pytest.raises(steelyard.InvalidArgument, match=words.removeprefix("listing the runs: ")):
                run.join()
            file.write_text("")
