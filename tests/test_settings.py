"""The settings: flags override the environment, which overrides the file; a wrong value is named and never shown."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.settings import Settings, load_settings
from exchange_service.startup_checks import UnsafeSettings, check_settings
from tests.commands import run_command


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(ENVIRONMENT_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text("")
    monkeypatch.setenv("EXCHANGE_SERVICE_CONFIG", str(path))
    return path


class TestPrecedence:
    def test_a_flag_comes_before_the_environment_before_the_file_before_the_default(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert load_settings().max_age == 30.0
        file.write_text("max_age = 1.0\nstale_grace = 1.0\nvenue_timeout = 1.0\n")
        monkeypatch.setenv("EXCHANGE_SERVICE_STALE_GRACE", "2")
        monkeypatch.setenv("EXCHANGE_SERVICE_VENUE_TIMEOUT", "2")
        settings = load_settings(venue_timeout=3.0, call_timeout=None)
        assert (settings.max_age, settings.stale_grace, settings.venue_timeout) == (1.0, 2.0, 3.0)
        assert settings.call_timeout == 10.0

    def test_addresses_of_simulators_come_as_json_or_as_a_table(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file.write_text('[venue_urls]\noanda = "http://127.0.0.1:1"\n')
        assert load_settings().venue_urls == {"oanda": "http://127.0.0.1:1"}
        monkeypatch.setenv("EXCHANGE_SERVICE_VENUE_URLS", '{"oanda": "http://127.0.0.1:2"}')
        assert load_settings().venue_urls["oanda"] == "http://127.0.0.1:2"

    def test_a_named_file_that_is_not_there_is_an_error(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("EXCHANGE_SERVICE_CONFIG", str(tmp_path / "nowhere.toml"))
        with pytest.raises(FileNotFoundError, match=r"nowhere\.toml.*EXCHANGE_SERVICE_CONFIG"):
            load_settings()

    def test_without_a_file_there_are_defaults(self) -> None:
        settings = load_settings()
        assert settings.address == "127.0.0.1:50051"
        assert settings.database_url.startswith("sqlite:///")
        assert settings.cache_url == "memory://"


WRONG: dict[str, Any] = {
    "max_age": "hunter2",
    "stale_grace": -1,
    "venue_timeout": 0,
    "poll_interval": 0.01,
    "log_level": "hunter2",
    "venue_urls": {"oanda": "ftp://hunter2"},
    "hash_key": "hunter2",
    "insecure": "hunter2",
    "address": "hunter2",
    "database_url": "hunter2",
    "cache_url": "hunter2",
    "tls_key": "hunter2",
}


class TestWrongValues:
    @pytest.mark.parametrize("name", WRONG)
    def test_one_is_named_and_not_shown(self, name: str) -> None:
        with pytest.raises(ValidationError) as refusal:
            load_settings(**{name: WRONG[name]})
        assert name in str(refusal.value)
        assert "hunter2" not in str(refusal.value)

    def test_one_from_the_environment_is_named_and_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EXCHANGE_SERVICE_HASH_KEY", "hunter2")
        with pytest.raises(ValidationError) as refusal:
            load_settings()
        assert "hash_key" in str(refusal.value)
        assert "hunter2" not in str(refusal.value)

    def test_broken_json_in_the_environment_is_named_and_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EXCHANGE_SERVICE_VENUE_URLS", "{hunter2")
        with pytest.raises(ValueError, match="venue_urls") as refusal:
            load_settings()
        assert "hunter2" not in str(refusal.value)

    def test_a_key_of_the_file_that_is_no_setting_is_refused(self, file: Path) -> None:
        file.write_text('max_agee = 5\ndatabase_password = "hunter2"\n')
        with pytest.raises(ValidationError) as refusal:
            load_settings()
        assert "max_agee" in str(refusal.value)
        assert "hunter2" not in str(refusal.value)

    def test_a_flag_that_is_no_setting_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="max_agee"):
            load_settings(max_agee=5)

    def test_a_file_that_is_no_toml_is_an_error(self, file: Path) -> None:
        file.write_text("max_age: 5")
        with pytest.raises(ValueError, match="line 1"):
            load_settings()


def test_the_hash_key_does_not_show_itself() -> None:
    assert "only for this test" not in repr(load_settings(hash_key="only for this test"))


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.9.1:0", True),
        ("localhost:50051", True),
        ("[::1]:50051", True),
        ("unix:/run/exchange.sock", True),
        ("0.0.0.0:50051", False),
        ("[::]:50051", False),
        ("192.0.2.7:50051", False),
        ("127.example.com:50051", False),
        ("localhost.example.com:50051", False),
    ],
)
def test_loopback_addresses_are_recognised(address: str, loopback: bool) -> None:
    assert load_settings(address=address).loopback is loopback


def test_every_setting_has_a_help_text() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith((".", "}.")), name


def test_settings_that_are_shown_hold_no_password() -> None:
    shown = load_settings(
        database_url="postgresql://service:hunter2@db.example/bots",
        cache_url="rediss://:hunter3@cache.example:6379/0",
        venue_urls={"oanda": "https://proxy:hunter4@proxy.example/oanda"},
    )
    for text in (repr(shown), str(shown), f"{shown}"):
        assert "hunter" not in text
        assert "db.example/bots" in text
    assert shown.database_url == "postgresql://service:hunter2@db.example/bots"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:57#Wc903z@10.1.2.3:6379/0",
        "redis://:57/Wc903z@10.1.2.3:6379/0",
        "redis://:57?Wc903z@10.1.2.3:6379/0",
        "redis://:57@Wc903z@10.1.2.3:6379/0",
        "redis://:57[Wc903z@10.1.2.3:6379/0",
        "rediss://user:57%Wc903z@10.1.2.3:6379/0",
        "redis://10.1.2.3:6379/0#Wc903z",
        "postgresql://user:57#Wc903z@10.1.2.3/bots",
        "postgresql://user:57/Wc903z@10.1.2.3/bots",
        "postgresql+psycopg://user:57@Wc903z@10.1.2.3:5432/bots",
    ],
)
def test_a_password_that_would_be_read_as_something_else_is_refused_and_not_repeated(url: str) -> None:
    name = "cache_url" if url.startswith("redis") else "database_url"
    with pytest.raises(ValidationError) as refused:
        load_settings(**{name: url})
    assert "percent-encode the password" in str(refused.value)
    assert "Wc903z" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "url", "told"),
    [
        ("cache_url", "redis://10.1.2.3:99999/0", "a port"),
        ("cache_url", "redis://10.1.2.3:port/0", "a port"),
        ("cache_url", "redis://10.1.2.3/zero", "the number of a database"),
        ("cache_url", "redis://10.1.2.3/0?sockettimeout=1", "only options"),
        ("cache_url", "redis://10.1.2.3/0?decode_responses=true", "only options"),
        ("cache_url", "redis://10.1.2.3/0?socket_timeout=soon", "only options"),
        ("cache_url", "rediss://10.1.2.3/0?ssl_cert_reqs=some", "only options"),
        ("cache_url", "redis://[::1", "as redis-py reads it"),
        ("cache_url", "unix://", "as redis-py reads it"),
        ("database_url", "postgresql://u:hunter2@10.1.2.3/bots?pgbouncer=true&schema=public", "'pgbouncer', 'schema'"),
        ("database_url", "postgresql://u:hunter2@10.1.2.3/bots?sslmod=hunter2", "'sslmod'"),
        ("database_url", "sqlite:////tmp/x.db?tiemout=5", "'tiemout'"),
        ("database_url", "postgresql://u:hunter2@10.1.2.3:port/bots", "postgresql://user:password@host/database"),
    ],
)
def test_a_url_that_its_library_cannot_read_is_a_sentence_at_the_start(name: str, url: str, told: str) -> None:
    settings = load_settings(**{name: url})
    with pytest.raises(UnsafeSettings) as unsafe:
        check_settings(settings)
    assert str(unsafe.value).startswith(f"{name}: ")
    assert told in str(unsafe.value)
    assert "hunter2" not in str(unsafe.value)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("cache_url", "redis://:57%23Wc903z@10.1.2.3:6379/0"),
        ("cache_url", "rediss://user:word@10.1.2.3/1?ssl_cert_reqs=required&socket_timeout=1"),
        ("cache_url", "unix:///run/redis.sock?db=1"),
        ("cache_url", "redis://[::1]:6379/0"),
        ("cache_url", "redis://localhost"),
        ("database_url", "postgresql://u:%23%2F%40@10.1.2.3/bots?sslmode=require&application_name=x"),
        ("database_url", "sqlite:////tmp/a#b.db?timeout=5"),
    ],
)
def test_a_url_that_says_what_it_means_is_taken(name: str, url: str) -> None:
    check_settings(load_settings(**{name: url}))


@pytest.mark.parametrize("command", [("serve",), ("doctor",), ("credentials", "list")])
def test_every_command_tells_a_wrong_url_in_a_sentence(command: tuple[str, ...], tmp_path: Path) -> None:
    url = "postgresql://u:hunter2@10.1.2.3/bots?pgbouncer=true"
    done = run_command(command, {"HOME": str(tmp_path), "EXCHANGE_SERVICE_DATABASE_URL": url})
    assert done.returncode == 2
    assert "'pgbouncer'" in done.stderr
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


def test_settings_of_plugins_are_a_table_of_the_file_and_json_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.toml").write_text(
        '[plugin_settings.acme]\nclient_id = "abc"\nclient_secret = {env = "ACME_CLIENT_SECRET"}\n'
    )
    wanted = {"acme": {"client_id": "abc", "client_secret": {"env": "ACME_CLIENT_SECRET"}}}
    with monkeypatch.context() as context:
        context.setenv("EXCHANGE_SERVICE_CONFIG", str(tmp_path / "settings.toml"))
        assert load_settings().plugin_settings == wanted
    monkeypatch.setenv("EXCHANGE_SERVICE_PLUGIN_SETTINGS", json.dumps(wanted))
    assert load_settings().plugin_settings == wanted
