"""Shows the metrics by HTTP, in threads of its own: whoever reads them, slowly or often, holds no call up.

The text is made by one thread at a time, and with a pause between two, so that reading again and again takes a bounded
share of the processor. Of many connections the oldest gives way.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import Metric
from prometheus_client.samples import Sample

from exchange_service.observability.metrics import Metrics

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

# Connections that are served at the same time.
_MOST_READERS = 8
# Lines that are made at one go: about as long as a call takes. Then the event loop gets its turn for so many seconds.
_LINES = 16
_BREATH = 0.0005
# Seconds that a reader may keep silent, that making the text pauses for, and that the event loop has to say how it is.
_SILENCE = 5.0
_PAUSE = 0.1
_LOOK_LIMIT = 0.5


class MetricsNotShown(Exception):
    """The address cannot be listened on; the text is a sentence for the operator."""


class MetricsServer:
    """Listens until it is closed; `address` has the port that was taken."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._making = threading.Lock()
        self._next = 0.0
        registry = CollectorRegistry(auto_describe=True)
        registry.register(_Unhurried(metrics.registry))
        self._inner = make_wsgi_app(registry)
        try:
            self._server = _Server((host, port), ":" in host)
        except OSError as error:
            raise MetricsNotShown(
                f"Cannot show metrics on {host}:{port}: {error.strerror or type(error).__name__}. "
                "Set metrics_address to another one."
            ) from None
        self._server.set_app(self._answer)
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{shown}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True)
        self._thread.start()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], /, *error: Any) -> Any:
            # Nobody is told which Python this is.
            return start_response(status, [*headers, ("Server", "exchange-service")], *error)

        if environ.get("PATH_INFO") not in ("/", "/metrics") or environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"There are metrics at /metrics, and nothing else.\n"]
        with self._making:
            time.sleep(max(0.0, self._next - time.monotonic()))
            self._look()
            found: Iterable[bytes] = self._inner(environ, start)
            self._next = time.monotonic() + _PAUSE
        return found

    def _look(self) -> None:
        """Have the event loop say how things are; where it does not come to that, what it said last is shown."""
        looked = threading.Event()

        def look() -> None:
            self._metrics.refresh()
            looked.set()

        # RuntimeError: the loop has ended meanwhile.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(look)
            looked.wait(_LOOK_LIMIT)

    async def close(self) -> None:
        """Listen no more, and end every connection."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.end_readers()
        self._thread.join()


class _Unhurried:
    """Collects the same families, and lets other threads in again and again while their lines are made."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._registry.collect():
            time.sleep(_BREATH)
            # The library goes through it once, and wants no more of it.
            family.samples = cast("list[Sample]", _in_pieces(family.samples))
            yield family


def _in_pieces(samples: Iterable[Sample]) -> Iterator[Sample]:
    for number, sample in enumerate(samples):
        if number % _LINES == _LINES - 1:
            # Python itself would pass the turn on every five milliseconds.
            time.sleep(_BREATH)
        yield sample


class _Handler(WSGIRequestHandler):
    timeout = _SILENCE

    def log_message(self, format: str, *args: Any) -> None:
        """A reader's request line is nothing for our log."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], version_six: bool) -> None:
        self.address_family = socket.AF_INET6 if version_six else socket.AF_INET
        self._readers: deque[socket.socket] = deque()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Without looking for the host's name, which asks a name server."""
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
        """End the connections that are still open."""
        while self._readers:
            _hang_up(self._readers.popleft())

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader who went away is nobody's trouble; the library would write a traceback."""


def _hang_up(reader: socket.socket) -> None:
    with contextlib.suppress(OSError):
        reader.shutdown(socket.SHUT_RDWR)
