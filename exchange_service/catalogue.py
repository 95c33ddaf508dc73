"""ListExchanges: every listing of every plugin, filtered, searched, in pages, with an etag."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

from exchange_service.errors import FieldInvalid
from exchange_service.model import ExchangeMetadata, RetiredExchange
from exchange_service.recently_used import RecentlyUsed
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.egress import Egress
from exchange_service.venues.registry import Listing, Registry
from exchange_service.wire.catalogue import (
    catalogue_entry,
    list_exchanges_etag,
    list_exchanges_reply,
    not_modified_reply,
)

MAX_PAGE_SIZE = 500
CUSTOM = "custom"
CCXT = "ccxt"
# Replies that are kept, of at most 60 kB each. Callers choose the search text, so the number has to be bounded.
_MAX_REPLIES = 200


@dataclass(frozen=True, slots=True)
class Query:
    """What a ListExchangesRequest asks for; `source` is "", "custom" or "ccxt"."""

    asset_class: str = ""
    source: str = ""
    search: str = ""
    page_size: int = 0
    page_token: str = ""

    def filters_digest(self) -> str:
        """A short hash of the filters, so that a page token is not used with other filters."""
        text = "\n".join((self.asset_class.lower(), self.source, self.search.lower()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class Catalogue:
    """The merged catalogue as serialised replies, one for each query."""

    def __init__(self, registry: Registry, status: VenueStatus | None = None, egress: Egress | None = None) -> None:
        self._registry = registry
        self._status = status or VenueStatus()
        self._egress = egress or Egress()
        # All of one generation.
        self._replies: RecentlyUsed[Query, _Reply] = RecentlyUsed(_MAX_REPLIES)
        self._replies_generation = (-1, -1)
        self._entries: list[_Entry] = []
        self._entries_generation = (-1, -1)

    def answer(self, query: Query, etag: str = "") -> bytes:
        """A serialised ListExchangesResponse. Raises FieldInvalid for an invalid page size or token."""
        return self.ready(query, etag) or self._build(query).to(etag)

    def ready(self, query: Query, etag: str = "") -> bytes | None:
        """As `answer`; None if the reply has to be built."""
        generation = self._generation()
        if self._replies_generation != generation:
            self._replies.clear()
            self._replies_generation = generation
        built = self._replies.get(query)
        return None if built is None else built.to(etag)

    def _build(self, query: Query) -> _Reply:
        if not 0 <= query.page_size <= MAX_PAGE_SIZE:
            raise FieldInvalid("page_size", f"it should be from 0 to {MAX_PAGE_SIZE}.")
        entries = self._all_entries()
        matching = [entry for entry in entries if _matches(entry.metadata, query)]
        start = _start_of_page(query, matching)
        page = matching[start : start + (query.page_size or MAX_PAGE_SIZE)]
        more = start + len(page) < len(matching)
        ccxt = sum(entry.metadata.is_ccxt for entry in entries)
        reply = list_exchanges_reply(
            (entry.data for entry in page),
            next_page_token=_page_token(query, page[-1]) if more and page else "",
            matching_count=len(matching),
            custom=len(entries) - ccxt,
            ccxt=ccxt,
            problems=[(problem.plugin, problem.reason, problem.notice) for problem in self._registry.problems],
            retired=[entry for entry in self._registry.retired.values() if _is_searched(entry, query.search.lower())],
        )
        etag = list_exchanges_etag(reply)
        self._replies[query] = _Reply(reply, etag, not_modified_reply(etag))
        return self._replies[query]

    def _all_entries(self) -> list[_Entry]:
        """Every listing in the catalogue's order; built again when a plugin or a status has changed."""
        if self._entries_generation != self._generation():
            self._entries = [self._entry(listing) for listing in self._registry.listings.values()]
            self._entries_generation = self._generation()
        return self._entries

    def _generation(self) -> tuple[int, int]:
        self._status.pass_time()
        return (self._registry.generation, self._status.generation)

    def _entry(self, listing: Listing) -> _Entry:
        metadata, plugin = listing.metadata, listing.plugin.info
        trouble = self._status.plugin_troubles.get(plugin.name) or self._status.troubles.get(metadata.venue)
        return _Entry(metadata, catalogue_entry(metadata, plugin, trouble, self._egress.addresses(metadata.id)))


@dataclass(frozen=True, slots=True)
class _Reply:
    """A serialised reply, its etag, and what callers get who have it already."""

    whole: bytes
    etag: str
    not_modified: bytes

    def to(self, etag: str) -> bytes:
        """The reply to a caller with this etag."""
        return self.not_modified if etag and etag == self.etag else self.whole


@dataclass(frozen=True, slots=True)
class _Entry:
    """A listing and its serialised Exchange."""

    metadata: ExchangeMetadata
    data: bytes

    @property
    def sort_key(self) -> tuple[str, str]:
        return (self.metadata.name.lower(), self.metadata.id)


def _matches(metadata: ExchangeMetadata, query: Query) -> bool:
    if query.asset_class and metadata.asset_class.lower() != query.asset_class.lower():
        return False
    if query.source and metadata.is_ccxt != (query.source == CCXT):
        return False
    search = query.search.lower()
    return any(search in text.lower() for text in (metadata.name, metadata.id, metadata.asset_types))


def _is_searched(entry: RetiredExchange, search: str) -> bool:
    """Whether a search finds an exchange that is not listed any more."""
    return bool(search) and (search in entry.name.lower() or search in entry.id)


def _page_token(query: Query, last: _Entry) -> str:
    """The token of the next page. It names the last entry, so that a listing added meanwhile does not shift a page."""
    return base64.urlsafe_b64encode(json.dumps([query.filters_digest(), *last.sort_key]).encode()).decode()


def _start_of_page(query: Query, matching: list[_Entry]) -> int:
    if not query.page_token:
        return 0
    try:
        filters, name, exchange_id = json.loads(base64.urlsafe_b64decode(query.page_token.encode()))
    except (ValueError, TypeError, RecursionError):
        raise FieldInvalid("page_token", "this service did not issue it.") from None
    if filters != query.filters_digest():
        raise FieldInvalid("page_token", "it belongs to a call with other filters.", advice="Start again without it.")
    return sum(entry.sort_key <= (str(name), str(exchange_id)) for entry in matching)
