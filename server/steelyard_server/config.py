"""The daemon's configuration: one frozen, validated value from flags, environment and file.

    settings = load({"data_dir": "/var/lib/steelyard"}, config=Path("steelyard.toml"), environ=os.environ)

A flag is stronger than STEELYARD_<NAME> in the environment, which is stronger than the file. `Settings(...)` itself
reads neither environment nor file: an embedded server is what its caller says.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import ByteSize, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

MIB = 1 << 20
JWT_ALGORITHMS = (
    *("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "ES256K", "EdDSA"),
)
PREFIX = "STEELYARD_"

# Of this prefix, but not the daemon's: the address that the client verbs ask and by what they are let in, and what
# Kubernetes puts into every pod beside a Service named steelyard.
_FOREIGN = re.compile(
    r"ADDRESS|CA|CERT|KEY|TOKEN_FILE|SERVER_NAME|(.+_)?SERVICE_(HOST|PORT)(_.+)?|(.+_)?PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?"
)


class ConfigError(ValueError):
    """A configuration that is refused. The message has one line per fault: what was expected, what came, whence."""


class Settings(BaseSettings):
    """How `steelyard serve` runs. The text under each field is also the help of its flag."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    data_dir: Path
    """Folder of the LMDB environment; made if it is not there. One server at a time may hold it."""

    listen: str = "127.0.0.1:7077"
    """Where gRPC is served: HOST:PORT, [IPV6]:PORT or unix:PATH. Port 0 takes a free one; see port_file."""

    http: str | None = None
    """Where metrics and health are served over HTTP, in plaintext: HOST:PORT. Not served unless given."""

    http_anywhere: bool = False
    """Allow http on an address that is not loopback. Whoever reaches it reads figures, with names of runs and
    principals; nothing can be changed there."""

    health: str | None = None
    """Where health alone is served by gRPC, in plaintext and for anybody: HOST:PORT, for probes that know no TLS. Not
    served unless given."""

    port_file: Path | None = None
    """Written when the server answers, with the gRPC port in decimal and a newline; removed at a clean exit."""

    insecure: bool = False
    """Allow plaintext on an address that is not loopback. Whoever reaches it can read, spoil and delete every run."""

    tls_cert: Path | None = None
    """Certificate chain in PEM, the server's own first. With it gRPC is served over TLS. Read again when it changes, as
    are tls_key and tls_client_ca."""

    tls_key: Path | None = None
    """The private key of tls_cert, in PEM."""

    tls_client_ca: Path | None = None
    """CAs in PEM, of which one must have signed the certificate of whoever connects."""

    tls_client_certs: Literal["none", "required"] | None = None
    """Whether whoever connects must show a certificate: required with tls_client_ca, unless this says none."""

    access: Path | None = None
    """TOML file of who may do what (SECURITY.md); read again when it changes. Who is not in it may do nothing. Without
    it whoever reaches the server may do everything."""

    jwt_keys: str | None = None
    """Keys of the tokens (JWT) that are accepted: a file of public keys in PEM, a JWKS, or, for HS algorithms, a
    secret, read again when it changes; or the https URL of a JWKS."""

    jwt_algorithms: tuple[str, ...] = ("RS256", "ES256", "EdDSA")
    """The only ones accepted, with commas between them: either HS ones or those of public keys."""

    jwt_audience: str | None = None
    """What a token's aud must name: this service. Needed with jwt_keys."""

    jwt_issuer: str | None = None
    """What a token's iss must be. Not looked at unless given."""

    jwt_leeway_seconds: float = Field(default=30.0, ge=0, le=300, allow_inf_nan=False)
    """By how much clocks may differ where a token's times are judged."""

    jwt_max_lifetime_seconds: float = Field(default=3600.0, gt=0, le=366 * 86400, allow_inf_nan=False)
    """Tokens that are made for longer, or have longer to live, are refused."""

    durability: Literal["sync", "interval"] = "sync"
    """sync: acknowledged after an fsync. interval: after a write; a power cut may lose the last interval, kill -9
    nothing."""

    durability_interval_seconds: float = Field(default=1.0, gt=0, le=3600, allow_inf_nan=False)
    """Longest time between two fsyncs under durability interval."""

    disk_headroom_bytes: ByteSize = Field(default=ByteSize(64 * MIB), ge=0)
    """Free on the disk of data_dir below which the server says that it is not ready. It serves on."""

    stuck_after_seconds: float = Field(default=60.0, gt=0, le=86400, allow_inf_nan=False)
    """The event loop, or one commit, that takes longer is told to liveness probes as something to restart for."""

    tracing: bool = False
    """Send traces by OpenTelemetry (extra otel), as the variables OTEL_* say where."""

    grace_seconds: float = Field(default=30.0, ge=0, le=86400, allow_inf_nan=False)
    """From SIGTERM to exit: the time in which reports in flight are taken and a checkpoint is written."""

    max_message_bytes: ByteSize = Field(default=ByteSize(16 * MIB), ge=64 << 10, le=(1 << 31) - 1)
    """Largest message accepted; a larger one is RESOURCE_EXHAUSTED. A report of 16 MiB holds 4 million losses."""

    max_metadata_bytes: ByteSize = Field(default=ByteSize(16 << 10), ge=1 << 10, le=MIB)
    """Most metadata of a call, tokens included; more is RESOURCE_EXHAUSTED."""

    max_concurrent_streams: int = Field(default=100, ge=1, le=(1 << 31) - 1)
    """Most calls under way on one connection; further ones wait. Calls that were taken back count until they are
    forgotten, so that a stranger who takes back thousands costs no more than this at a time."""

    max_concurrent_calls: int = Field(default=256, ge=1)
    """Most unary calls under way; further ones are RESOURCE_EXHAUSTED at once. Health and trainers' streams do not
    count."""

    max_open_streams: int = Field(default=4096, ge=1)
    """Most streams of trainers and of events; further ones are RESOURCE_EXHAUSTED."""

    max_draws_per_call: int = Field(default=1 << 25, ge=1)
    """Most examples that a trainer may ask to be sent: its batches, times what its slice of one holds. One batch may
    always be asked for. More is RESOURCE_EXHAUSTED."""

    max_connection_age_seconds: float = Field(default=1800.0, ge=0, le=366 * 86400, allow_inf_nan=False)
    """A connection is ended when it is that old, give or take a tenth, so that its certificate is looked at again;
    clients connect again. 0: never."""

    max_connection_age_grace_seconds: float = Field(default=60.0, ge=0, le=86400, allow_inf_nan=False)
    """What is then under way on it has so long to end."""

    handshake_timeout_seconds: float = Field(default=10.0, gt=0, le=3600, allow_inf_nan=False)
    """A connection that has not said by then what it wants is closed."""

    map_size_bytes: ByteSize = Field(default=ByteSize(1 << 30), ge=MIB)
    """Address space that LMDB maps at first. It grows by itself and takes no disk before it is used."""

    max_map_size_bytes: ByteSize = Field(default=ByteSize(1 << 40), ge=MIB)
    """Where growth of the map ends. The last sixteenth is kept for runs under way: new runs, forks, appended examples,
    columns and observations are RESOURCE_EXHAUSTED there. Where it is full, trainers wait; deleting makes room."""

    max_runs: int = Field(default=1000, ge=1)
    """Most runs; one more is RESOURCE_EXHAUSTED. Those that exist when the limit is lowered are served on."""

    max_datasets: int = Field(default=1000, ge=1)
    """Most datasets, as for max_runs."""

    max_examples: int = Field(default=10**10, ge=1)
    """Most examples of all runs together, as for max_runs: a run counts the size of its dataset, also as it grows."""

    checkpoint_interval_seconds: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """Longest time between two checkpoints of a run that changes: bounds what recovery replays."""

    checkpoint_journal_bytes: ByteSize = Field(default=ByteSize(256 * MIB), ge=MIB)
    """A run whose journal has grown by this much since its last checkpoint gets one early."""

    backup_to: str | None = None
    """Where backups go: a folder, or a URL that fsspec knows. The server writes them there and below, and nowhere
    else."""

    backup_interval_seconds: float = Field(default=0.0, ge=0, le=30 * 86400, allow_inf_nan=False)
    """Seconds between two backups that the server makes by itself; 0: only when asked (`steelyard backup`)."""

    backup_keep: int = Field(default=7, ge=1, le=100_000)
    """Backups that are kept in backup_to, of each store. Older ones are removed when a new one is whole there, whoever
    asked for them; never those in a folder below it."""

    backup_timeout_seconds: float = Field(default=3600.0, gt=0, le=86400, allow_inf_nan=False)
    """Longest time that a backup may take. Until it ends, pages freed meanwhile are not used again: the file grows."""

    backup_rate_bytes: ByteSize = Field(default=ByteSize(128 * MIB), ge=64 << 10)
    """Bytes a second that a backup reads at most: the disk is also that of the runs."""

    call_threads: int = Field(default=16, ge=1, le=1024)
    """Threads that answer the unary calls. Trainers' streams need none of them."""

    kernels: Literal["auto", "compiled", "numpy"] = "auto"
    """auto: NumPy until compiled kernels are ready, and where they cannot be had. compiled: no start without them.
    numpy: nothing is compiled. Batches are the same."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""

    log_format: Literal["console", "json"] = "console"
    """console: for eyes. json: one object a line, for collectors."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_empty(cls, value: object) -> object:
        # What a variable leaves that was not set: as a folder it would be the one that the server was started in.
        if value == "":
            raise ValueError("expected a value; got an empty one")
        return value

    @field_validator("listen")
    @classmethod
    def _listen_is_an_address(cls, value: str) -> str:
        if not (value.startswith("unix:") and value != "unix:"):
            _host_and_port(value, "unix:PATH, HOST:PORT or [IPV6]:PORT")
        return value

    @field_validator("http", "health")
    @classmethod
    def _is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            _host_and_port(value, "HOST:PORT or [IPV6]:PORT")
        return value

    @field_validator("jwt_algorithms", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(",")) if isinstance(value, str) else value

    @field_validator("jwt_algorithms")
    @classmethod
    def _algorithms_are_of_one_kind(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [word for word in value if word not in JWT_ALGORITHMS]
        if unknown or not value:
            raise ValueError(
                f"expected some of {', '.join(JWT_ALGORITHMS)}; got {', '.join(unknown) or 'none'}"
            )
        if len({word.startswith("HS") for word in value}) > 1:
            raise ValueError(
                "expected either HS algorithms, whose key is a secret, or those of public keys; got both, and a public"
                " key could be taken for the secret"
            )
        return value

    @field_validator("jwt_keys")
    @classmethod
    def _jwt_keys_come_safely(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:
            url = urlsplit(value)
            local = url.scheme == "http" and url.hostname in ("127.0.0.1", "::1", "localhost")
            if not url.hostname or not (url.scheme == "https" or local):
                raise ValueError(
                    "expected a file, or an https URL, since whoever can change the keys can make tokens"
                )
        return value

    @property
    def client_certs(self) -> Literal["none", "required"]:
        return self.tls_client_certs or ("none" if self.tls_client_ca is None else "required")

    @model_validator(mode="after")
    def _refuse_what_does_not_fit_together(self) -> Self:
        for name, address in (("listen", self.listen), ("http", self.http)):
            safe = self.http_anywhere if name == "http" else self.tls_cert is not None
            if address is not None and not (self.insecure or safe) and not is_loopback(address):
                raise ValueError(
                    f"{name} = {address!r} is not a loopback address, and the server speaks plaintext: expected"
                    " 127.0.0.1, ::1, localhost or (listen) unix:PATH, tls_cert and tls_key (http: http_anywhere), or"
                    " insecure to be set"
                )
        self._check_tls()
        self._check_access()
        if self.backup_interval_seconds and self.backup_to is None:
            raise ValueError("backup_interval_seconds needs backup_to, a folder or URL; got none")
        if self.map_size_bytes > self.max_map_size_bytes:
            raise ValueError(
                f"expected map_size_bytes <= max_map_size_bytes, got {int(self.map_size_bytes)} and"
                f" {int(self.max_map_size_bytes)}"
            )
        return self

    def _check_tls(self) -> None:
        given = {name: getattr(self, name) for name in ("tls_cert", "tls_key", "tls_client_ca")}
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError(
                "expected tls_cert and tls_key together; got only"
                f" {'tls_key' if self.tls_cert is None else 'tls_cert'}"
            )
        if self.tls_cert is None and self.tls_client_ca is not None:
            raise ValueError("expected tls_cert and tls_key with tls_client_ca; got neither")
        if self.client_certs == "required" and self.tls_client_ca is None:
            raise ValueError("expected tls_client_ca where tls_client_certs is required; got none")
        if self.listen.startswith("unix:") and any(given.values()):
            raise ValueError(
                "expected no tls_cert where listen is a unix socket: who may open the file is its boundary"
            )

    def _check_access(self) -> None:
        """Before anything listens: a token that has crossed a network readably is a token lost."""
        if self.jwt_keys is not None and self.access is None:
            raise ValueError(
                "expected access with jwt_keys: a token says who calls, that file what they may do"
            )
        if self.jwt_keys is not None and not self.jwt_audience:
            raise ValueError(
                "expected jwt_audience with jwt_keys: without it a token made for another service would count"
            )
        if self.access is not None and self.tls_cert is None and not self.listen.startswith("unix:"):
            raise ValueError(
                "expected tls_cert and tls_key, or listen = unix:PATH, with access: nobody can be recognised over"
                " plaintext TCP, and tokens could be read on their way, also on loopback and with insecure"
            )


def load(
    flags: Mapping[str, Any], config: Path | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The configuration from `flags` (None: not given), `environ` (default: the process's) and the TOML file `config`.

    Raises ConfigError for a file that cannot be read, an unknown key or variable (naming the nearest known one), a
    value that is out of range, and values that do not fit together.
    """
    sources = {
        "file": _from_file(config),
        "environment": _from_environment(os.environ if environ is None else environ),
        "flags": {name: value for name, value in flags.items() if value is not None},
    }
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for source, given in sources.items():
        values |= given
        origin |= dict.fromkeys(given, source)
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(fault, origin, config) for fault in error.errors())) from None


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches `address` (HOST:PORT, [IPV6]:PORT or unix:PATH). A name other than localhost
    may resolve to anything, so it does not count.
    """
    if address.startswith("unix:"):
        return True
    host, _ = _host_and_port(address, "HOST:PORT")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_and_port(address: str, expected: str) -> tuple[str, int]:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]\s/]+)):(\d{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"expected {expected} with a port from 0 to 65535, got {address!r}")
    return match[1] or match[2], int(match[3])


def _from_file(config: Path | None) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        values = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {config}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{config} is not TOML: {error}") from None
    for key in values:
        if key not in Settings.model_fields:
            raise ConfigError(f"unknown key {key!r} in {config}{_nearest(key, Settings.model_fields)}")
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, str]:
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    values: dict[str, str] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX) or _FOREIGN.fullmatch(variable.removeprefix(PREFIX)):
            continue
        if variable not in known:
            raise ConfigError(f"unknown environment variable {variable}{_nearest(variable, known)}")
        if value:
            values[known[variable]] = value
    return values


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"


def _explain(fault: ErrorDetails, origin: Mapping[str, str], config: Path | None) -> str:
    """One line for one of pydantic's faults: the field, where its value came from, the value and the rule."""
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    name = str(fault["loc"][0])
    if fault["type"] == "missing":
        return f"{name} is needed: {_flag(name)}, {PREFIX}{name.upper()} or a key of the --config file"
    if fault["type"] == "extra_forbidden":
        return f"unknown setting {name!r}{_nearest(name, Settings.model_fields)}"
    whence = {
        "flags": f"from {_flag(name)}",
        "environment": f"from {PREFIX}{name.upper()}",
        "file": f"from {config}",
    }[origin[name]]
    return f"{name} = {fault['input']!r} ({whence}): {message[0].lower()}{message[1:]}"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
