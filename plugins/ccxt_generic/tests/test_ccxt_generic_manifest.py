"""The listings: complete, of the installed CCXT, and there without importing it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic import catalogue, retired, snapshot
from exchange_service_ccxt_generic.describe import environment_urls

from exchange_service.plugin_api import ExchangeMetadata
from exchange_service.testing.witnesses import parse_witness

Listings = Mapping[str, ExchangeMetadata]


def run_python(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-W", "ignore", *arguments], capture_output=True, check=True, timeout=60)
    return done.stdout.decode()


def test_the_manifest_needs_no_ccxt() -> None:
    code = "import sys, exchange_service_ccxt_generic as p; p.exchange_manifest(); print('ccxt' in sys.modules)"
    assert run_python("-c", code).strip() == "False"


def test_the_simulator_needs_no_ccxt_and_nothing_of_the_client() -> None:
    code = "import sys, exchange_service_ccxt_generic.simulator as s; print('ccxt' in sys.modules)"
    assert run_python("-c", code).strip() == "False"
    folder = Path(str(catalogue.__file__)).with_name("simulator")
    sources = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]
    assert len(sources) == 4
    for source in sources:
        assert not source.replace("exchange_service_ccxt_generic.simulator", "").count("exchange_service_ccxt_generic")


def test_the_shipped_snapshot_is_of_the_installed_ccxt() -> None:
    built = run_python("-m", "exchange_service_ccxt_generic.snapshot")
    assert catalogue.Snapshot.from_json(built) == catalogue.shipped(), "run the module with --write"


def test_each_retired_exchange_has_a_day_a_reason_and_a_witness_and_is_not_listed(listings: Listings) -> None:
    entries = retired.shipped_retired()
    assert {"bitmart", "bitmex", "coinex", "exmo", "kucoineu"} <= {entry.id for entry in entries}
    assert retired.read_retired(retired.write_retired(entries)) == entries
    assert list(entries) == sorted(entries, key=lambda entry: entry.id)
    assert not listings.keys() & {entry.id for entry in entries}
    by_id = {entry.id: entry for entry in plugin.exchange_manifest().retired}
    assert by_id["bitmex"].since == date(2026, 9, 24)
    assert by_id["bitmex"].reason == (
        "BitMEX closed its exchange on 2026-09-23. CCXT 4.5.84 does not have it any more; 4.5.83 had."
    )
    for entry in entries:
        assert entry.since is not None
        assert parse_witness(entry.witness).kind in ("report", "vendor", "unproven")
        # What is told as a fact has a source, unless it is marked as a guess.
        assert entry.what or entry.witness.startswith("unproven")


def test_a_new_snapshot_retires_what_it_lacks_with_the_day_and_serves_again_what_is_back(tmp_path: Path) -> None:
    shipped = catalogue.shipped()
    source = Path(str(catalogue.__file__)).parent
    for name in ("snapshot.json", "retired.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    without = [entry for entry in shipped.exchanges if entry["id"] != "zaif"]
    back = {**without[0], "id": "bitmex"}
    snapshot.write(tmp_path, catalogue.Snapshot("9.0.0", (*without, back)), date(2027, 1, 2))
    entries = {entry.id: entry for entry in retired.read_retired((tmp_path / "retired.json").read_bytes())}
    assert "bitmex" not in entries
    assert "bitmart" in entries
    assert entries["zaif"] == retired.Retired("zaif", "Zaif", "2027-01-02", shipped.ccxt_version, "9.0.0")
    assert catalogue.Snapshot.from_json((tmp_path / "snapshot.json").read_bytes()).ccxt_version == "9.0.0"


@pytest.mark.parametrize(("version", "gone"), [("9.0.0", True), ("1.0.0", False), ("4.5.90rc1", False)])
def test_what_a_newer_ccxt_lacks_is_retired_at_run_time_and_what_an_older_one_lacks_is_not(
    version: str, gone: bool
) -> None:
    entries = tuple(entry for entry in catalogue.shipped().exchanges if entry["id"] != "zaif")
    manifest = catalogue._manifest_of(catalogue.Snapshot(version, entries).to_json().encode())
    by_id = {entry.id: entry for entry in manifest.retired}
    assert "bitmex" in by_id
    assert ("zaif" in by_id) == gone
    if gone:
        assert by_id["zaif"].since is None
        assert "9.0.0" in by_id["zaif"].reason


def test_every_exchange_of_ccxt_is_listed_once(listings: Listings) -> None:
    code = "import ccxt; print(' '.join(i for i in ccxt.exchanges if not getattr(ccxt, i)().alias))"
    assert sorted(run_python("-c", code).split()) == sorted(listings)
    assert len(plugin.exchange_manifest().exchanges) == len(listings)


def test_listings_follow_the_rules_for_ccxt(listings: Listings) -> None:
    for listing in listings.values():
        assert listing.is_ccxt
        assert listing.asset_class == ("Multi-Asset" if listing.id == "alpaca" else "Crypto")
        assert listing.market_hours == "24/7 Trading"
        assert listing.icon == "i-simple-icons-bitcoin"
        assert listing.color_class == "bg-gray-500/20 text-gray-500"
        assert listing.asset_types
        assert listing.account_types
        assert listing.instructions.endswith(".")
        assert listing.logo.startswith("https://")
        assert listing.capabilities.balance == (not listing.unsupported_reason)
        assert listing.capabilities.sandbox == (listing.environment("sandbox") is not None)


def test_the_credential_fields_come_from_ccxts_required_credentials(listings: Listings) -> None:
    assert [field.name for field in listings["okx"].credential_fields] == ["api_key", "api_secret", "passphrase"]
    assert listings["okx"].requires_passphrase
    assert [field.name for field in listings["coinmate"].credential_fields] == ["api_key", "api_secret", "uid"]
    assert listings["coinmate"].requires_account_id
    assert listings["woofipro"].requires_account_id
    assert [field.name for field in listings["derive"].credential_fields] == ["wallet_address", "api_secret"]
    assert listings["binance"].asset_types == "Spot • Margin • Swap • Future • Option"
    assert listings["dydx"].capabilities.read_without_secret


def test_no_address_is_left_with_a_placeholder(listings: Listings) -> None:
    for listing in listings.values():
        for environment in listing.environments:
            assert environment.urls
            assert all(url.startswith(("https://", "wss://")) and "{" not in url for url in environment.urls.values())


def test_nested_addresses_get_dotted_names() -> None:
    urls = {"api": {"spot": {"public": "https://a.{hostname}/v1"}, "rest": "https://b"}, "hostnames": {"spot": "c.d"}}
    assert environment_urls(urls, "x.com") == {
        "spot.public": "https://a.x.com/v1",
        "rest": "https://b",
        "hostnames.spot": "https://c.d",
    }
    assert environment_urls({"api": "https://{hostname}"}, "x.com") == {"api": "https://x.com"}


async def test_with_the_same_ccxt_there_is_nothing_newer_and_the_listings_are_not_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert plugin.exchange_manifest().notes == ()
    monkeypatch.delattr(catalogue, "shipped")
    assert await plugin.refresh_manifest() is None


async def test_with_another_ccxt_the_shipped_listings_are_marked_and_then_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalogue, "installed_version", lambda: "9.9.9")
    manifest = plugin.exchange_manifest()
    assert manifest.exchanges
    assert "9.9.9" in manifest.notes[0]
    begin, begun_by = subprocess.Popen, list[threading.Thread]()

    def noted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        begun_by.append(threading.current_thread())
        return begin(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", noted)
    newer = await plugin.refresh_manifest()
    # Not by the event loop, which would stop meanwhile.
    assert begun_by
    assert threading.main_thread() not in begun_by
    assert newer is not None
    assert newer.notes == ()
    assert newer.exchanges == manifest.exchanges


async def test_a_renewal_that_takes_too_long_leaves_the_shipped_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "installed_version", lambda: "9.9.9")
    assert await catalogue.newer_manifest(timeout=0.05) is None


async def test_a_child_that_fails_leaves_the_shipped_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nonsense() -> bytes:
        await asyncio.sleep(0)
        return b"Traceback"

    monkeypatch.setattr(catalogue, "installed_version", lambda: "9.9.9")
    monkeypatch.setattr(catalogue, "_build_in_child", nonsense)
    assert await catalogue.newer_manifest() is None
