"""steelyard token: what it prints is a token and the hash that the access file wants."""

import hashlib

import pytest
from typer.testing import CliRunner

from steelyard.errors import InvalidArgument
from steelyard_server.cli.verbs import cli
from steelyard_server.security import principals
from steelyard_server.security.evidence import Hashed


def test_a_token_and_the_line_for_the_access_file():
    done = CliRunner().invoke(cli, ["token"])
    assert done.exit_code == 0
    token, line = (one.split()[-1] for one in done.output.splitlines())
    table = principals.parse(f'[[principals]]\nname = "a"\ntoken_sha256 = [{line}]\n'.encode())
    assert table.recognise(Hashed(hashlib.sha256(token.encode()).hexdigest())) is not None
    assert CliRunner().invoke(cli, ["token"]).output != done.output


def test_the_hash_of_a_token_that_there_is(tmp_path):
    (tmp_path / "token").write_text("mine\n")
    done = CliRunner().invoke(cli, ["token", "--hash-of", str(tmp_path / "token")])
    assert done.output.strip() == hashlib.sha256(b"mine").hexdigest()


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"two words"])
def test_the_hash_of_what_is_no_token_is_not_told(tmp_path, content):
    """Nobody could show it: a client refuses to read it."""
    (tmp_path / "token").write_bytes(content)
    done = CliRunner().invoke(cli, ["token", "--hash-of", str(tmp_path / "token")])
    assert isinstance(done.exception, InvalidArgument)
    assert "expected one token of visible ASCII characters" in str(done.exception)
    assert done.output == ""
