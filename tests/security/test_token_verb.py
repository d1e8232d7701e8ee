"""steelyard token: what it prints is a token and the hash that the access file wants."""

import hashlib

from typer.testing import CliRunner

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
