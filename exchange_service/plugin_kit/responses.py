"""The end of a client's reading of errors: the statuses for which a plugin has no rule of its own."""

from __future__ import annotations

from typing import NoReturn, Protocol

from exchange_service.errors import VenueMalformed


class _Response(Protocol):
    """What is needed here of `plugin_api.Response`."""

    @property
    def status(self) -> int: ...

    def raise_for_status(self) -> None: ...


def raise_unexpected_status(response: _Response, venue: str) -> NoReturn:
    """Raise the error of a status for which the plugin has no rule of its own; call it last.

    Raises what `response.raise_for_status()` raises. For a status that has no error there, such as 204, raises
    VenueMalformed with the venue's name and the status.
    """
    response.raise_for_status()
    raise VenueMalformed(f"{venue} answered with an unexpected status (HTTP {response.status}).")
