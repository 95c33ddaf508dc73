"""Cards of the catalogue: the search, the filters, logos, and what a listing's texts and links may do in a page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from exchange_service.console.exchange_cards import (
    FILTERS,
    Selection,
    availability_of,
    exchange_card,
    filter_choices,
    safe_link,
)
from exchange_service.console.logos import Logos
from exchange_service.v1.exchange_pb2 import (
    AVAILABILITY_AVAILABLE,
    AVAILABILITY_UNAVAILABLE,
    Capabilities,
    Exchange,
    ExchangeStatus,
)

LISTINGS = [
    Exchange(id="aster", name="Aster", asset_class="Crypto", asset_types="Crypto Futures", is_custom=True),
    Exchange(id="binance", name="Binance", asset_class="Crypto", asset_types="Spot • Future • Option", is_ccxt=True),
    Exchange(id="kraken", name="Kraken", asset_class="Crypto", asset_types="Spot • Margin", is_ccxt=True),
    Exchange(id="oanda", name="OANDA", asset_class="Forex", asset_types="Forex", is_custom=True),
    Exchange(id="tradier", name="Tradier", asset_class="Stocks", asset_types="Stocks • Options", is_custom=True),
]


def selected(search: str = "", chosen: str = "all") -> list[str]:
    selection = Selection.from_query({"q": search, "filter": chosen})
    return [exchange.id for exchange in LISTINGS if selection.selects(exchange)]


class TestSelection:
    @pytest.mark.parametrize(
        ("chosen", "ids"),
        [
            ("all", ["aster", "binance", "kraken", "oanda", "tradier"]),
            ("crypto", ["aster", "binance", "kraken"]),
            ("forex", ["oanda"]),
            ("stocks", ["tradier"]),
            # What can be traded there counts too, in the singular or the plural.
            ("options", ["binance", "tradier"]),
            ("futures", ["aster", "binance"]),
            ("custom", ["aster", "oanda", "tradier"]),
            ("ccxt", ["binance", "kraken"]),
            ("something else", ["aster", "binance", "kraken", "oanda", "tradier"]),
        ],
    )
    def test_a_filter_selects_a_class_a_traded_kind_or_a_source(self, chosen: str, ids: list[str]) -> None:
        assert selected(chosen=chosen) == ids

    @pytest.mark.parametrize(
        ("search", "ids"),
        [
            ("KRA", ["kraken"]),
            ("oanda", ["oanda"]),
            ("margin", ["kraken"]),
            (" spot ", ["binance", "kraken"]),
            ("1d", []),
        ],
    )
    def test_the_search_looks_at_name_id_and_asset_types_without_regard_to_case(
        self, search: str, ids: list[str]
    ) -> None:
        assert selected(search) == ids

    def test_search_and_filter_count_together(self) -> None:
        assert selected("spot", "options") == ["binance"]

    def test_each_filter_says_how_many_of_the_found_it_leaves(self) -> None:
        choices = filter_choices(LISTINGS, Selection("spot", "ccxt"))
        assert [choice.label for choice in choices] == [item.label for item in FILTERS]
        counts = {choice.key: choice.count for choice in choices}
        assert counts == {
            **dict.fromkeys(("forex", "stocks", "custom"), 0),
            "all": 2,
            "crypto": 2,
            "options": 1,
            "futures": 1,
            "ccxt": 2,
        }
        assert [choice.key for choice in choices if choice.chosen] == ["ccxt"]


class TestCard:
    def test_an_exchange_whose_balance_cannot_be_read_says_so(self) -> None:
        closed = exchange_card(Exchange(id="a", name="A"), Logos())
        opened = exchange_card(Exchange(id="a", name="A", capabilities=Capabilities(balance=True)), Logos())
        assert closed.obstacle
        assert not opened.obstacle

    def test_a_state_has_its_reason_and_since_when(self) -> None:
        status = ExchangeStatus(availability=AVAILABILITY_UNAVAILABLE, reason="It is in maintenance.")
        status.since_time.FromDatetime(datetime(2026, 11, 30, 12, 5, tzinfo=UTC))
        shown = availability_of(status)
        assert (shown.word, shown.reason) == ("Unavailable", "It is in maintenance.")
        assert shown.since == datetime(2026, 11, 30, 12, 5, tzinfo=UTC)
        assert availability_of(ExchangeStatus(availability=AVAILABILITY_AVAILABLE)).since is None

    def test_a_text_cannot_turn_the_texts_around_it(self) -> None:
        card = exchange_card(Exchange(id="a", name="A\u202eDNAO", market_hours="24/7\u0007"), Logos())
        assert card.name == "A\\u202eDNAO"
        assert card.market_hours == "24/7\\u0007"


class TestLink:
    @pytest.mark.parametrize("url", ["https://venue.example/api", "https://venue.example:8443/a?b=c#/d"])
    def test_an_https_address_is_a_link(self, url: str) -> None:
        assert safe_link(url) == url

    @pytest.mark.threat("T89")
    @pytest.mark.parametrize(
        "url",
        [
            "",
            "javascript:alert(1)",
            "JavaScript:alert(1)",
            "java\tscript:alert(1)",
            " https://venue.example",
            "data:text/html,<script>alert(1)</script>",
            "http://venue.example",
            "//venue.example",
            "/login",
            "https:/venue.example",
            "https://",
            "https://venue.example@evil.example/",
            "https://venue.example\\@evil.example",
            "https://v\u0435nue.example",
            'https://venue.example/" onclick="alert(1)',
            "https://venue.example:99999/",
            "https://[::1/",
        ],
    )
    def test_anything_else_is_no_link(self, url: str) -> None:
        assert safe_link(url) == ""


class TestLogo:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "oanda.png").write_bytes(b"a picture")
        (tmp_path / "notes.txt").write_text("no picture")
        (tmp_path / "huge.png").write_bytes(bytes(300 * 1024))
        return tmp_path

    @pytest.mark.parametrize(
        ("name", "letters"),
        [("OANDA", "OA"), ("Tasty Trade", "TT"), ("BIT.TEAM", "BT"), ("1inch", "1I"), ("x", "X"), ("…", "?")],
    )
    def test_without_a_picture_it_is_two_letters_in_the_listings_colour(self, name: str, letters: str) -> None:
        logo = Logos().of(Exchange(id="a", name=name, color_class="bg-green-500/20 text-green-500"))
        assert (logo.letters, logo.tone, logo.picture) == (letters, "green", "")

    @pytest.mark.parametrize("color_class", ["", "text-mauve-500", "bg-red-500/20", '"><script>'])
    def test_an_unknown_colour_is_gray(self, color_class: str) -> None:
        assert Logos().of(Exchange(id="a", name="A", color_class=color_class)).tone == "gray"

    @pytest.mark.threat("T89")
    def test_stored_environments_are_shown_as_they_are(self) -> None:
        card = exchange_card(Exchange(id="a"), Logos(), connected=["live\u202e"])
        assert card.connected == ("live\\u202e",)

    def test_letters_in_a_picture_are_escaped(self) -> None:
        assert "&lt;" not in Logos().of(Exchange(id="a", name="<b>")).svg()
        assert ">B</text>" in Logos().of(Exchange(id="a", name="<b>")).svg()

    def test_the_operators_picture_is_served_by_us_and_never_the_listings_own(self, folder: Path) -> None:
        logos = Logos(folder)
        exchange = Exchange(id="oanda", name="OANDA", logo="https://elsewhere.example/logo.png")
        assert logos.of(exchange).picture == "/logos/oanda"
        assert logos.picture("oanda") == (b"a picture", "image/png")
        assert logos.of(Exchange(id="aster", logo="https://elsewhere.example/logo.png")).picture == ""

    def test_a_picture_that_goes_away_later_or_cannot_be_read_breaks_no_page(self, folder: Path) -> None:
        (folder / "aster.png").symlink_to(folder / "nothing.png")
        logos = Logos(folder)
        (folder / "oanda.png").unlink()
        assert logos.picture("oanda") == (b"a picture", "image/png")
        assert logos.of(Exchange(id="aster")).picture == logos.of(Exchange(id="huge")).picture == ""

    @pytest.mark.parametrize("exchange_id", ["aster", "notes", "../oanda", "oanda.png", "huge", ""])
    def test_nothing_but_pictures_of_the_folder_is_read(self, folder: Path, exchange_id: str) -> None:
        assert Logos(folder).picture(exchange_id) is None
