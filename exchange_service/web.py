"""What browsers and scripts are served: the methods over HTTP, and on the same address the console's pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exchange_service.addresses import host_of
from exchange_service.grpc_server.certificates import CertificateFiles, RenewedContexts, UnusableCertificates
from exchange_service.grpc_server.direct import DirectCalls
from exchange_service.grpc_server.server import BindError
from exchange_service.open_files import idle_seconds
from exchange_service.settings import Settings

if TYPE_CHECKING:
    from exchange_service.console.app import Console
    from exchange_service.http_server.server import HttpServer

# Seconds that an idle connection stays open, and those that the last bytes have after the calls' own grace.
_LONGEST_IDLE, _LAST_BYTES = 60.0, 1.0


@dataclass(frozen=True, slots=True)
class Web:
    """The server for browsers and scripts, and the console on it; None for what the settings do not ask for."""

    server: HttpServer | None = None
    console: Console | None = None
    is_encrypted: bool = False
    # Whether a person signs in with a token. Without, a link with a key does it.
    knows_callers: bool = True
    # The name under which others reach it, if it listens on every address of the machine.
    host: str = ""

    @property
    def address(self) -> str:
        """Where it listens, with the port that was taken; empty if it does not."""
        return "" if self.server is None else self.server.address

    def console_url(self, user: str = "") -> str:
        """The address at which a person opens the console; empty if there is none.

        Without authentication it is a link with a key that signs in once, and shows this user's accounts.
        """
        if self.console is None or self.server is None:
            return ""
        scheme = "https" if self.is_encrypted else "http"
        path = "/" if self.knows_callers else self.console.new_login_path(user)
        address = f"{self.host}:{self.address.rpartition(':')[2]}" if self.host else self.address
        return f"{scheme}://{address}{path}"

    async def stop(self, grace: float = 0.0) -> None:
        """Accept no new connections, and give the responses in progress `grace` seconds, and one more at least."""
        if self.server is not None:
            await self.server.stop(max(grace, _LAST_BYTES) + _LAST_BYTES)


def open_web(
    settings: Settings, calls: DirectCalls, hash_key: bytes, files: CertificateFiles | None, connections: int
) -> Web:
    """Serve the calls over HTTP if the settings ask for it, with the TLS identity of these files, to this many
    connections at a time. Raises BindError with a sentence for the operator."""
    if settings.http_address is None:
        return Web()
    try:
        # Late, because a service without it does without its libraries, which are an extra.
        from exchange_service.http_server.guards import WebOptions
        from exchange_service.http_server.server import HttpOptions, listen_http
    except ModuleNotFoundError as error:
        raise _not_installed("http_address", error.name, "http") from None
    console = _make_console(settings, calls, hash_key, secure=files is not None) if settings.console else None
    options = HttpOptions(
        WebOptions((host_of(settings.http_address), *settings.http_hosts), settings.http_origins),
        None if files is None else _renewed(files).current,
        connections,
        idle=min(_LONGEST_IDLE, idle_seconds()),
        write_timeout=settings.write_timeout,
        pages=console,
    )
    server = listen_http(settings.http_address, calls, options)
    return Web(server, console, files is not None, settings.knows_callers, _host_of_people(settings))


def _host_of_people(settings: Settings) -> str:
    """The first of `http_hosts` in place of an address such as 0.0.0.0, which leads nowhere from elsewhere."""
    host = host_of(settings.http_address or "")
    return settings.http_hosts[0] if settings.http_hosts and host in ("0.0.0.0", "::") else ""  # noqa: S104


def _make_console(settings: Settings, calls: DirectCalls, hash_key: bytes, *, secure: bool) -> Console:
    try:
        # Late, for the same reason.
        from exchange_service.console.app import make_console
        from exchange_service.console.pages import ConsoleOptions
    except ModuleNotFoundError as error:
        raise _not_installed("console", error.name, "console") from None
    options = ConsoleOptions(
        hash_key, secure=secure, authenticated=settings.knows_callers, logos=settings.console_logos
    )
    return make_console(calls, options)


def _renewed(files: CertificateFiles) -> RenewedContexts:
    try:
        return RenewedContexts(files)
    except UnusableCertificates as error:
        raise BindError(str(error)) from None


def _not_installed(setting: str, name: str | None, extra: str) -> BindError:
    return BindError(f"{setting} needs {name}, which is not installed: install exchange-service[{extra}].")
