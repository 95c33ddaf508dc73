"""The listings: complete, of the installed CCXT, and there without importing it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic import catalogue
from exchange_service_ccxt_generic.describe import environment_urls

from exchange_service.plugin_api import ExchangeMetadata

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
