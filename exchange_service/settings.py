"""Every setting: name, default, help. Read once, at start: flags before environment before file."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any, Literal

import platformdirs
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

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
    reflection: bool | None = Field(
        None, description="Let clients ask for the service's description. Unset: on loopback only."
    )
    database_url: str = Field(
        default_factory=_default_database,
        description="Where credentials are stored: sqlite:///path or postgresql://user:password@host/name.",
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
    call_timeout: float = Field(10.0, gt=0, le=600, description="Seconds for a call that names no deadline.")
    poll_interval: float = Field(10.0, ge=0.1, le=3600, description="Seconds between two reads of a streamed account.")
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

    @field_validator("tls_certificate", "tls_key")
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
        host = self.address.rpartition(":")[0].strip("[]")
        if host == "localhost" or self.address.startswith("unix:"):
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            # Another name, "127.example.com" too: it may lead anywhere.
            return False


# Variables with our prefix that are no settings: the command line's, and the tests'.
_OTHER_VARIABLES = ("CONFIG", "PLAINTEXT", "TLS_CA", "HEADER", "TIMEOUT", "OUTPUT", "USER")


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
