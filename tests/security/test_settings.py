"""Settings that do not go together, or would not protect what they seem to, are refused before anything listens."""

import pytest

import steelyard
from steelyard_server.config import ConfigError, load

from .conftest import serving

TLS = {"tls_cert": "c", "tls_key": "k"}
ACCESS = {"access": "a"}


def settings(**given):
    return load({"data_dir": "d", **given}, environ={})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tls_cert": "c"}, "expected tls_cert and tls_key together; got only tls_cert"),
        ({"tls_key": "k"}, "got only tls_key"),
        ({"tls_client_ca": "ca"}, "expected tls_cert and tls_key with tls_client_ca"),
        (
            {**TLS, "tls_client_certs": "required"},
            "expected tls_client_ca where tls_client_certs is required",
        ),
        ({**TLS, "tls_client_certs": "optional"}, "tls_client_certs = 'optional'"),
        ({**TLS, "listen": "unix:/x/s"}, "expected no tls_cert where listen is a unix socket"),
        (ACCESS, "nobody can be recognised over plaintext TCP, and tokens could be read"),
        ({**ACCESS, "listen": "127.0.0.1:0"}, "also on loopback and with insecure"),
        ({**ACCESS, "listen": "0.0.0.0:0", "insecure": True}, "also on loopback and with insecure"),
        ({**TLS, "jwt_keys": "k", "jwt_audience": "a"}, "expected access with jwt_keys"),
        ({**TLS, **ACCESS, "jwt_keys": "k"}, "expected jwt_audience with jwt_keys"),
        ({**TLS, **ACCESS, "jwt_keys": "http://issuer/keys", "jwt_audience": "a"}, "an https URL"),
        ({**TLS, **ACCESS, "jwt_keys": "ftp://issuer/keys", "jwt_audience": "a"}, "an https URL"),
        ({"jwt_algorithms": "none"}, "expected some of HS256"),
        ({"jwt_algorithms": ""}, "expected some of HS256"),
        ({"jwt_algorithms": "RS256,HS256"}, "got both"),
        ({"listen": "0.0.0.0:0"}, "tls_cert and tls_key .*, or insecure"),
        ({"max_metadata_bytes": 1}, "max_metadata_bytes"),
        ({"handshake_timeout_seconds": 0}, "handshake_timeout_seconds"),
        ({"max_concurrent_calls": 0}, "max_concurrent_calls"),
    ],
)
def test_what_does_not_go_together_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        settings(**given)


@pytest.mark.parametrize(
    "given",
    [
        {**TLS, "listen": "0.0.0.0:0"},
        {**TLS, **ACCESS},
        {**ACCESS, "listen": "unix:/x/s"},
        {**TLS, **ACCESS, "jwt_keys": "https://issuer/keys", "jwt_audience": "a"},
        {**TLS, **ACCESS, "jwt_keys": "http://127.0.0.1:1/keys", "jwt_audience": "a"},
        {"jwt_algorithms": "HS256, HS512"},
    ],
)
def test_what_goes_together_is_taken(given):
    settings(**given)


def test_a_client_ca_asks_for_certificates_unless_told_not_to():
    assert settings(**TLS).client_certs == "none"
    assert settings(**TLS, tls_client_ca="ca").client_certs == "required"
    assert settings(**TLS, tls_client_ca="ca", tls_client_certs="none").client_certs == "none"


def test_an_access_file_that_is_wrong_or_not_there_is_refused_at_start(tmp_path, files):
    access = tmp_path / "access.toml"

    def refused(said):
        with (
            pytest.raises(ConfigError, match=said),
            serving(tmp_path / "data", **files.settings(), access=access),
        ):
            pass

    refused("cannot read .*access.toml: No such file")
    access.write_text("[[principals]]\nname = 3\n[other]\n")
    refused(
        r"access.toml: principals\[0\].name: Input should be a valid string\n.*access.toml: other: Extra inputs"
    )
    assert not (tmp_path / "data").exists()
    with pytest.raises(steelyard.InvalidArgument, match="access.toml"):
        steelyard.local(tmp_path / "data", **files.settings(), access=access)


def test_a_socket_lies_in_a_folder_that_others_do_not_write(tmp_path, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    with (
        pytest.raises(ConfigError, match="expected a folder that others may not write.*has 0777"),
        serving(tmp_path / "data", listen=f"unix:{folder}/s"),
    ):
        pass
    folder.chmod(0o700)
    with serving(tmp_path / "data", listen=f"unix:{folder}/s") as server:
        assert server.address == f"unix:{folder}/s"
    assert "socket_open_to_more_than_its_owner" not in caplog.text
