"""Where settings come from, and what is refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from steelyard_server.config import ConfigError, Settings, is_loopback, load


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "steelyard.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_flag_is_stronger_than_the_environment_and_the_environment_than_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, 'data_dir = "file"\nlog_level = "debug"\ncall_threads = 8\ngrace_seconds = 1')
    environ = {"STEELYARD_LOG_LEVEL": "error", "STEELYARD_CALL_THREADS": "9"}
    settings = load({"call_threads": "10", "http": None}, file, environ)
    assert (settings.call_threads, settings.log_level, settings.grace_seconds) == (10, "error", 1.0)
    assert settings.data_dir == Path("file")


def test_the_defaults_stand_where_nothing_is_said(tmp_path: Path) -> None:
    settings = load({"data_dir": tmp_path}, environ={})
    assert settings == Settings(data_dir=tmp_path)
    assert settings.listen == "127.0.0.1:7077"
    assert (settings.durability, settings.max_message_bytes) == ("sync", 16 << 20)


def test_an_embedded_server_does_not_read_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEELYARD_LISTEN", "127.0.0.1:9")
    assert Settings(data_dir=Path("d")).listen == "127.0.0.1:7077"


@pytest.mark.parametrize("name", ["data_dir", "backup_to", "jwt_issuer", "access", "call_threads"])
def test_an_empty_value_is_refused_where_it_is_given_and_is_none_in_the_environment(
    tmp_path: Path, name: str
) -> None:
    """As of a variable of the shell that was not set; an empty data_dir was the folder that one stood in."""
    with pytest.raises(ConfigError, match=f"{name} = '' .*: expected a value; got an empty one"):
        load({"data_dir": tmp_path, name: ""}, environ={})
    assert load({"data_dir": tmp_path}, environ={f"STEELYARD_{name.upper()}": ""}).data_dir == tmp_path


def test_sizes_may_carry_a_unit(tmp_path: Path) -> None:
    file = toml(tmp_path, 'map_size_bytes = "2GiB"\nmax_map_size_bytes = 4294967296')
    settings = load({"data_dir": tmp_path, "checkpoint_journal_bytes": "64MiB"}, file, {})
    assert (settings.map_size_bytes, settings.max_map_size_bytes) == (2 << 30, 4 << 30)
    assert settings.checkpoint_journal_bytes == 64 << 20


def test_settings_do_not_change() -> None:
    settings = Settings(data_dir=Path("d"))
    with pytest.raises(ValidationError, match="frozen"):
        settings.call_threads = 5  # type: ignore[misc]


def test_every_setting_is_explained() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('listn = "x"', "unknown key 'listn' in .*steelyard.toml; did you mean 'listen'?"),
        ("zzz = 1", "unknown key 'zzz' in .*; known are .*call_threads.*data_dir"),
        ("call_threads = ", "steelyard.toml is not TOML: "),
        ("call_threads = 0", r"call_threads = 0 \(from .*steelyard.toml\): .*greater than or equal to 1"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load({"data_dir": tmp_path}, toml(tmp_path, text), {})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read .*none.toml: No such file"):
        load({"data_dir": tmp_path}, tmp_path / "none.toml", {})


def test_an_unknown_variable_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="STEELYARD_LOGLEVEL; did you mean 'STEELYARD_LOG_LEVEL'"):
        load({"data_dir": "d"}, environ={"STEELYARD_LOGLEVEL": "info"})


def test_variables_of_the_client_and_of_kubernetes_are_let_be() -> None:
    environ = {
        "STEELYARD_ADDRESS": "sampler:7077",
        "STEELYARD_SERVICE_HOST": "10.0.0.1",
        "STEELYARD_SERVICE_PORT_GRPC": "7077",
        "STEELYARD_PORT": "tcp://10.0.0.1:7077",
        "STEELYARD_PORT_7077_TCP_ADDR": "10.0.0.1",
        "STEELYARD_HEADLESS_SERVICE_HOST": "10.0.0.2",
    }
    assert load({"data_dir": "d"}, environ=environ) == Settings(data_dir=Path("d"))


def test_an_empty_variable_counts_as_not_given() -> None:
    assert load({"data_dir": "d"}, environ={"STEELYARD_HTTP": ""}).http is None


def test_every_fault_is_named_with_where_it_came_from() -> None:
    with pytest.raises(ConfigError) as refusal:
        load({"call_threads": "many"}, environ={"STEELYARD_DURABILITY": "maybe"})
    lines = str(refusal.value).splitlines()
    assert lines[0].startswith(
        "data_dir is needed: --data-dir, STEELYARD_DATA_DIR or a key of the --config file"
    )
    assert lines[1].startswith("durability = 'maybe' (from STEELYARD_DURABILITY): ")
    assert lines[2].startswith("call_threads = 'many' (from --call-threads): ")
    assert len(lines) == 3


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "127.9.9.9:1", "[::1]:7077", "localhost:80", "unix:/tmp/s"]
)
def test_an_address_that_only_this_machine_reaches_needs_no_more(address: str) -> None:
    assert is_loopback(address)
    assert load({"data_dir": "d", "listen": address}, environ={}).listen == address


@pytest.mark.parametrize("address", ["0.0.0.0:7077", "[::]:7077", "10.0.0.1:1", "sampler:7077"])
def test_any_other_address_needs_insecure(address: str) -> None:
    for name in ("listen", "http"):
        with pytest.raises(ConfigError, match=f"{name} = .*not a loopback address.* or insecure to be set"):
            load({"data_dir": "d", name: address}, environ={})
    assert load({"data_dir": "d", "listen": address, "insecure": True}, environ={}).listen == address


@pytest.mark.parametrize(
    "address", ["7077", "host", "host:", "host:65536", "a:b:c", "::1:7077", "unix:", ":1"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="expected unix:PATH, HOST:PORT or"):
        load({"data_dir": "d", "listen": address}, environ={})


def test_http_takes_no_unix_socket() -> None:
    with pytest.raises(
        ConfigError, match=r"expected HOST:PORT or \[IPV6\]:PORT with a port .*, got 'unix:/s'"
    ):
        load({"data_dir": "d", "http": "unix:/s"}, environ={})


@pytest.mark.parametrize("name", ["listen", "http", "health"])
def test_a_port_that_there_cannot_be_is_told_with_those_that_can(name: str) -> None:
    with pytest.raises(ConfigError, match=r"HOST:PORT.* with a port from 0 to 65535, got '0.0.0.0:70000'"):
        load({"data_dir": "d", name: "0.0.0.0:70000"}, environ={})


def test_a_map_above_its_maximum_is_refused() -> None:
    with pytest.raises(ConfigError, match="map_size_bytes <= max_map_size_bytes, got 4194304 and 2097152"):
        load({"data_dir": "d", "map_size_bytes": 4 << 20, "max_map_size_bytes": 2 << 20}, environ={})


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_an_interval_is_a_positive_finite_time(value: str) -> None:
    with pytest.raises(ConfigError, match="durability_interval_seconds"):
        load({"data_dir": "d", "durability_interval_seconds": value}, environ={})


@pytest.mark.parametrize(
    ("name", "default"), [("max_runs", 1000), ("max_datasets", 1000), ("max_examples", 10**10)]
)
def test_a_server_takes_on_no_more_than_it_is_told(name: str, default: int) -> None:
    assert getattr(load({"data_dir": "d"}, environ={}), name) == default
    assert getattr(load({"data_dir": "d", name: "7"}, environ={}), name) == 7
    for bad in ("0", "-1", "many", "1.5"):
        with pytest.raises(ConfigError, match=f"{name} = '{bad}'"):
            load({"data_dir": "d", name: bad}, environ={})
