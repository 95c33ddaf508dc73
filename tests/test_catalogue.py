"""ListExchanges with the installed plugins: the owner's values, order, counts, filters, pages and the etag."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from exchange_service.catalogue import Catalogue, Query
from exchange_service.errors import FieldInvalid
from exchange_service.model import ASSET_CLASSES
from exchange_service.plugin_api import (
    Capabilities,
    Changed,
    CredentialField,
    Environment,
    Manifest,
    VenueCall,
    hookimpl,
)
from exchange_service.v1 import exchange_pb2
from exchange_service.v1.exchange_service_pb2 import ListExchangesResponse
from exchange_service.venues.registry import PluginProblem, Registry, load_registry
from tests.harness import Running, ScriptedPlugin, info, listing, loaded, registry_of, serving

# The owner's values: id | name | asset class | asset types | market hours | icon | logo | colour | passphrase | account
OWNERS = """
alpaca | Alpaca | Stocks | US Stocks • Options • Crypto | Market Hours | i-heroicons-chart-bar | | bg-yellow-500/20 text-yellow-500 | no | no
aster | Aster | Crypto | Crypto Futures | 24/7 Trading | i-simple-icons-bitcoin | /aster_logo.png | bg-orange-500/20 text-orange-500 | no | no
oanda | OANDA | Forex | Forex | 24/5 Trading | i-heroicons-currency-dollar | /oanda_logo.png | bg-green-500/20 text-green-500 | no | yes
tradier | Tradier | Stocks | Stocks • Options | Market Hours | i-heroicons-chart-bar | /tradier_logo.png | bg-blue-500/20 text-blue-500 | no | yes
tradier_options | Tradier Options | Options | Options | Market Hours | i-heroicons-chart-bar | /tradier_logo.png | bg-blue-500/20 text-blue-500 | no | yes
lighter | Lighter DEX | Crypto | Crypto Perps (zkSync) | 24/7 Trading | i-simple-icons-bitcoin | /lighter_logo.png | bg-purple-500/20 text-purple-500 | no | no
hyperliquid | Hyperliquid | Crypto | Crypto Perps | 24/7 Trading | i-simple-icons-bitcoin | /hyperliquid_logo.png | bg-cyan-500/20 text-cyan-500 | no | no
krakenfutures | Kraken Futures | Crypto | Crypto Perps • Crypto Futures | 24/7 Trading | i-simple-icons-bitcoin | https://user-images.githubusercontent.com/24300605/81436764-b22fd580-9172-11ea-9703-742783e6376d.jpg | bg-violet-500/20 text-violet-500 | no | no
tastytrade | Tasty Trade | Futures | Futures • Options | Extended Hours | i-heroicons-chart-line | /tastytrade_logo.jpg | bg-indigo-500/20 text-indigo-500 | yes | yes
"""  # noqa: E501
COLUMNS = (
    "id",
    "name",
    "asset_class",
    "asset_types",
    "market_hours",
    "icon",
    "logo",
    "color_class",
    "requires_passphrase",
    "requires_account_id",
)
OWNED = {
    cells[0]: dict(zip(COLUMNS, (cell if cell not in ("yes", "no") else cell == "yes" for cell in cells), strict=True))
    for cells in ([cell.strip() for cell in line.split("|")] for line in OWNERS.strip().split("\n"))
}


async def answer(catalogue: Catalogue, etag: str = "", **query: Any) -> ListExchangesResponse:
    return ListExchangesResponse.FromString(catalogue.answer(Query(**query), etag))


@pytest.fixture
def catalogue() -> Catalogue:
    return Catalogue(load_registry())


class TestInstalled:
    @pytest.fixture
    async def everything(self, catalogue: Catalogue) -> ListExchangesResponse:
        return await answer(catalogue)

    def test_more_than_a_hundred_are_listed_and_exactly_nine_are_custom(
        self, everything: ListExchangesResponse
    ) -> None:
        custom = {entry.id for entry in everything.exchanges if entry.is_custom}
        assert custom == set(OWNED)
        assert sum(entry.is_ccxt for entry in everything.exchanges) >= 99
        assert all(entry.is_ccxt != entry.is_custom for entry in everything.exchanges)

    @pytest.mark.parametrize("exchange_id", OWNED)
    def test_the_owners_values_stay_as_they_are(self, everything: ListExchangesResponse, exchange_id: str) -> None:
        (entry,) = [entry for entry in everything.exchanges if entry.id == exchange_id]
        assert {name: getattr(entry, name) for name in COLUMNS} == OWNED[exchange_id]
        assert (entry.is_ccxt, entry.is_custom) == (False, True)
        assert 1 <= entry.instructions.count(". ") + 1 <= 3
        assert entry.instructions.endswith(".")

    def test_no_id_is_listed_twice_and_the_counts_are_of_what_is_listed(
        self, everything: ListExchangesResponse
    ) -> None:
        ids = [entry.id for entry in everything.exchanges]
        assert len(set(ids)) == len(ids) == everything.stats.total == everything.matching_count
        assert everything.stats.total == everything.stats.custom + everything.stats.ccxt
        assert everything.stats.custom == len(OWNED)
        assert everything.next_page_token == ""
        assert list(everything.problems) == []

    @pytest.mark.parametrize("exchange_id", ["alpaca", "hyperliquid", "aster", "krakenfutures", "lighter"])
    def test_an_exchange_that_ccxt_has_too_is_served_by_its_own_plugin(
        self, everything: ListExchangesResponse, exchange_id: str
    ) -> None:
        generic = next(plugin for plugin in load_registry().plugins if plugin.info.name == "ccxt_generic")
        assert exchange_id in {metadata.id for metadata in generic.manifest.exchanges}
        (entry,) = [entry for entry in everything.exchanges if entry.id == exchange_id]
        assert entry.plugin.distribution == f"exchange-service-{exchange_id}"

    def test_they_are_sorted_by_name_ignoring_case_and_then_by_id(self, everything: ListExchangesResponse) -> None:
        keys = [(entry.name.lower(), entry.id) for entry in everything.exchanges]
        assert keys == sorted(keys)

    def test_each_listing_has_the_fields_that_a_form_needs(self, everything: ListExchangesResponse) -> None:
        for entry in everything.exchanges:
            assert entry.name, entry.id
            assert entry.asset_class in ASSET_CLASSES, entry.id
            assert entry.market_hours, entry.id
            assert entry.icon, entry.id
            assert entry.instructions.endswith("."), entry.id
            assert entry.environments[0].name == "production", entry.id
            assert entry.plugin.version, entry.id
            names = [field.name for field in entry.credential_fields]
            assert len(set(names)) == len(names), entry.id
            available = entry.status.availability == exchange_pb2.AVAILABILITY_AVAILABLE
            assert available == entry.capabilities.balance == (entry.status.reason == ""), entry.id

    def test_ccxt_entries_have_the_owners_common_values(self, everything: ListExchangesResponse) -> None:
        for entry in everything.exchanges:
            if entry.is_ccxt:
                assert entry.asset_class == "Crypto"
                assert entry.market_hours == "24/7 Trading"
                assert entry.icon == "i-simple-icons-bitcoin"
                assert entry.color_class == "bg-gray-500/20 text-gray-500"

    def test_a_wallet_that_is_read_without_a_secret_is_marked(self, everything: ListExchangesResponse) -> None:
        (entry,) = [entry for entry in everything.exchanges if entry.id == "hyperliquid"]
        assert entry.capabilities.read_without_secret
        assert not any(field.secret for field in entry.credential_fields)


class PushingPlugin(ScriptedPlugin):
    """Has the hook that a listing with `push` needs."""

    @hookimpl
    async def watch_balance(self, call: VenueCall) -> AsyncIterator[Changed]:
        yield Changed()


class TestEntries:
    async def test_every_field_of_a_listing_arrives(self) -> None:
        metadata = listing(
            "fakex",
            name="Fakex",
            icon="i",
            logo="/l.png",
            color_class="c",
            requires_passphrase=True,
            requires_account_id=True,
            instructions="Do it.",
            ip_whitelist="None.",
            account_types=("spot", "margin"),
            documentation_url="https://docs.example",
            credential_url="https://keys.example",
            countries=("DE", "US"),
            unsupported_reason="Not yet.",
            capabilities=Capabilities(False, True, True, True, True),
            credential_fields=(CredentialField("api_key", "Token", False, False, "A word."),),
            environments=(
                Environment("production", {"api": "https://fakex.example"}, ("live",)),
                Environment("sandbox", {"api": "https://test.fakex.example"}),
            ),
        )
        options = listing("options", credential_of="fakex")
        reply = await answer(Catalogue(registry_of(PushingPlugin(metadata, options))))
        first, second = reply.exchanges
        assert second.credential_of == "fakex"
        for name in ("icon", "logo", "color_class", "instructions", "ip_whitelist", "requires_passphrase"):
            assert getattr(first, name) == getattr(metadata, name)
        assert first.requires_account_id
        assert (first.documentation_url, first.credential_url) == ("https://docs.example", "https://keys.example")
        assert (list(first.countries), list(first.account_types)) == (["DE", "US"], ["spot", "margin"])
        (field,) = first.credential_fields
        assert (field.name, field.label, field.required, field.secret) == ("api_key", "Token", False, False)
        assert field.description == "A word."
        able = first.capabilities
        assert (able.balance, able.push, able.sandbox, able.several_accounts) == (False, True, True, True)
        assert able.read_without_secret
        assert [(world.name, list(world.aliases)) for world in first.environments] == [
            ("production", ["live"]),
            ("sandbox", []),
        ]
        assert (first.plugin.name, first.plugin.version, first.plugin.distribution) == (
            "fakex",
            "0.1.0",
            "exchange-service-fakex",
        )
        assert first.status.availability == exchange_pb2.AVAILABILITY_UNAVAILABLE
        assert first.status.reason == "Not yet."

    async def test_a_plugin_that_is_missing_is_named_with_the_reason(self) -> None:
        problem = PluginProblem(info("broken"), "Importing it failed.")
        registry = Registry([loaded(ScriptedPlugin())], [problem])
        reply = await answer(Catalogue(registry))
        assert [entry.id for entry in reply.exchanges] == ["fakex"]
        (listed,) = reply.problems
        assert (listed.plugin.distribution, listed.reason) == ("exchange-service-broken", "Importing it failed.")


class TestFilters:
    async def ids(self, catalogue: Catalogue, **query: Any) -> list[str]:
        return [entry.id for entry in (await answer(catalogue, **query)).exchanges]

    @pytest.mark.parametrize("word", ["forex", "Forex", "FOREX"])
    async def test_an_asset_class_ignores_case(self, catalogue: Catalogue, word: str) -> None:
        assert await self.ids(catalogue, asset_class=word) == ["oanda"]

    async def test_a_part_of_an_asset_class_matches_nothing(self, catalogue: Catalogue) -> None:
        assert await self.ids(catalogue, asset_class="fore") == []

    async def test_a_source_selects_its_own_entries(self, catalogue: Catalogue) -> None:
        assert set(await self.ids(catalogue, source="custom")) == set(OWNED)
        ccxt = await answer(catalogue, source="ccxt")
        assert all(entry.is_ccxt for entry in ccxt.exchanges)
        assert ccxt.matching_count == ccxt.stats.ccxt == len(ccxt.exchanges)

    @pytest.mark.parametrize(
        ("search", "matches"),
        [
            ("tasty t", {"tastytrade"}),
            ("TASTY", {"tastytrade"}),
            ("tradier_o", {"tradier_options"}),
            ("zksync", {"lighter"}),
            ("nothing like this", set()),
        ],
    )
    async def test_a_search_looks_into_name_id_and_asset_types(
        self, catalogue: Catalogue, search: str, matches: set[str]
    ) -> None:
        assert set(await self.ids(catalogue, search=search)) == matches

    async def test_filters_are_combined_with_and(self, catalogue: Catalogue) -> None:
        assert set(await self.ids(catalogue, search="options", source="custom", asset_class="stocks")) == {
            "alpaca",
            "tradier",
        }
        assert await self.ids(catalogue, search="oanda", source="ccxt") == []
        crypto = await self.ids(catalogue, asset_class="crypto", source="custom")
        assert set(crypto) == {"aster", "krakenfutures", "lighter", "hyperliquid"}

    async def test_counts_are_of_the_whole_catalogue_and_matches_of_the_filters(self, catalogue: Catalogue) -> None:
        reply = await answer(catalogue, asset_class="forex")
        assert reply.matching_count == 1
        assert reply.stats.custom == len(OWNED)
        assert reply.stats.total > 100


class TestPages:
    @pytest.mark.parametrize("size", [1, 7, 50, 107, 108, 500])
    async def test_all_pages_together_are_the_whole_catalogue(self, catalogue: Catalogue, size: int) -> None:
        whole = [entry.id for entry in (await answer(catalogue)).exchanges]
        paged, token = [], ""
        while True:
            reply = await answer(catalogue, page_size=size, page_token=token)
            assert len(reply.exchanges) <= size
            assert reply.matching_count == len(whole)
            paged += [entry.id for entry in reply.exchanges]
            token = reply.next_page_token
            if not token:
                break
            assert len(reply.exchanges) == size
        assert paged == whole

    async def test_a_token_belongs_to_its_filters(self, catalogue: Catalogue) -> None:
        token = (await answer(catalogue, page_size=2, source="custom")).next_page_token
        assert (await answer(catalogue, page_size=5, source="custom", page_token=token)).exchanges
        with pytest.raises(FieldInvalid, match="other filters") as refusal:
            await answer(catalogue, page_size=2, page_token=token)
        assert refusal.value.field == "page_token"

    @pytest.mark.parametrize(
        "token",
        [
            "nonsense",
            "====",
            "ä",
            base64.urlsafe_b64encode(b"[1]").decode(),
            base64.urlsafe_b64encode(b"7").decode(),
            base64.urlsafe_b64encode(b"null").decode(),
            base64.urlsafe_b64encode(b"\xff\xfe").decode(),
            base64.urlsafe_b64encode(json.dumps({"a": 1, "b": 2, "c": 3}).encode()).decode(),
            base64.urlsafe_b64encode(b"[" * 700).decode(),
        ],
    )
    async def test_an_invalid_token_is_refused(self, catalogue: Catalogue, token: str) -> None:
        with pytest.raises(FieldInvalid) as refusal:
            await answer(catalogue, page_token=token)
        assert refusal.value.field == "page_token"

    @pytest.mark.parametrize("size", [-1, 501, 2**31 - 1, -(2**31)])
    async def test_a_size_out_of_range_is_refused(self, catalogue: Catalogue, size: int) -> None:
        with pytest.raises(FieldInvalid) as refusal:
            await answer(catalogue, page_size=size)
        assert refusal.value.field == "page_size"

    async def test_a_listing_that_goes_between_two_pages_shifts_nothing(self) -> None:
        plugin = Changing("a", "b", "c", "d")
        registry = registry_of(plugin)
        catalogue = Catalogue(registry)
        first = await answer(catalogue, page_size=2)
        plugin.ids = ("a", "c", "d")
        await registry.refresh()
        second = await answer(catalogue, page_size=2, page_token=first.next_page_token)
        assert [entry.id for entry in second.exchanges] == ["c", "d"]


class Changing(ScriptedPlugin):
    """A plugin whose next manifest has the `ids` of that moment."""

    def __init__(self, *ids: str) -> None:
        super().__init__(*(listing(exchange_id) for exchange_id in ids))
        self.ids = ids

    @hookimpl
    async def refresh_manifest(self) -> Manifest:
        return Manifest(1, tuple(listing(exchange_id) for exchange_id in self.ids))


class TestEtag:
    async def test_a_caller_with_the_current_etag_gets_only_the_etag(self, catalogue: Catalogue) -> None:
        full = await answer(catalogue)
        again = await answer(catalogue, full.etag)
        assert again == ListExchangesResponse(etag=full.etag, not_modified=True)
        assert again.ByteSize() < 100

    async def test_another_etag_gets_the_whole_reply(self, catalogue: Catalogue) -> None:
        reply = await answer(catalogue, "another")
        assert not reply.not_modified
        assert len(reply.exchanges) > 100

    async def test_each_query_has_its_own_etag(self, catalogue: Catalogue) -> None:
        etags = {
            (await answer(catalogue, **query)).etag
            for query in ({}, {"source": "custom"}, {"page_size": 10}, {"search": "oanda"})
        }
        assert len(etags) == 4

    async def test_two_services_with_the_same_plugins_agree(self, catalogue: Catalogue) -> None:
        other = Catalogue(load_registry())
        assert (await answer(catalogue)).etag == (await answer(other)).etag

    async def test_it_changes_at_once_with_the_set_of_listings(self) -> None:
        plugin = Changing("a")
        registry = registry_of(plugin)
        catalogue = Catalogue(registry)
        before = await answer(catalogue)
        plugin.ids = ("a", "b")
        await registry.refresh()
        after = await answer(catalogue, before.etag)
        assert not after.not_modified
        assert after.etag != before.etag
        assert [entry.id for entry in after.exchanges] == ["a", "b"]

    async def test_it_changes_with_a_plugins_version_and_with_a_problem(self) -> None:
        plugin = ScriptedPlugin()
        plain = Registry([loaded(plugin)])
        newer = loaded(plugin)
        newer.info = info(version="0.2.0")
        troubled = Registry([loaded(plugin)], [PluginProblem(info("broken"), "No.")])
        etags = {(await answer(Catalogue(registry))).etag for registry in (plain, Registry([newer]), troubled)}
        assert len(etags) == 3


class TestOverTheWire:
    @pytest.fixture
    async def running(self, tmp_path: Path) -> AsyncIterator[Running]:
        async with serving(tmp_path) as running:
            yield running

    async def test_the_client_gets_the_listings_of_the_catalogue(self, running: Running) -> None:
        reply = await running.client.list_exchanges(source="custom")
        assert {entry.id for entry in reply.exchanges} == set(OWNED)
        unchanged = await running.client.list_exchanges(source="custom", etag=reply.etag)
        assert unchanged.not_modified
        assert not unchanged.exchanges

    async def test_the_client_walks_all_pages(self, running: Running) -> None:
        entries = await running.client.all_exchanges()
        stats = (await running.client.list_exchanges(page_size=1)).stats
        assert len({entry.id for entry in entries}) == len(entries) == stats.total
