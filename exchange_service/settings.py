"""Every setting: name, default, help. Read once, at start: flags before environment before file."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from exchange_service.observability.redaction import redact

ENVIRONMENT_PREFIX = "EXCHANGE_SERVICE_"
CONFIG_VARIABLE = f"{ENVIRONMENT_PREFIX}CONFIG"


def data_folder() -> Path:
    """Where the service keeps its files by default."""
    return Path(platformdirs.user_data_dir("exchange-service", appauthor=False))


def _default_database() -> str:
    return f"sqlite:///{data_folder() / 'exchange-service.db'}"


class Settings(BaseSettings):
    """The settings of a serving process. Each is a flag of `serve`, an environment variable and a line of the file."""

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", hide_input_in_errors=True)

    address: str = Field(
        "127.0.0.1:50051",
        description="Host and port to listen on; port 0 takes a free one. Elsewhere than on loopback TLS is needed.",
    )
    tls_certificate: Path | None = Field(None, description="PEM file with the server's certificate chain.")
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    insecure: bool = Field(
        False, description="Listen elsewhere than on loopback without TLS: anybody who reaches the port is served."
    )
    open_to_all: bool = Field(
        False, description="Listen elsewhere than on loopback with TLS, and serve every user's balances to anybody."
    )
    tls_client_ca: Path | None = Field(
        None, description="PEM file with who signs clients' certificates: every connection then needs one."
    )
    client_certificates: dict[str, str | list[str]] = Field(
        default_factory=dict,
        description="Whom the holder of a client certificate may read, by the certificate's DNS name, or by its common "
        'name where it has none, as JSON: {"billing": "*", "desk": ["alice", "bob"], "gateway": "act-as"}. '
        "Others are refused.",
    )
    service_tokens: bool = Field(
        False, description="Take the tokens that `exchange-service tokens create` makes; they are kept in the database."
    )
    jwt_secret: SecretStr | None = Field(
        None, description="Secret of JWTs that are signed with HS256, 32 bytes or more, such as Supabase's JWT secret."
    )
    jwt_jwks_url: str | None = Field(
        None, description="Where the issuer of JWTs publishes its keys (a JWKS), https://…; read again as they change."
    )
    jwt_jwks_file: Path | None = Field(None, description="The same from a file, which may be replaced at any time.")
    jwt_audience: str = Field(
        "authenticated",
        description='The audience ("aud") that a JWT must be made for. Empty: only JWTs that name none are taken.',
    )
    jwt_issuer: str | None = Field(None, description='The issuer ("iss") that a JWT must name. Unset: any.')
    jwt_users_claim: str = Field(
        "exchange_service_users",
        min_length=1,
        description='The claim by which a JWT may read more users than its subject: "*", "act-as" or a list.',
    )
    jwt_leeway: float = Field(
        60.0, ge=0, le=300, description="Seconds by which the clock of a JWT's issuer may differ from ours."
    )
    user_calls: int = Field(50, ge=1, le=1_000_000, description="Calls a second that a user's own token may make.")
    user_refreshes: int = Field(
        30, ge=1, le=1_000_000, description="Refreshes a minute that a user's own token may force (max_age below 1 s)."
    )
    user_streams: int = Field(
        20, ge=1, le=1_000_000, description="Streams that a user's own token may have open at once, in each process."
    )
    service_calls: int = Field(
        2000, ge=1, le=1_000_000, description="Calls a second that a service's token or certificate may make."
    )
    service_refreshes: int = Field(
        3000, ge=1, le=1_000_000, description="Refreshes a minute that a service's token or certificate may force."
    )
    service_streams: int = Field(
        20_000, ge=1, le=1_000_000, description="Streams that a service may have open at once, in each process."
    )
    reflection: bool | None = Field(
        None, description="Let clients ask for the service's description. Unset: on loopback only."
    )
    database_url: str = Field(
        default_factory=_default_database,
        description="Where credentials are stored: sqlite:///path or postgresql://user:password@host/name.",
    )
    keyset_file: Path | None = Field(
        None, description="File with the keys that seal credentials, made by `exchange-service keys create`."
    )
    keyset: SecretStr | None = Field(
        None, description="The same JSON object as in a keyset_file, for who keeps secrets in the environment."
    )
    allow_plaintext: bool = Field(
        True,
        description="Read credentials that are stored in plain text, too. false, once all are sealed, refuses a plain "
        "one that somebody put in the place of a sealed one.",
    )
    cache_url: str = Field(
        "memory://", description="Where balances are kept for a short time: memory:// or redis://host:6379/0."
    )
    cache_prefix: str = Field("exchange-service:", description="What the keys of a shared Redis begin with.")
    hash_key: SecretStr | None = Field(
        None,
        description="Key of the hashes in cache keys, 16 characters or more. Give all replicas the same one, so that "
        "they share kept balances. Unset: a random one for each process.",
    )
    max_age: float = Field(30.0, ge=0, le=3600, description="Seconds for which a kept balance is fresh enough.")
    stale_grace: float = Field(
        300.0, ge=0, le=86400, description="Seconds for which the last good balance is given when a venue fails."
    )
    venue_timeout: float = Field(8.0, gt=0, le=120, description="Seconds that a venue has for a whole balance.")
    venue_fetches: int = Field(
        32, ge=1, le=10_000, description="Balances that each process reads at once from one venue; others wait."
    )
    plugin_fetches: int = Field(
        128, ge=1, le=10_000, description="Balances that each process reads at once through one plugin; others wait."
    )
    replicas: int = Field(
        1,
        ge=1,
        le=1000,
        description="How many replicas share the Redis. While it does not answer, each keeps to that part of the "
        "venues' limits.",
    )
    call_timeout: float = Field(10.0, gt=0, le=600, description="Seconds for a call that names no deadline.")
    poll_interval: float = Field(
        10.0, ge=0.1, le=3600, description="Seconds between two reads of a streamed account that changes."
    )
    poll_interval_still: float = Field(
        30.0,
        ge=0.1,
        le=3600,
        description="Seconds to which that grows, step by step, while the account does not change.",
    )
    heartbeat_interval: float = Field(15.0, ge=0.1, le=3600, description="Seconds between two heartbeats of a stream.")
    stream_lifetime: float = Field(
        3600.0, ge=1, le=86400, description="Seconds after which a stream ends and is to be opened again."
    )
    write_timeout: float = Field(
        30.0, gt=0, le=600, description="Seconds that a subscriber may leave a message unread before its stream ends."
    )
    session_idle: float = Field(
        300.0, ge=1, le=86400, description="Seconds after which an account's unused venue session is closed."
    )
    shutdown_grace: float = Field(5.0, ge=0, le=300, description="Seconds that calls have to end at shutdown.")
    venue_urls: dict[str, str] = Field(
        default_factory=dict,
        description="Addresses to use in place of a venue's own, for simulators and proxies, by exchange id or "
        '"id.environment", as JSON: {"oanda": "http://127.0.0.1:9001"}.',
    )
    exchange_plugins: dict[str, str] = Field(
        default_factory=dict,
        description="Which distribution serves an exchange id that two plugins claim, as JSON.",
    )
    allowed_plugins: list[str] = Field(
        default_factory=list,
        description="Distributions besides this project's own whose plugins are loaded, as JSON: "
        '["acme-exchange"]. Empty: all that are installed.',
    )
    plugin_processes: dict[str, Literal["in-process", "own-process"]] = Field(
        default_factory=dict,
        description="Where a plugin's code runs, by the plugin's name, as JSON: "
        '{"ccxt_generic": "in-process"}. Others: this project\'s own in the service\'s process, but for ccxt_generic; '
        "everybody else's in processes of their own.",
    )
    plugin_process_counts: dict[str, int] = Field(
        default_factory=dict,
        description="How many processes a plugin gets that runs in its own, by the plugin's name, as JSON: "
        '{"ccxt_generic": 2}. Accounts are shared out among them. Others: one.',
    )
    plugin_memory: dict[str, int] = Field(
        default_factory=dict,
        description="MiB of memory at which a plugin's process is started anew, by the plugin's name, as JSON. "
        "Others: 2048 for this project's own, 512 for everybody else's.",
    )
    plugin_start: Literal["on-demand", "at-once"] = Field(
        "on-demand",
        description="When the processes of plugins are started: when one of their exchanges is first asked for, or "
        "with the service.",
    )
    metrics_address: str | None = Field(
        None, description="Host and port where Prometheus reads metrics by HTTP, at /metrics. Unset: nowhere."
    )
    metrics_open: bool = Field(
        False, description="Show metrics elsewhere than on loopback, to anybody who reaches the port."
    )
    event_loop: Literal["auto", "asyncio", "uvloop"] = Field(
        "auto", description="What runs the service: uvloop where it is installed, else Python's own asyncio."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="The least severe log line.")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="Log lines for people or for programs. auto: console on a terminal, else json."
    )

    @field_validator("venue_urls")
    @classmethod
    def _addresses(cls, value: dict[str, str]) -> dict[str, str]:
        for exchange, url in value.items():
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"the address for {exchange!r} should begin with http:// or https://")
        return value

    @field_validator("plugin_process_counts", "plugin_memory")
    @classmethod
    def _positive(cls, value: dict[str, int]) -> dict[str, int]:
        for plugin, number in value.items():
            if number < 1:
                raise ValueError(f"the number for {plugin!r} should be 1 or more")
        return value

    @field_validator("database_url")
    @classmethod
    def _database(cls, value: str) -> str:
        if not value.startswith(("sqlite://", "sqlite+", "postgresql://", "postgresql+", "postgres://")):
            raise ValueError("it should be sqlite:///path or postgresql://user:password@host/name")
        return value

    @field_validator("cache_url")
    @classmethod
    def _cache(cls, value: str) -> str:
        if not value.startswith(("memory:", "redis://", "rediss://", "unix://")):
            raise ValueError("it should be memory:// or redis://host:6379/0")
        return value

    @field_validator("address")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not value.startswith("unix:") and not (host and colon and port.isdigit() and int(port) < 65536):
            raise ValueError("it should be host:port, such as 127.0.0.1:50051")
        return value

    @field_validator("metrics_address")
    @classmethod
    def _metrics_host_and_port(cls, value: str | None) -> str | None:
        host, colon, port = (value or "").rpartition(":")
        if value is not None and not (host and colon and port.isdigit() and int(port) < 65536):
            raise ValueError("it should be host:port, such as 127.0.0.1:9464")
        return value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _issuer_address(cls, value: str | None) -> str | None:
        """Keys that come in the clear may be anybody's; from this machine they come from nobody else."""
        if value is not None and not value.startswith("https://"):
            host = urlsplit(value).hostname or ""
            if not value.startswith("http://") or not _is_loopback(host):
                raise ValueError("it should begin with https://")
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _secret_long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < 32:
            raise ValueError("it should have 32 bytes or more")
        return value

    @field_validator("tls_certificate", "tls_key", "tls_client_ca", "jwt_jwks_file")
    @classmethod
    def _file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("there is no such file")
        return value

    @field_validator("hash_key")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("it should have 16 characters or more")
        return value

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What `repr` shows: an address without the user and the password that it may hold."""
        shown = super().__repr_args__()
        return [(name, redact(value) if isinstance(value, str | dict) else value) for name, value in shown]

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        config = os.environ.get(CONFIG_VARIABLE)
        file = [TomlConfigSettingsSource(settings_cls, Path(config))] if config else []
        return (init_settings, env_settings, *file)

    @property
    def loopback(self) -> bool:
        """Whether the service can be reached from this machine only."""
        return self.address.startswith("unix:") or _is_loopback(self.address.rpartition(":")[0].strip("[]"))

    @property
    def metrics_on_loopback(self) -> bool:
        """Whether metrics can be read from this machine only, if at all."""
        return self.metrics_address is None or _is_loopback(self.metrics_address.rpartition(":")[0].strip("[]"))

    @property
    def takes_tokens(self) -> bool:
        """Whether callers may prove who they are by a bearer token."""
        return bool(self.service_tokens or self.jwt_secret or self.jwt_jwks_url or self.jwt_jwks_file)

    @property
    def knows_callers(self) -> bool:
        """Whether there is any way for a caller to prove who he is; each call then needs one."""
        return self.takes_tokens or bool(self.client_certificates)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Another name, "127.example.com" too: it may lead anywhere.
        return False


# Variables with our prefix that are no settings: the command line's, and the tests'.
_OTHER_VARIABLES = (
    *("CONFIG", "PLAINTEXT", "TLS_CA", "HEADER", "TIMEOUT", "OUTPUT", "USER"),
    *("TOKEN", "CLIENT_CERTIFICATE", "CLIENT_KEY"),
)


def unknown_variables() -> list[str]:
    """Environment variables with our prefix that mean nothing, most often a slip of the pen."""
    known = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in (*Settings.model_fields, *_OTHER_VARIABLES)}
    ours = (name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX))
    return sorted(name for name in ours if name.upper() not in known and "_TEST_" not in name)


def load_settings(**flags: Any) -> Settings:
    """The settings, with `flags` (None: not given) before the environment before the file.

    Raises pydantic.ValidationError, which names the setting and never shows its value; OSError or ValueError for a
    settings file that cannot be read.
    """
    config = os.environ.get(CONFIG_VARIABLE)
    if config and not Path(config).is_file():
        raise FileNotFoundError(f"The settings file {config} does not exist; {CONFIG_VARIABLE} names it.")
    return Settings(**{name: value for name, value in flags.items() if value is not None})
