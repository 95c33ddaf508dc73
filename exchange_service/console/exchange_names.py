"""What exchanges are called, kept between requests for as long as the catalogue does not change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from exchange_service.console.api import Api


class ExchangeName(NamedTuple):
    """An exchange's name to show, and the exchange whose credential it may share; empty if there is no such one."""

    name: str
    credential_of: str = ""


class ExchangeNames:
    """The names of all exchanges, by their ids. The catalogue is the same for all callers."""

    def __init__(self) -> None:
        self._etag = ""
        self._names: Mapping[str, ExchangeName] = {}

    async def read(self, api: Api) -> Mapping[str, ExchangeName]:
        """The names as they are now. Raises ApiError."""
        first = await api.list_exchanges(etag=self._etag)
        if not first.not_modified:
            entries = await api.all_exchanges() if first.next_page_token else first.exchanges
            self._names = {entry.id: ExchangeName(entry.name, entry.credential_of) for entry in entries}
            # An etag is that of one page.
            self._etag = "" if first.next_page_token else first.etag
        return self._names
