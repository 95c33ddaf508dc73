"""The layer over a CCXT class that watches a balance: it sends what is needed to listen, and nothing else."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from exchange_service.plugin_api import NotSupported
from exchange_service_ccxt_generic.exact import Exact, ccxt_error
from exchange_service_ccxt_generic.pushed import UNANSWERED, is_listening
from exchange_service_ccxt_generic.sockets import GuardedSocket, Signals, socket_class


async def _at_once(cost: float | None = None) -> None:
    """CCXT's pause before a message. A watch sends three or four messages."""


class Listening(Exact):
    """A layer over a class of CCXT for sockets. The instance belongs to one watch, and nothing believes its balance.

    CCXT's classes read a balance beside the socket, keep what was pushed, and renew their keys in timers. None of that
    is done here: the host reads the balance, and a watch begins again before its key expires.
    """

    # What hears the sockets, and where an address really leads.
    signals: Signals
    rebased: Callable[[str], str]
    clients: dict[str, Any]
    streaming: Mapping[str, Any]
    # CCXT's own methods.
    handle_message: Callable[..., Any]
    on_error: Callable[..., Any]
    on_close: Callable[..., Any]
    on_connected: Callable[..., Any]
    handle_http_status_code: Callable[..., Any]
    _tasks: set[asyncio.Task[Any]]

    def listen(self, signals: Signals, rebased: Callable[[str], str]) -> None:
        """Tell `signals` of what the sockets hear, and open them at `rebased` addresses."""
        self.signals, self.rebased = signals, rebased
        self.clients, self._tasks = {}, set()
        for method, kind in (("watchBalance", "Balance"), ("watchPositions", "Positions")):
            own = self.options.get(method)
            without = {f"fetch{kind}Snapshot": False, f"await{kind}Snapshot": False}
            self.options[method] = {**(own if isinstance(own, Mapping) else {}), **without}

    async def request(self, path: str, api: Any = "public", method: str = "GET", *more: Any, **named: Any) -> Any:
        """Send a request; NotSupported unless it is known to only read, or to only begin to listen."""
        if is_listening(self.id, method, path):
            # Past the check of `Exact`, which knows reads alone.
            return await super(Exact, self).request(path, api, method, *more, **named)  # type: ignore[misc]
        return await super().request(path, api, method, *more, **named)

    async def fetch_balance(self, params: Any = None) -> Any:
        """Refused: the host reads the balance, within its limits."""
        raise NotSupported(f"CCXT's {self.id} wants to read a balance while it listens.")

    async def load_balance_snapshot(self, *_: Any) -> None:
        """Do nothing: the host reads the balance."""

    async def load_positions_snapshot(self, *_: Any) -> None:
        """Do nothing: positions are no part of a balance here."""

    def client(self, url: str) -> Any:
        """CCXT's socket for this address, which is opened later or never."""
        self.open()
        if url not in self.clients:
            self.clients[url] = self._make_socket(url)
        return self.clients[url]

    def _make_socket(self, url: str) -> GuardedSocket:
        settings = {
            **self.streaming,
            "ping": getattr(self, "ping", None),
            "throttle": _at_once,
            "asyncio_loop": self.asyncio_loop,
            "decompressBinary": self.options.get("decompressBinary", True),
            **self.options.get("ws", {}),
        }
        callbacks = (self.handle_message, self.on_error, self.on_close, self.on_connected)
        socket: GuardedSocket = socket_class()(url, *callbacks, settings)
        socket.signals, socket.rebased, socket.parse = self.signals, self.rebased, self.parse_message
        socket.refuse_status, socket.refusal = self._refuse_status, self._refusal
        socket.is_answered = self.id not in UNANSWERED
        return socket

    def _refuse_status(self, status: int) -> None:
        """Raise CCXT's error for the status of a refused handshake, if it has one."""
        self.handle_http_status_code(status, "", "", "GET", "")

    def _refusal(self) -> Exception:
        """CCXT's error for a refusal that its class has read past."""
        return ccxt_error("ExchangeError")(self.id)

    def parse_message(self, text: str) -> Any:
        """The value of a message. Its numbers need not be exact, because no amount of it is shown."""
        return json.loads(text)

    def spawn(self, method: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        """Run CCXT's coroutine beside the others, until the watch ends. Returns CCXT's future of its result."""
        future = importlib.import_module("ccxt.async_support.base.ws.future").Future()
        task = asyncio.get_running_loop().create_task(method(*arguments))
        self._tasks.add(task)

        def settle(done: asyncio.Task[Any]) -> None:
            self._tasks.discard(done)
            if done.cancelled():
                future.cancel()
            elif (error := done.exception()) is not None:
                future.reject(error)
            else:
                future.resolve(done.result())

        task.add_done_callback(settle)
        return future

    def delay(self, timeout: float, method: Any, *arguments: Any) -> None:
        """Start no timer: CCXT would renew its keys by it, and a watch begins again before they expire."""

    async def close(self, clean_instance_data: bool = False) -> None:
        """Close every socket, and end what CCXT has begun."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        sockets = [client.close() for client in self.clients.values()]
        await asyncio.gather(*sockets, *tasks, return_exceptions=True)
        await super().close(clean_instance_data)

    def sockets(self) -> list[GuardedSocket]:
        """The sockets that were opened, or are being opened."""
        return [client for client in self.clients.values() if client.opening is not None]
