"""ListExchanges: every listing of every plugin, filtered, searched, in pages, and marked with an etag."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

from exchange_service.errors import FieldInvalid
from exchange_service.model import ExchangeMetadata
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.registry import Listing, PluginInfo, Registry
from exchange_service.wire.balances import (
    ListingTrouble,
    PluginLabel,
    catalogue_entry,
    list_exchanges_etag,
    list_exchanges_reply,
    not_modified_reply,
)

MAX_PAGE_SIZE = 500
CUSTOM = "custom"
CCXT = "ccxt"
# Answers that are kept ready, of 60 kB at the most. What is searched for is anybody's choice.
_MOST_ANSWERS = 200


@dataclass(frozen=True, slots=True)
class Query:
    """What ListExchanges was asked; `source` is "", "custom" or "ccxt". See ListExchangesRequest."""

    asset_class: str = ""
    source: str = ""
    search: str = ""
    page_size: int = 0
    page_token: str = ""

    def filters(self) -> str:
        """A mark of the filters alone, so that a page's token is not used with others."""
        text = "\n".join((self.asset_class.lower(), self.source, self.search.lower()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Catalogue:
    """The merged catalogue as ready bytes, one answer for each query that was asked."""

    def __init__(self, registry: Registry, status: VenueStatus | None = None) -> None:
        self._registry = registry
        self._ready: dict[Query, bytes] = {}
        self._etags: dict[Query, str] = {}
        self._ready_at = (-1, -1)
        self._status = status or VenueStatus()
        self._built_at = (-1, -1)
        self._entries: list[_Entry] = []

    def answer(self, query: Query, etag: str = "") -> bytes:
        """A serialised ListExchangesResponse; FieldInvalid for a page size or token that is none."""
        if self._ready_at != self._generation() or len(self._ready) >= _MOST_ANSWERS:
            self._ready.clear()
            self._etags.clear()
            self._ready_at = self._generation()
        reply = self._ready.get(query)
        if reply is None:
            reply = self._ready[query] = self._build(query)
            self._etags[query] = list_exchanges_etag(reply)
        if etag and etag == self._etags[query]:
            return not_modified_reply(etag)
        return reply

    def _build(self, query: Query) -> bytes:
        if not 0 <= query.page_size <= MAX_PAGE_SIZE:
            raise FieldInvalid("page_size", f"it should be from 0 to {MAX_PAGE_SIZE}.")
        entries = self._all()
        matching = [entry for entry in entries if _matches(entry.metadata, query)]
        start = _position(query, matching)
        page = matching[start : start + (query.page_size or MAX_PAGE_SIZE)]
        more = start + len(page) < len(matching)
        ccxt = sum(entry.metadata.is_ccxt for entry in entries)
        return list_exchanges_reply(
            (entry.data for entry in page),
            next_page_token=_token(query, page[-1]) if more and page else "",
            matching_count=len(matching),
            custom=len(entries) - ccxt,
            ccxt=ccxt,
            problems=[(_label(problem.plugin), problem.reason) for problem in self._registry.problems],
        )

    def _all(self) -> list[_Entry]:
        """Every listing with its bytes, in the catalogue's order; built anew when a plugin or a status has changed."""
        if self._built_at != self._generation():
            self._entries = [self._entry(listing) for listing in self._registry.listings.values()]
            self._built_at = self._generation()
        return self._entries

    def _generation(self) -> tuple[int, int]:
        return (self._registry.generation, self._status.generation)

    def _entry(self, listing: Listing) -> _Entry:
        metadata = listing.metadata
        down = self._status.plugin_troubles.get(listing.plugin.info.name)
        trouble = down or self._status.troubles.get(metadata.venue)
        state = None
        if trouble is not None:
            state = ListingTrouble(trouble.reason, trouble.since, serves=trouble.serves)
        return _Entry(metadata, catalogue_entry(metadata, _label(listing.plugin.info), state))


@dataclass(frozen=True, slots=True)
class _Entry:
    metadata: ExchangeMetadata
    data: bytes

    @property
    def sort_key(self) -> tuple[str, str]:
        return (self.metadata.name.lower(), self.metadata.id)


def _label(info: PluginInfo) -> PluginLabel:
    return PluginLabel(info.name, info.version, info.distribution)


def _matches(metadata: ExchangeMetadata, query: Query) -> bool:
    if query.asset_class and metadata.asset_class.lower() != query.asset_class.lower():
        return False
    if query.source and metadata.is_ccxt != (query.source == CCXT):
        return False
    wanted = query.search.lower()
    return any(wanted in text.lower() for text in (metadata.name, metadata.id, metadata.asset_types))


def _token(query: Query, last: _Entry) -> str:
    """The last entry of a page, so that a listing that comes or goes meanwhile shifts nothing."""
    return base64.urlsafe_b64encode(json.dumps([query.filters(), *last.sort_key]).encode()).decode()


def _position(query: Query, matching: list[_Entry]) -> int:
    if not query.page_token:
        return 0
    try:
        filters, name, exchange_id = json.loads(base64.urlsafe_b64decode(query.page_token.encode()))
    except (ValueError, TypeError):
        raise FieldInvalid("page_token", "it is not one that this service gave.") from None
    if filters != query.filters():
        raise FieldInvalid("page_token", "it belongs to a call with other filters.", advice="Start again without it.")
    return sum(entry.sort_key <= (str(name), str(exchange_id)) for entry in matching)
