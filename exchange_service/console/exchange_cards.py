"""The catalogue as cards that can be searched and filtered, on the sheet and on the page of exchanges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from exchange_service.console.logos import Logo, Logos
from exchange_service.printable import printable
from exchange_service.v1.exchange_pb2 import (
    AVAILABILITY_AVAILABLE,
    AVAILABILITY_DEGRADED,
    AVAILABILITY_UNAVAILABLE,
    Exchange,
    ExchangeStatus,
)

ALL = "all"
# The word and the tone that each availability is shown with.
_AVAILABILITY: Mapping[int, tuple[str, str]] = {
    AVAILABILITY_AVAILABLE: ("Available", "good"),
    AVAILABILITY_DEGRADED: ("Degraded", "warning"),
    AVAILABILITY_UNAVAILABLE: ("Unavailable", "bad"),
}
_UNKNOWN = ("Not known", "quiet")
_NOT_SUPPORTED = "Balances of this exchange cannot be read yet."


@dataclass(frozen=True, slots=True)
class ExchangeFilter:
    """One of the filters; `key` is its value in an address."""

    key: str
    label: str
    matches: Callable[[Exchange], bool]


def _traded(word: str) -> Callable[[Exchange], bool]:
    """Whether an asset class, or one of the asset types, has this word, in the singular or the plural."""

    def matches(exchange: Exchange) -> bool:
        words = f"{exchange.asset_class} {exchange.asset_types}".lower().replace("-", " ").split()
        return any(found.removesuffix("s") == word for found in words)

    return matches


FILTERS: Sequence[ExchangeFilter] = (
    ExchangeFilter(ALL, "All", lambda _: True),
    ExchangeFilter("crypto", "Crypto", lambda exchange: exchange.asset_class == "Crypto"),
    ExchangeFilter("forex", "Forex", _traded("forex")),
    ExchangeFilter("stocks", "Stocks", _traded("stock")),
    ExchangeFilter("options", "Options", _traded("option")),
    ExchangeFilter("futures", "Futures", _traded("future")),
    ExchangeFilter("custom", "Custom integrations", lambda exchange: exchange.is_custom),
    ExchangeFilter("ccxt", "CCXT exchanges", lambda exchange: exchange.is_ccxt),
)


@dataclass(frozen=True, slots=True)
class Selection:
    """What a person searches for, and the filter that they chose."""

    search: str = ""
    filter: str = ALL

    @classmethod
    def from_query(cls, query: Mapping[str, str]) -> Selection:
        """The selection of an address; a filter that we do not have counts as all."""
        chosen = query.get("filter", ALL)
        known = any(chosen == item.key for item in FILTERS)
        return cls(query.get("q", "").strip()[:100], chosen if known else ALL)

    def selects(self, exchange: Exchange) -> bool:
        return self.filter in _filters_of(exchange) and self.finds(exchange)

    def finds(self, exchange: Exchange) -> bool:
        """Whether the search, and not the filter, selects an exchange."""
        return self.search.lower() in search_text(exchange)


@dataclass(frozen=True, slots=True)
class FilterChoice:
    """A filter as it is offered, with the number of exchanges that it leaves beside the search."""

    key: str
    label: str
    count: int
    chosen: bool


@dataclass(frozen=True, slots=True)
class Availability:
    """What the service has seen of a venue, in words; `since` is absent if it is so since the service started."""

    word: str
    tone: str
    reason: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class ExchangeCard:
    """One exchange as the pages show it. `obstacle` says why no account can be added; empty: one can."""

    id: str
    name: str
    logo: Logo
    asset_class: str
    asset_types: str
    market_hours: str
    badges: tuple[str, ...]
    availability: Availability
    obstacle: str
    abilities: tuple[str, ...]
    account_types: tuple[str, ...]
    documentation_url: str
    plugin: str
    search_text: str
    filters: str
    shown: bool
    connected: tuple[str, ...] = ()


def exchange_card(
    exchange: Exchange, logos: Logos, selection: Selection | None = None, connected: Sequence[str] = ()
) -> ExchangeCard:
    """A listing as a card; `connected` are the environments for which the user has stored a credential."""
    return ExchangeCard(
        id=exchange.id,
        name=printable(exchange.name),
        logo=logos.of(exchange),
        asset_class=printable(exchange.asset_class),
        asset_types=printable(exchange.asset_types),
        market_hours=printable(exchange.market_hours),
        badges=("CCXT",) if exchange.is_ccxt else ("Custom",),
        availability=availability_of(exchange.status),
        obstacle="" if exchange.capabilities.balance else _NOT_SUPPORTED,
        abilities=tuple(_abilities(exchange)),
        account_types=tuple(printable(kind) for kind in exchange.account_types),
        documentation_url=safe_link(exchange.documentation_url),
        plugin=printable(f"{exchange.plugin.name} {exchange.plugin.version}".strip()),
        search_text=search_text(exchange),
        filters=" ".join(_filters_of(exchange)),
        shown=selection is None or selection.selects(exchange),
        connected=tuple(map(printable, connected)),
    )


def filter_choices(exchanges: Iterable[Exchange], selection: Selection) -> list[FilterChoice]:
    """Every filter, with what it would leave of what the search finds."""
    found = [exchange for exchange in exchanges if selection.finds(exchange)]
    return [
        FilterChoice(item.key, item.label, sum(map(item.matches, found)), item.key == selection.filter)
        for item in FILTERS
    ]


def availability_of(status: ExchangeStatus) -> Availability:
    """The words for a status."""
    word, tone = _AVAILABILITY.get(status.availability, _UNKNOWN)
    since = status.since_time.ToDatetime(UTC) if status.HasField("since_time") else None
    return Availability(word, tone, printable(status.reason), since)


def search_text(exchange: Exchange) -> str:
    """What a search looks at, in lower case: the name, the id and the asset types."""
    return printable("\n".join((exchange.name, exchange.id, exchange.asset_types)), keep="\n").lower()


def safe_link(url: str) -> str:
    """The URL if a browser may follow it, else nothing: https, a host, no user name, and only plain characters."""
    if not url.isascii() or not url.isprintable() or any(letter in url for letter in ' "<>\\^`{|}'):
        return ""
    try:
        parts = urlsplit(url)
        usable = parts.scheme == "https" and parts.hostname and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return ""
    return url if usable else ""


def _filters_of(exchange: Exchange) -> list[str]:
    return [item.key for item in FILTERS if item.matches(exchange)]


def _abilities(exchange: Exchange) -> Iterable[str]:
    """What the service can do with an exchange, in a few words each."""
    can = exchange.capabilities
    if not can.balance:
        return
    yield "Pushed live" if can.push else "Polled"
    if can.sandbox:
        yield "Sandbox"
    if can.several_accounts:
        yield "Several accounts"
    if can.read_without_secret:
        yield "No secret needed"
