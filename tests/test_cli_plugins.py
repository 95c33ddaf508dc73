"""What `plugins` and `doctor` say of plugins that are refused, take an id over, or were changed under the service."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from exchange_service.cli import app
from exchange_service.cli.doctor import Finding, Severity, examine
from exchange_service.plugin_host.discovery import open_registry
from tests.harness import serving, settings_for
from tests.test_plugin_host import install

THIRD_PARTY = """
from exchange_service.plugin_api import *

@hookimpl
def exchange_manifest():
    return Manifest(1, (ExchangeMetadata(
        "{id}", "{name}", "{asset_class}", "Crypto Spot", "24/7 Trading",
        (Environment("production", {{"api": "https://acme.example"}}),),
    ),))

@hookimpl
async def fetch_balance(call):
    return Balance(())
"""


class Site:
    """A folder with third-party plugins, each with one listing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, plugin: str, **values: str) -> None:
        plain = {"id": plugin, "name": plugin.title(), "asset_class": "Crypto"}
        install(self.folder, plugin, THIRD_PARTY.format(**(plain | values)))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("EXCHANGE_SERVICE_DATABASE_URL", f"sqlite:///{tmp_path / 'service.db'}")
    # Nothing listens there.
    monkeypatch.setenv("EXCHANGE_SERVICE_ADDRESS", "127.0.0.1:1")
    return Site(folder)


def plugins(*arguments: str) -> tuple[int, str]:
    """The exit code and the output of the command."""
    done = CliRunner().invoke(app, ["plugins", *arguments])
    return done.exit_code, done.output if not arguments else done.stdout


def problems_of(output: str) -> list[dict[str, Any]]:
    problems: list[dict[str, Any]] = json.loads(output)["problems"]
    return problems


async def findings(folder: Path, **changes: Any) -> list[Finding]:
    settings = settings_for(folder, **({"address": "127.0.0.1:1"} | changes))
    return [item for item in await examine(settings) if item.severity is not Severity.WELL]


class TestRefused:
    def test_plugins_exits_with_the_code_for_a_person_if_one_is_refused(self, site: Site) -> None:
        assert plugins("-o", "json")[0] == 0
        site.add("acme", asset_class="Shares")
        code, output = plugins()
        assert code == 4
        assert "asset_class that is not one of" in output
        code, output = plugins("-o", "json")
        assert code == 4
        (problem,) = problems_of(output)
        assert (problem["name"], problem["notice"]) == ("acme", False)

    async def test_doctor_reports_it_as_an_error(self, site: Site, tmp_path: Path) -> None:
        site.add("acme", asset_class="Shares")
        (error,) = [item for item in await findings(tmp_path) if item.severity is Severity.ERROR]
        assert error.subject == "plugin acme"

    async def test_what_a_setting_names_of_it_is_a_warning_of_doctor(self, site: Site, tmp_path: Path) -> None:
        site.add("acme", asset_class="Shares")
        found = await findings(tmp_path, venue_urls={"acme": "http://127.0.0.1:1"}, polled_exchanges=["acme"])
        said = [item.text for item in found if item.severity is Severity.WARNING and item.subject == "settings"]
        for setting in ("venue_urls", "polled_exchanges"):
            assert any(text.startswith(f"{setting} names 'acme', which no plugin serves now.") for text in said)
        assert [item.subject for item in found if item.severity is Severity.ERROR] == ["plugin acme"]


@pytest.mark.threat("T35")
class TestTakeover:
    async def test_it_is_a_warning_of_doctor(self, site: Site, tmp_path: Path) -> None:
        site.add("acme", id="kraken", name="Kraken")
        found = [item for item in await findings(tmp_path) if item.subject == "plugin acme"]
        assert [item.severity for item in found] == [Severity.WARNING]

    def test_it_is_a_notice_of_plugins_whose_advice_is_a_value_of_the_setting(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.add("acme", id="kraken", name="Kraken")
        code, output = plugins("-o", "json")
        (notice,) = problems_of(output)
        assert (code, notice["notice"]) == (0, True)
        monkeypatch.setenv("EXCHANGE_SERVICE_EXCHANGE_PLUGINS", setting_in(notice["reason"]))
        code, output = plugins("-o", "json")
        assert code == 0
        assert "exchange-service-ccxt-generic serves it, as exchange_plugins says" in problems_of(output)[0]["reason"]


def setting_in(sentence: str) -> str:
    return sentence.partition("exchange_plugins=")[2].removesuffix(".")


def test_the_advice_for_an_id_that_two_plugins_claim_is_a_value_of_the_setting(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("acme", id="both", name="Both")
    site.add("zeta", id="both", name="Both")
    monkeypatch.setenv("EXCHANGE_SERVICE_EXCHANGE_PLUGINS", '{"kraken": "ccxt_generic"}')
    code, output = plugins("-o", "json")
    assert code == 4
    setting = setting_in(problems_of(output)[0]["reason"])
    # The choices that were made before stay.
    assert json.loads(setting) == {"kraken": "ccxt_generic", "both": "acme-zeta"}
    monkeypatch.setenv("EXCHANGE_SERVICE_EXCHANGE_PLUGINS", setting)
    code, output = plugins("-o", "json")
    assert code == 0
    assert {row["name"]: row["exchanges"] for row in json.loads(output)["plugins"]}["zeta"] == 1


async def test_doctor_leaves_no_file_behind_where_it_looks(tmp_path: Path) -> None:
    settings = settings_for(
        tmp_path, address="127.0.0.1:1", database_url=f"sqlite:///{tmp_path / 'no' / 'credentials.db'}"
    )
    found = {item.subject: item for item in await examine(settings)}
    assert found["database"].severity is Severity.WELL
    assert "does not exist yet" in found["database"].text
    assert os.listdir(tmp_path) == []


@pytest.mark.threat("T37")
async def test_doctor_sees_that_the_running_service_has_loaded_another_version_than_is_installed(
    site: Site, tmp_path: Path
) -> None:
    site.add("acme")
    registry = open_registry(settings_for(tmp_path))
    async with serving(tmp_path, registry=registry) as running:
        address = running.service.address
        assert [item for item in await findings(tmp_path, address=address) if item.severity is Severity.ERROR] == []
        (metadata,) = site.folder.glob("acme_acme-*.dist-info/METADATA")
        metadata.write_text("Metadata-Version: 2.1\nName: acme-acme\nVersion: 2.0\n")
        found = [item for item in await findings(tmp_path, address=address) if item.severity is Severity.ERROR]
    (error,) = found
    assert error.subject == "plugin acme"
    assert error.text == "the running service has loaded version 1.2, and 2.0 is installed: restart the service."


def test_plugins_says_how_many_of_its_listings_a_plugin_follows_the_pushes_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXCHANGE_SERVICE_ADDRESS", "127.0.0.1:1")
    rows = {row["name"]: row for row in json.loads(plugins("-o", "json")[1])["plugins"]}
    # Tradier Options shows Tradier's balances in another order.
    assert (rows["tradier"]["with_balances"], rows["tradier"]["with_pushes"]) == (2, 1)
    assert rows["tastytrade"]["with_pushes"] == 1
    assert rows["ccxt_generic"]["with_pushes"] < rows["ccxt_generic"]["with_balances"]
