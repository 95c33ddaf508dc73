"""Serves the metrics by HTTP, in threads of its own: a reader, however slow or frequent, delays no call.

One thread at a time builds the text, with a pause before the next, so frequent reading takes a bounded share of the
processor. With too many connections the oldest is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from exchange_service.addresses import host_of, is_ip_address, is_loopback_host, is_private_host
from exchange_service.observability.health_pages import HealthPages
from exchange_service.observability.metrics import Metrics

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

# Connections that are served at the same time.
_MOST_READERS = 8
# Lines built without a break: about as long as a call takes. Then other threads may run for `_YIELD` seconds.
_LINES = 16
_YIELD = 0.0005
# In seconds: how long a reader may be silent, the pause between two texts, and how long the event loop may take to
# refresh the present state.
_SILENCE = 5.0
_PAUSE = 0.1
_REFRESH_LIMIT = 0.5


class MetricsNotShown(Exception):
    """The server cannot listen on the address; the text tells the operator why."""


class MetricsServer:
    """Serves `metrics` and the pages of `health`, those that are given, until it is closed. `address` is host:port,
    with the port that was taken."""

    def __init__(
        self,
        metrics: Metrics | None,
        host: str,
        port: int,
        names: Sequence[str] = (),
        health: HealthPages | None = None,
    ) -> None:
        """`names`: further names by which readers may call the server."""
        self._metrics = metrics
        self._health = health
        self._names = frozenset((host.lower(), *(name.lower().rstrip(".") for name in names)))
        self._on_loopback = is_loopback_host(host)
        self._loop = asyncio.get_running_loop()
        self._making = threading.Lock()
        self._next = 0.0
        registry = CollectorRegistry(auto_describe=True)
        if metrics is not None:
            registry.register(_YieldingCollector(metrics.registry))
        self._inner = make_wsgi_app(registry)
        shown = "health" if metrics is None else "metrics"
        try:
            self._server = _Server((host, port), ":" in host)
        except OSError as error:
            raise MetricsNotShown(
                f"Cannot show {shown} on {host}:{port}: {error.strerror or type(error).__name__}. "
                f"Set {shown}_address to another one."
            ) from None
        self._server.set_app(self._answer)
        bracketed = f"[{host}]" if ":" in host else host
        self.address = f"{bracketed}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], /, *error: Any) -> Any:
            # By default the header shows the version of Python.
            return start_response(status, [*headers, ("Server", "exchange-service")], *error)

        path = environ.get("PATH_INFO", "")
        answer = self._health.answer(path) if self._health is not None else None
        if answer is not None:
            start(answer[0], [("Content-Type", "text/plain"), ("Content-Length", str(len(answer[1])))])
            return [answer[1] if environ.get("REQUEST_METHOD") != "HEAD" else b""]
        known = self._metrics is not None and path in ("/", "/metrics")
        if not known or environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There is no such page here.\n"]
        if not self._is_expected(environ.get("HTTP_HOST", "")):
            start("421 Misdirected Request", [("Content-Type", "text/plain")])
            return [b"This server has another name; see the setting metrics_hosts.\n"]
        with self._making:
            time.sleep(max(0.0, self._next - time.monotonic()))
            self._refresh()
            body: Iterable[bytes] = self._inner(environ, start)
            self._next = time.monotonic() + _PAUSE
        return body

    def _is_expected(self, header: str) -> bool:
        """Whether the name that the reader has called is one of this server's.

        Somebody's page, open in a browser that can reach the port, could have its own name lead here, and then read
        what this server answers. It cannot do so with an address, nor with a name of a private network.
        """
        name = host_of(header).lower().rstrip(".")
        if not header or name in self._names or is_loopback_host(name) or is_ip_address(name):
            return True
        return not self._on_loopback and is_private_host(name)

    def _refresh(self) -> None:
        """Let the event loop refresh the present state; if it takes too long, the state of the last time is shown."""
        refreshed = threading.Event()

        def refresh() -> None:
            if self._metrics is not None:
                self._metrics.refresh()
            refreshed.set()

        # RuntimeError: the loop has ended meanwhile.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(refresh)
            refreshed.wait(_REFRESH_LIMIT)

    async def close(self) -> None:
        """Stop listening, and close every connection."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.end_readers()
        self._thread.join()


class _YieldingCollector:
    """Collects the families of a registry, and lets other threads run while their lines are built."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            time.sleep(_YIELD)
            # The library iterates over the samples once and needs no list.
            family.samples = cast("list[Sample]", _in_batches(family.samples))
            yield family


def _in_batches(samples: Iterable[Sample]) -> Iterator[Sample]:
    for number, sample in enumerate(samples):
        if number % _LINES == _LINES - 1:
            # Python itself switches threads only every five milliseconds.
            time.sleep(_YIELD)
        yield sample


class ReaderHandler(WSGIRequestHandler):
    """Answers one reader. `timeout` is how many seconds it may be silent."""

    timeout = _SILENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Requests for metrics are not logged."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], version_six: bool) -> None:
        self.address_family = socket.AF_INET6 if version_six else socket.AF_INET
        self._readers: deque[socket.socket] = deque()
        super().__init__(address, ReaderHandler)

    def server_bind(self) -> None:
        """Bind as the base class does, but without looking up the host's name, which asks a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._readers.append(request)
        while len(self._readers) > _MOST_READERS:
            _hang_up(self._readers.popleft())
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with contextlib.suppress(ValueError):
            self._readers.remove(request)
        super().shutdown_request(request)

    def end_readers(self) -> None:
        """Close the connections that are still open."""
        while self._readers:
            _hang_up(self._readers.popleft())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that disconnects is not logged; the library would write a traceback."""


def _hang_up(reader: socket.socket) -> None:
    with contextlib.suppress(OSError):
        reader.shutdown(socket.SHUT_RDWR)
