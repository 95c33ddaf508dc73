"""Every setting with its name, default and help. Settings are read once, at start: flags override the environment,
which overrides the file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from exchange_service.addresses import encoding_problem, is_loopback, is_loopback_host, spell_addresses
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.observability.redaction import redact

CONFIG_VARIABLE = f"{ENVIRONMENT_PREFIX}CONFIG"
# The forms of `keyset_key` and `keyset_login`.
MANAGERS_KEY = re.compile(
    r"(?P<name>vault://(?P<mount>[A-Za-z0-9._/-]{1,100}?)/keys/(?P<key>[A-Za-z0-9._-]{1,64}))"
    r"(?:\?label=(?P<label>[A-Za-z0-9._-]{1,64}))?"
)
MANAGERS_LOGIN = re.compile(
    r"(?P<method>kubernetes|approle):(?P<role>[A-Za-z0-9._-]{1,128})(?:@(?P<mount>[A-Za-z0-9._/-]{1,100}))?"
)


def data_folder() -> Path:
    """The folder in which the service keeps its files by default."""
    return Path(platformdirs.user_data_dir("exchange-service", appauthor=False))


def _default_database() -> str:
    return f"sqlite:///{data_folder() / 'exchange-service.db'}"


class Settings(BaseSettings):
    """The settings of a serving process. Each is a flag of `serve`, an environment variable and a line of the file.

    The class is long because it is the table of all settings.
    """

    model_config = SettingsConfigDict(env_prefix=ENVIRONMENT_PREFIX, extra="forbid", hide_input_in_errors=True)

    address: str = Field(
        "127.0.0.1:50051",
        description="Host and port to listen on; port 0 selects a free port. Any address other than loopback needs "
        "TLS.",
    )
    engine: Literal["auto", "grpcio", "native"] = Field(
        "auto",
        description="What runs HTTP/2: grpcio, or native (pygrpc-native, the extra [native]), which takes less "
        "processor time and has no TLS. auto: grpcio. See the two engines in docs/performance.md.",
    )
    tls_certificate: Path | None = Field(None, description="PEM file with the server's certificate chain.")
    tls_key: Path | None = Field(None, description="PEM file with the certificate's private key.")
    insecure: bool = Field(
        False,
        description="Listen on an address other than loopback without TLS, and serve every caller that reaches the "
        "port.",
    )
    open_to_all: bool = Field(
        False,
        description="Listen on an address other than loopback with TLS, and serve every user's balances to every "
        "caller.",
    )
    tls_client_ca: Path | None = Field(
        None,
        description="PEM file with the authority that signs client certificates. Every connection then needs a "
        "certificate.",
    )
    client_certificates: dict[str, str | list[str] | dict[str, Any]] = Field(
        default_factory=dict,
        description="The users that the holder of a client certificate may read, by the certificate's DNS name, or "
        "by its common name if it has no DNS name, as JSON: "
        '{"billing": "*", "desk": ["alice", "bob"], "gateway": "act-as"}. Other certificates are refused. '
        'With {"app": {"users": "act-as", "manage": true}} it may also manage accounts, see `manage_accounts`.',
    )
    manage_accounts: bool = Field(
        False,
        description="Let callers with the right to manage connect, check and remove accounts "
        "(exchange_service.accounts.v1.AccountService). Without authentication that is everybody who reaches the "
        "service, so it needs loopback.",
    )
    service_tokens: bool = Field(
        False,
        description="Accept the tokens that `exchange-service tokens create` makes; they are stored in the database.",
    )
    jwt_secret: SecretStr | None = Field(
        None,
        description="The shared secret of JWTs signed with HS256, 32 bytes or more, such as Supabase's JWT secret.",
    )
    jwt_jwks_url: str | None = Field(
        None,
        description="The https URL where the issuer of JWTs publishes its keys (a JWKS). It is read again as they "
        "change.",
    )
    jwt_jwks_file: Path | None = Field(
        None,
        description="File with the keys of the issuer of JWTs (a JWKS), instead of `jwt_jwks_url`. "
        "You may replace it at any time.",
    )
    jwt_audience: str = Field(
        "authenticated",
        description='The audience ("aud") that a JWT must name. Empty: only JWTs without an audience are accepted.',
    )
    jwt_issuer: str | None = Field(None, description='The issuer ("iss") that a JWT must name. Unset: any.')
    jwt_users_claim: str = Field(
        "exchange_service_users",
        min_length=1,
        description='The claim that lets a JWT read more users than its subject; its value is "*", "act-as" or a '
        'list of users, or {"users": one of these, "manage": true} with the right to manage accounts.',
    )
    jwt_leeway: float = Field(
        60.0, ge=0, le=300, description="Seconds by which the clock of a JWT's issuer may differ from the service's."
    )
    user_calls: int = Field(50, ge=1, le=1_000_000, description="Calls per second that a user's own token may make.")
    user_refreshes: int = Field(
        30,
        ge=1,
        le=1_000_000,
        description="Refreshes per minute that a user's own token may force (max_age below 5 s, or below half of the "
        "setting `max_age` if that is less).",
    )
    user_streams: int = Field(
        20,
        ge=1,
        le=1_000_000,
        description="Streams that a user's own token may have open at the same time, in each process.",
    )
    user_changes: int = Field(
        20,
        ge=1,
        le=1_000_000,
        description="Accounts per minute that a user's own token may connect, check or remove.",
    )
    service_calls: int = Field(
        2000, ge=1, le=1_000_000, description="Calls per second that a service's token or certificate may make."
    )
    service_refreshes: int = Field(
        3000, ge=1, le=1_000_000, description="Refreshes per minute that a service's token or certificate may force."
    )
    service_streams: int = Field(
        20_000,
        ge=1,
        le=1_000_000,
        description="Streams that a service's token or certificate may have open at the same time, in each process.",
    )
    service_changes: int = Field(
        600,
        ge=1,
        le=1_000_000,
        description="Accounts per minute that a service's token or certificate may connect, check or remove.",
    )
    failed_checks: int = Field(
        5,
        ge=1,
        le=1_000,
        description="Attempts per minute, on all replicas together, to connect or check one account that its venue "
        "may refuse; further ones do not reach it, because many venues lock an account after some.",
    )
    reflection: bool | None = Field(
        None, description="Serve gRPC reflection, the description of the service's methods. Unset: on loopback only."
    )
    database_url: str = Field(
        default_factory=_default_database,
        description="The database of credentials: sqlite:///path or postgresql://user:password@host/name. "
        "Percent-encode the password.",
    )
    keyset_file: Path | None = Field(
        None, description="File with the keys that seal credentials, made by `exchange-service keys create`."
    )
    keyset: SecretStr | None = Field(None, description="The keyset as JSON text, instead of `keyset_file`.")
    keyset_key: str | None = Field(
        None,
        description="The key of a manager that has wrapped the keyset, and opens it at the start and when its file "
        'changes: "vault://MOUNT/keys/NAME", of the transit engine of HashiCorp Vault or OpenBao, which VAULT_ADDR and '
        "Vault's other variables tell how to reach. `?label=WORD` behind it binds the keyset to that word. See keys "
        "from a manager. Unset: the keyset is plain.",
    )
    keyset_login: str = Field(
        "",
        description='How the service enters the manager: "kubernetes:ROLE" by the pod\'s account, or '
        '"approle:ROLE_ID" with VAULT_SECRET_ID or VAULT_SECRET_ID_FILE; `@MOUNT` behind it for another mount. Empty: '
        "by VAULT_TOKEN_FILE, read each time, or VAULT_TOKEN.",
    )
    keyset_wait: float = Field(
        60.0, ge=0, description="Seconds that the start waits for a manager that does not answer, before it gives up."
    )
    allow_plaintext: bool = Field(
        True,
        description="Also read credentials that are stored in plain text. Set false once all are sealed: a plain "
        "credential that another program put in place of a sealed one is then refused.",
    )
    cache_url: str = Field(
        "memory://",
        description="Where balances are cached for a short time: memory:// or redis://host:6379/0. Percent-encode a "
        "password in it.",
    )
    cache_prefix: str = Field("exchange-service:", description="The prefix of the service's keys in a shared Redis.")
    hash_key: SecretStr | None = Field(
        None,
        description="The key of the hashes in cache keys and of what is sealed in Redis, 16 characters or more, at "
        "random. Give all replicas the same key, so that they share balances, limits and delays. Service tokens are "
        "signed with it too: before it changes, sign them with the new one (`tokens sign`). Unset: a random key for "
        "each process.",
    )
    max_age: float = Field(
        30.0, ge=0, le=3600, description="Seconds for which a cached balance is fresh, unless a call says otherwise."
    )
    stale_grace: float = Field(
        300.0, ge=0, le=86400, description="Seconds for which the last good balance is served while its venue fails."
    )
    venue_timeout: float = Field(
        8.0, gt=0, le=120, description="Seconds that a venue has to answer with a whole balance."
    )
    venue_fetches: int = Field(
        32,
        ge=1,
        le=10_000,
        description="Balances that each process reads from one venue at the same time; further ones wait.",
    )
    plugin_fetches: int = Field(
        128,
        ge=1,
        le=10_000,
        description="Balances that each process reads through one plugin at the same time; further ones wait.",
    )
    replicas: int = Field(
        1,
        ge=1,
        le=1000,
        description="The number of replicas that share the Redis. While it does not answer, each replica uses only "
        "its part of the venues' limits.",
    )
    call_timeout: float = Field(10.0, gt=0, le=600, description="Seconds that a call without a deadline may take.")
    poll_interval: float = Field(
        10.0, ge=0.1, le=3600, description="Seconds between two reads of a streamed account while it changes."
    )
    poll_interval_still: float = Field(
        30.0,
        ge=0.1,
        le=3600,
        description="Seconds to which `poll_interval` grows, step by step, while the account does not change.",
    )
    push: bool = Field(
        True, description="Follow the pushes of venues that have them for streamed accounts. False: poll every account."
    )
    polled_exchanges: list[str] = Field(
        default_factory=list,
        description="Ids of exchanges whose streamed accounts are polled although their venue pushes, as JSON: "
        '["tradier"].',
    )
    reconcile_interval: float = Field(
        300.0,
        ge=1,
        le=86400,
        description="Seconds between two reads of a streamed account whose venue pushes its changes.",
    )
    heartbeat_interval: float = Field(15.0, ge=0.1, le=3600, description="Seconds between two heartbeats of a stream.")
    stream_lifetime: float = Field(
        3600.0, ge=1, le=86400, description="Seconds after which a stream ends; the subscriber then opens it again."
    )
    write_timeout: float = Field(
        30.0, gt=0, le=600, description="Seconds that a subscriber may leave a message unread before its stream ends."
    )
    session_idle: float = Field(
        300.0, ge=1, le=86400, description="Seconds after which an account's unused venue session is closed."
    )
    shutdown_delay: float | None = Field(
        None,
        ge=0,
        le=300,
        description="Seconds after SIGTERM for which the service already says NOT_SERVING and still takes connections "
        "and calls, so that load balancers notice first. An interrupt (Ctrl-C) does without. Unset: 5, or 0 on "
        "loopback.",
    )
    shutdown_grace: float = Field(5.0, ge=0, le=300, description="Seconds that running calls have to end at shutdown.")
    connection_streams: int = Field(
        250,
        ge=1,
        le=100_000,
        description="Calls and streams that one connection may have open at the same time. A client that needs more "
        "opens further connections. A much larger number lets one peer stop the service for seconds.",
    )
    memory_limit: int | None = Field(
        None,
        ge=64,
        description="MiB of memory that the service's process should not exceed: new streams are refused before it "
        "does. Unset: the container's limit, or the process's own (ulimit), if there is one.",
    )
    venue_urls: dict[str, str] = Field(
        default_factory=dict,
        description="Addresses to use instead of a venue's own, for simulators and proxies, by exchange id or "
        '"id.environment", as JSON: {"oanda": "http://127.0.0.1:9001"}.',
    )
    outgoing_address: str | None = Field(
        None,
        description="The IP address, or several with commas between them, from which this service calls the venues. It "
        "is named in the errors of users whose key does not allow it. Unset: only where the venue names it.",
    )
    egress: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="The ways out by name (proxies, or addresses of this machine), and which venues use them, as JSON: "
        '{"ways": {"frankfurt": {"proxy": "http://10.0.0.5:3128", "address": "203.0.113.7"}}, "venues": {"binance": '
        '["frankfurt", "direct"]}}. Venues that are not named are asked directly. See outgoing addresses in '
        "docs/operations.md.",
    )
    exchange_plugins: dict[str, str] = Field(
        default_factory=dict,
        description="The distribution or plugin that serves an exchange id which two plugins claim, by exchange id, "
        'as JSON: {"acme": "acme-exchange", "binance": "ccxt_generic"}.',
    )
    allowed_plugins: list[str] = Field(
        default_factory=list,
        description="Third-party distributions whose plugins are loaded, as JSON: "
        '["acme-exchange"]. Empty: all that are installed if the service listens on loopback and has no keyset, else '
        "none.",
    )
    plugin_processes: dict[str, Literal["in-process", "own-process"]] = Field(
        default_factory=dict,
        description="Where a plugin's code runs, in-process or own-process, by the plugin's name, as JSON: "
        '{"ccxt_generic": "in-process"}. By default this project\'s plugins run in the service\'s process, except '
        "ccxt_generic; ccxt_generic and third-party plugins run in processes of their own.",
    )
    plugin_interpreters: dict[str, str] = Field(
        default_factory=dict,
        description="The interpreter of a virtual environment of its own in which a plugin is installed and runs, by "
        'the plugin\'s name, as JSON: {"ccxt_generic": "/opt/ccxt/bin/python"}. See "A plugin in its own environment" '
        "in docs/operations.md.",
    )
    plugin_process_counts: dict[str, int] = Field(
        default_factory=dict,
        description="The number of processes of a plugin that does not run in the service's, by the plugin's name, "
        "as JSON: "
        '{"ccxt_generic": 2}. Its accounts are distributed among them. Default: one.',
    )
    plugin_memory: dict[str, int] = Field(
        default_factory=dict,
        description="MiB of memory at which a plugin's process is restarted, by the plugin's name, as JSON: "
        '{"ccxt_generic": 3072}. Default: 2048 for this project\'s plugins, 512 for third-party ones.',
    )
    plugin_settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="What plugins let the operator set, by the plugin's name or its distribution's, as JSON: "
        '{"acme": {"client_id": "abc", "client_secret": {"env": "ACME_CLIENT_SECRET"}}}. A secret is the name of an '
        "environment variable, or what `exchange-service plugins seal` prints; see plugins' settings in "
        "docs/operations.md.",
    )
    plugin_start: Literal["on-demand", "at-once"] = Field(
        "on-demand",
        description="When plugin processes start. on-demand: when a call first needs one of the plugin's exchanges. "
        "at-once: with the service.",
    )
    plugin_sandbox: Literal["auto", "require", "off"] = Field(
        "auto",
        description="Restrict what plugins' own processes reach (files, network ports, other processes), by Linux's "
        "Landlock. auto: as far as the kernel can. require: start none unless it can restrict all three (Linux 6.12). "
        "off: do not.",
    )
    metrics_address: str | None = Field(
        None,
        description="Host and port that serve metrics to Prometheus over HTTP, at /metrics. Unset: metrics are not "
        "served.",
    )
    metrics_open: bool = Field(
        False, description="Serve metrics on an address other than loopback, to everybody who reaches the port."
    )
    metrics_hosts: list[str] = Field(
        default_factory=list,
        description="Further names in the Host header for which metrics are served, as JSON: "
        '["metrics.example.com"]. The host of `metrics_address`, addresses and localhost are always served; if '
        "`metrics_open` is set, also names of one word and of private networks, such as those of a cluster.",
    )
    traces: Literal["off", "otlp", "global"] = Field(
        "off",
        description="Where spans of calls go. otlp: to a receiver of OTLP over HTTP, by the extra [traces]; global: to "
        "what the process has set, such as opentelemetry-instrument. See traces in docs/operations.md.",
    )
    traces_endpoint: str | None = Field(
        None,
        description="Base URL of the receiver for `traces=otlp`, such as http://127.0.0.1:4318. Unset: what the "
        "variables OTEL_EXPORTER_OTLP_... say, else http://localhost:4318.",
    )
    traces_ratio: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Share of traces that are kept for `traces=otlp`, 0 to 1, where no caller has decided: a call with "
        "a traceparent is kept if that says so. Reads of streams count here each.",
    )
    health_address: str | None = Field(
        None,
        description="Host and port that answer /livez and /readyz over HTTP, in plaintext, for load balancers and "
        "Kubernetes, such as 127.0.0.1:8086. It may be the same as `metrics_address`. Unset: they are not answered.",
    )
    http_address: str | None = Field(
        None,
        description="Host and port that serve the same methods over HTTP to browsers and scripts (the Connect "
        "protocol), such as 127.0.0.1:50052. Callers are told apart by tokens there, not by client certificates. It "
        "needs the extra [http]. Unset: they are served over gRPC alone.",
    )
    http_origins: list[str] = Field(
        default_factory=list,
        description="Web pages that may call the service over HTTP, by their origins, as JSON: "
        '["https://app.example.com"]. Pages of other origins are refused.',
    )
    http_hosts: list[str] = Field(
        default_factory=list,
        description="Further names in the Host header under which `http_address` is served, as JSON: "
        '["balances.example.com"]. The host of `http_address`, addresses and localhost are always served.',
    )
    console: bool = Field(False, description="Serve pages for people on `http_address`. It needs the extra [console].")
    console_logos: Path | None = Field(
        None,
        description="A folder of logos for the console, named by the exchange's id: oanda.svg, .png, .webp or .jpg. "
        "Other exchanges get a picture of two letters; no logo is loaded from another host.",
    )
    event_loop: Literal["auto", "asyncio", "uvloop"] = Field(
        "auto", description="The event loop. auto: uvloop if it is installed, else Python's own asyncio."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The severity of the least severe lines in the log."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto",
        description="The form of log lines: console for people, json for programs. auto: console on a terminal, else "
        "json.",
    )

    @field_validator("venue_urls")
    @classmethod
    def _validate_venue_urls(cls, value: dict[str, str]) -> dict[str, str]:
        for exchange, url in value.items():
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"the address for {exchange!r} should begin with http:// or https://")
        return value

    @field_validator("outgoing_address")
    @classmethod
    def _validate_outgoing_address(cls, value: str | None) -> str | None:
        """Texts in errors, so nothing but addresses, in one form."""
        return None if value is None else spell_addresses(value)

    @field_validator("plugin_interpreters")
    @classmethod
    def _validate_interpreters(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        for plugin, interpreter in value.items():
            if not os.path.isabs(interpreter):
                raise ValueError(f"the interpreter of {plugin!r} should be an absolute path")
            if info.data.get("plugin_processes", {}).get(plugin) == "in-process":
                raise ValueError(f"{plugin!r} cannot run in-process, as plugin_processes says, on another interpreter")
        return value

    @field_validator("plugin_process_counts", "plugin_memory")
    @classmethod
    def _validate_positive(cls, value: dict[str, int]) -> dict[str, int]:
        for plugin, number in value.items():
            if number < 1:
                raise ValueError(f"the number for {plugin!r} should be 1 or more")
        return value

    @field_validator("database_url")
    @classmethod
    def _validate_database(cls, value: str) -> str:
        if not value.startswith(("sqlite://", "sqlite+", "postgresql://", "postgresql+", "postgres://")):
            raise ValueError("it should be sqlite:///path or postgresql://user:password@host/name")
        if not value.startswith("sqlite"):
            _check_encoding(value)
        return value

    @field_validator("cache_url")
    @classmethod
    def _validate_cache(cls, value: str) -> str:
        if not value.startswith(("memory:", "redis://", "rediss://", "unix://")):
            raise ValueError("it should be memory:// or redis://host:6379/0")
        _check_encoding(value)
        return value

    @field_validator("address")
    @classmethod
    def _validate_address(cls, value: str) -> str:
        host, colon, port = value.rpartition(":")
        if not value.startswith("unix:") and not (host and colon and port.isdigit() and int(port) < 65536):
            raise ValueError("it should be host:port, such as 127.0.0.1:50051")
        return value

    @field_validator("metrics_address", "health_address", "http_address")
    @classmethod
    def _validate_http_address(cls, value: str | None) -> str | None:
        host, colon, port = (value or "").rpartition(":")
        if value is not None and not (host and colon and port.isdigit() and int(port) < 65536):
            raise ValueError("it should be host:port, such as 127.0.0.1:9464")
        return value

    @field_validator("traces_endpoint")
    @classmethod
    def _validate_traces_endpoint(cls, value: str | None) -> str | None:
        if value is not None and not (value.startswith(("http://", "https://")) and urlsplit(value).hostname):
            raise ValueError("it should be an address such as http://127.0.0.1:4318")
        return value

    @field_validator("http_origins")
    @classmethod
    def _validate_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}".lower():
                raise ValueError("each should be as browsers send it, such as https://app.example.com")
        return value

    @field_validator("http_hosts", "metrics_hosts")
    @classmethod
    def _validate_hosts(cls, value: list[str]) -> list[str]:
        if any("*" in host or urlsplit(f"//{host}").hostname != host.lower() for host in value):
            raise ValueError("each should be a name alone, such as balances.example.com")
        return value

    @field_validator("jwt_jwks_url")
    @classmethod
    def _validate_issuer_url(cls, value: str | None) -> str | None:
        """Without TLS the keys could come from an attacker, unless they come from this machine."""
        if value is not None and not value.startswith("https://"):
            host = urlsplit(value).hostname or ""
            if not value.startswith("http://") or not is_loopback_host(host):
                raise ValueError("it should begin with https://")
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _validate_jwt_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value().encode()) < 32:
            raise ValueError("it should have 32 bytes or more")
        return value

    @field_validator("tls_certificate", "tls_key", "tls_client_ca", "jwt_jwks_file")
    @classmethod
    def _validate_file(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_file():
            raise ValueError("there is no such file")
        return value

    @field_validator("console_logos")
    @classmethod
    def _validate_folder(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_dir():
            raise ValueError("there is no such folder")
        return value

    @field_validator("keyset_key", "keyset_login")
    @classmethod
    def _validate_manager(cls, value: str | None, info: ValidationInfo) -> str | None:
        of_key = info.field_name == "keyset_key"
        if not value:
            return None if of_key else ""
        if not (MANAGERS_KEY if of_key else MANAGERS_LOGIN).fullmatch(value):
            form = "vault://transit/keys/exchange-service" if of_key else "kubernetes:ROLE or approle:ROLE_ID"
            raise ValueError(f"it should be like {form}")
        return value

    @field_validator("hash_key")
    @classmethod
    def _validate_hash_key(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < 16:
            raise ValueError("it should have 16 characters or more")
        return value

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What `repr` shows: URLs without their user and password, and of plugins' settings the names."""
        names = {plugin: sorted(values) for plugin, values in self.plugin_settings.items()}
        shown = [(name, names if name == "plugin_settings" else value) for name, value in super().__repr_args__()]
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
    def engine_in_use(self) -> Literal["grpcio", "native"]:
        """What runs HTTP/2."""
        return "native" if self.engine == "native" else "grpcio"

    @property
    def loopback(self) -> bool:
        """Whether the service can be reached from this machine only."""
        return not self.exposed

    @property
    def exposed(self) -> list[str]:
        """The addresses at which other machines reach the service's methods."""
        return [address for address in (self.address, self.http_address) if address and not is_loopback(address)]

    @property
    def third_party_by_name(self) -> bool:
        """Whether third-party plugins are loaded only if `allowed_plugins` names them: others can reach the service, or
        it holds the keys of sealed credentials."""
        return not self.loopback or self.keyset_file is not None or self.keyset is not None

    @property
    def metrics_on_loopback(self) -> bool:
        """Whether metrics can be read from this machine only, if at all."""
        return self.metrics_address is None or is_loopback_host(self.metrics_address.rpartition(":")[0].strip("[]"))

    @property
    def leaving_delay(self) -> float:
        """`shutdown_delay`, or its default: no load balancer leads to a service on loopback."""
        if self.shutdown_delay is not None:
            return self.shutdown_delay
        return 0.0 if self.loopback else 5.0

    @property
    def takes_tokens(self) -> bool:
        """Whether callers may authenticate with a bearer token."""
        return bool(self.service_tokens or self.jwt_secret or self.jwt_jwks_url or self.jwt_jwks_file)

    @property
    def knows_callers(self) -> bool:
        """Whether any method of authentication is enabled; each call then needs one."""
        return self.takes_tokens or bool(self.client_certificates)


# Variables with our prefix that are not settings, but belong to the command line.
_OTHER_VARIABLES = (
    *("CONFIG", "PLAINTEXT", "TLS_CA", "HEADER", "TIMEOUT", "OUTPUT", "USER"),
    *("TOKEN", "CLIENT_CERTIFICATE", "CLIENT_KEY"),
)


def unknown_variables() -> list[str]:
    """Environment variables with our prefix that are not known, most often because of a typing error."""
    known = {f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in (*Settings.model_fields, *_OTHER_VARIABLES)}
    ours = (name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX))
    return sorted(name for name in ours if name.upper() not in known and "_TEST_" not in name)


def _check_encoding(url: str) -> None:
    problem = encoding_problem(url)
    if problem:
        raise ValueError(problem)


def load_settings(**flags: Any) -> Settings:
    """The settings: `flags` (None: not given) override the environment, which overrides the file.

    Raises pydantic.ValidationError, which names the setting and never shows its value, and OSError or ValueError if the
    settings file cannot be read.
    """
    config = os.environ.get(CONFIG_VARIABLE)
    if config and not Path(config).is_file():
        raise FileNotFoundError(f"The settings file {config}, which {CONFIG_VARIABLE} names, does not exist.")
    return Settings(**{name: value for name, value in flags.items() if value is not None})
