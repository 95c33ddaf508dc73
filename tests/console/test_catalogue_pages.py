"""The pages of exchanges and plugins, the sheet's catalogue, and texts of plugins that would do harm in a page."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
import pytest

from exchange_service.console import credential_form, exchange_cards, pages
from exchange_service.console.plugins_page import duration, plugin_rows, plugin_troubles
from exchange_service.identity import Scope
from exchange_service.operator.v1.plugin_service_pb2 import (
    PLUGIN_PROCESS_STATE_RUNNING,
    PLUGIN_PROCESS_STATE_WAITING,
    ListPluginsResponse,
    PluginProcess,
    PluginStatus,
)
from exchange_service.plugin_api import Capabilities as PluginCapabilities
from exchange_service.v1.exchange_pb2 import (
    AVAILABILITY_DEGRADED,
    Capabilities,
    CredentialField,
    Environment,
    Exchange,
    ExchangeStatus,
    Plugin,
)
from exchange_service.v1.exchange_service_pb2 import ListExchangesResponse, PluginProblem
from tests.authenticated_service import authenticated_service
from tests.console.browsing import Browser, Page
from tests.console.consoles import Elements, browsing, console_of
from tests.console.other_replies import browsing_listing, browsing_replies
from tests.harness import ScriptedPlugin, listing
from tests.identities import service_token

SCRIPT = "<script>alert(1)</script>"
LINK = "javascript:alert(1)"
# The templates without the cache around them.
MAKE_ENVIRONMENT = pages.environment.__wrapped__
FRAGMENT = {"hx-request": "true"}


def shown_ids(page: Page) -> list[str]:
    """The ids of the exchanges that a page shows, in its order."""
    items = [item for item in Elements(page.text).named("li") if "data-search" in item]
    return [str(item["data-search"]).split("\n")[1] for item in items if "hidden" not in item]


def venues() -> ScriptedPlugin:
    forex = listing("oanda", name="OANDA", asset_class="Forex", asset_types="Forex", market_hours="24/5 Trading")
    return ScriptedPlugin(
        listing("aster", name="Aster"), forex, listing("later", capabilities=PluginCapabilities(balance=False))
    )


class TestExchanges:
    async def test_every_exchange_is_there_with_what_can_be_read_of_it(self, tmp_path: Path) -> None:
        async with browsing(tmp_path, venues()) as (_, browser):
            page = await browser.get("/exchanges")
            assert shown_ids(page) == ["aster", "later", "oanda"]
            words = Elements(page.text).words
            assert "3 in all: 3 custom integrations and 0 by CCXT" in words
            assert "Balances of this exchange cannot be read yet." in words
            assert "Nothing is known to be wrong." in words

    async def test_without_javascript_search_and_filter_are_the_pages_address(self, tmp_path: Path) -> None:
        async with browsing(tmp_path, venues()) as (_, browser):
            page = await browser.get("/exchanges?q=oan&filter=forex&user=alice")
            assert shown_ids(page) == ["oanda"]
            assert "1 of 3 exchanges" in Elements(page.text).words
            (user,) = [item for item in Elements(page.text).named("input") if item.get("name") == "user"]
            assert user["value"] == "alice"
            nothing = await browser.get("/exchanges?q=zzz")
            assert shown_ids(nothing) == []
            (said,) = [item for item in Elements(nothing.text).named("div") if "data-nothing-of" in item]
            assert "hidden" not in said

    async def test_the_same_is_there_as_json(self, tmp_path: Path) -> None:
        async with browsing(tmp_path, venues()) as (_, browser):
            listed = json.loads((await browser.get("/exchanges.json?filter=forex")).text)
            assert [item["id"] for item in listed["exchanges"]] == ["oanda"]
            assert (listed["matching_count"], listed["stats"]["total"]) == (1, 3)

    @pytest.mark.parametrize("path", ["/exchanges", "/connect", "/connect/fakex"])
    async def test_a_venue_in_trouble_says_why_and_since_when(self, tmp_path: Path, path: str) -> None:
        status = ExchangeStatus(availability=AVAILABILITY_DEGRADED, reason="Half of the calls fail.")
        status.since_time.FromJsonString("2026-11-30T12:05:00Z")
        trouble = Exchange(
            id="fakex", name="Fakex", capabilities=Capabilities(balance=True), plugin=Plugin(name="fakex")
        )
        trouble.status.CopyFrom(status)
        async with browsing_listing(tmp_path, trouble) as browser:
            words = Elements((await browser.get(path)).text).words
            assert "Degraded since 30 Nov, 12:05 UTC" in words
            assert "Half of the calls fail." in words


class TestCatalogue:
    async def test_it_is_a_page_of_its_own_and_a_fragment_for_the_dialog(self, tmp_path: Path) -> None:
        async with browsing(tmp_path, venues()) as (_, browser):
            page, fragment = await browser.get("/connect"), await browser.get("/connect", FRAGMENT)
            assert "<html" in page.text
            assert "<html" not in fragment.text
            assert shown_ids(page) == shown_ids(fragment) == ["aster", "later", "oanda"]
            assert [Elements(text).named("h1") != [] for text in (page.text, fragment.text)] == [True, False]

    async def test_where_accounts_are_not_managed_it_says_so_and_offers_none(self, tmp_path: Path) -> None:
        async with browsing(tmp_path, venues()) as (_, browser):
            page = await browser.get("/connect")
            assert "Accounts cannot be added here" in page.text
            assert not [
                item for item in Elements(page.text).named("a") if str(item.get("href")).startswith("/connect/")
            ]
            form = await browser.get("/connect/oanda")
            assert form.status == 403
            assert "Accounts cannot be added here" in form.text


class TestPlugins:
    async def test_operators_see_plugins_and_processes(self, tmp_path: Path) -> None:
        async with browsing(tmp_path, venues()) as (_, browser):
            page = await browser.get("/plugins")
            words = Elements(page.text).words
            assert page.status == 200
            assert "fakex 0.1.0" in words
            assert "In the service's own process" in words
            assert json.loads((await browser.get("/plugins.json")).text)["plugins"][0]["plugin"]["name"] == "fakex"

    async def test_other_callers_get_a_sentence(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            token, _ = await service_token(running, Scope(users=frozenset({"alice"})))
            browser = Browser(console_of(running, authenticated=True))
            await browser.post("/login", {"token": token})
            page = await browser.get("/plugins")
            assert page.status == 403
            assert "Only operators see the plugins" in page.text
            assert json.loads((await browser.get("/plugins.json")).text)["error"]["reason"] == "USER_FORBIDDEN"

    def test_a_process_says_how_it_is_and_why_the_last_one_ended(self) -> None:
        listed = ListPluginsResponse(
            plugins=[
                PluginStatus(
                    plugin=Plugin(name="ccxt_generic"),
                    own_process=True,
                    sandbox="none: this system has no Landlock",
                    processes=[
                        PluginProcess(
                            state=PLUGIN_PROCESS_STATE_RUNNING, process_id=7, memory_bytes=3 << 20, restart_count=2
                        ),
                        PluginProcess(state=PLUGIN_PROCESS_STATE_WAITING, last_end="It used too much memory."),
                    ],
                )
            ],
            problems=[PluginProblem(plugin=Plugin(name="broken"), reason="Importing it failed.")],
        )
        ((row,), (trouble,)) = plugin_rows(listed), plugin_troubles(listed)
        assert (row.sandbox.word, row.sandbox.tone) == ("Not sandboxed", "warning")
        running, waiting = row.processes
        assert (running.state, running.memory, running.restarts) == ("Running", "3 MiB", 2)
        assert (waiting.tone, waiting.process_id, waiting.last_end) == ("bad", "", "It used too much memory.")
        assert (trouble.plugin, trouble.sentence, trouble.notice) == ("broken", "Importing it failed.", False)

    async def test_what_is_wrong_with_plugins_stands_above_them_and_above_the_exchanges(self, tmp_path: Path) -> None:
        broken, notice = Plugin(name="broken"), Plugin(name="other")
        problems = [
            PluginProblem(plugin=broken, reason="Importing it failed."),
            PluginProblem(plugin=notice, reason="It serves binance in place of CCXT.", notice=True),
        ]
        replies = {
            "ListPlugins": ListPluginsResponse(problems=problems),
            "ListExchanges": ListExchangesResponse(problems=problems),
        }
        async with browsing_replies(tmp_path, **replies) as browser:
            plugins, exchanges = [
                Elements((await browser.get(f"/{page}")).text).words for page in ("plugins", "exchanges")
            ]
            assert "broken Importing it failed." in plugins
            assert "other It serves binance in place of CCXT." in plugins
            assert "Importing it failed." in exchanges
            assert "in place of CCXT" not in exchanges

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3_723, "1 h 2 min"), (90_000, "1 d 1 h"), (86_460, "1 d")],
    )
    def test_a_time_has_its_two_greatest_units(self, seconds: int, text: str) -> None:
        assert duration(seconds) == text


def hostile() -> Exchange:
    """A listing that no manifest may have."""
    texts = dict.fromkeys(("name", "asset_class", "asset_types", "market_hours", "icon", "ip_whitelist"), SCRIPT)
    links = dict.fromkeys(("credential_url", "documentation_url", "logo"), LINK)
    return Exchange(
        **{"id": "fakex", "color_class": f'">{SCRIPT}', **texts, **links},
        instructions=f'{SCRIPT} See https://evil.example/"onclick="alert(1) now.',
        credential_fields=[CredentialField(name=f'">{SCRIPT}', label=SCRIPT, description=SCRIPT, secret=True)],
        environments=[Environment(name=SCRIPT, aliases=[SCRIPT]), Environment(name="production")],
        capabilities=Capabilities(balance=True),
        plugin=Plugin(name=SCRIPT),
        status=ExchangeStatus(reason=SCRIPT),
    )


def unescaped() -> jinja2.Environment:
    """The templates as they would be without escaping."""
    made = MAKE_ENVIRONMENT()
    made.autoescape = False
    return made


class TestHostileTexts:
    @pytest.mark.threat("T89", attack=True)
    @pytest.mark.parametrize("path", ["/exchanges", "/connect", "/connect/fakex"])
    async def test_a_listings_text_is_only_text(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        async with browsing_listing(tmp_path, hostile()) as browser:
            with monkeypatch.context() as off:
                off.setattr(pages, "environment", unescaped)
                assert SCRIPT in (await browser.get(path)).text
            page = await browser.get(path)
            assert SCRIPT not in page.text
            assert SCRIPT in Elements(page.text).text
            assert all("onclick" not in attributes for _, attributes in Elements(page.text).elements)

    @pytest.mark.threat("T89", attack=True)
    @pytest.mark.parametrize("path", ["/exchanges", "/connect/fakex"])
    async def test_a_listings_link_is_followed_only_to_https(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
    ) -> None:
        async with browsing_listing(tmp_path, hostile()) as browser:
            with monkeypatch.context() as off:
                for module in (exchange_cards, credential_form):
                    off.setattr(module, "safe_link", lambda url: url)
                assert LINK in [item.get("href") for item in Elements((await browser.get(path)).text).named("a")]
            links = Elements((await browser.get(path)).text).named("a")
            assert all(str(item["href"]).startswith(("/", "#", "https://")) for item in links)
            outward = [item for item in links if str(item["href"]).startswith("https://")]
            assert all((item["target"], item["rel"]) == ("_blank", "noopener noreferrer") for item in outward)

    async def test_a_logo_is_never_asked_of_another_host(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(listing(logo="https://elsewhere.example/logo.png"))
        async with browsing(tmp_path, plugin) as (_, browser):
            for path in ("/exchanges", "/connect"):
                images = Elements((await browser.get(path)).text).named("img")
                assert all(str(item["src"]).startswith("/") for item in images)
            logo = await browser.get("/logos/fakex")
            assert (logo.headers["content-type"], logo.headers["content-security-policy"]) == (
                "image/svg+xml",
                "default-src 'none'; style-src 'unsafe-inline'; sandbox",
            )
