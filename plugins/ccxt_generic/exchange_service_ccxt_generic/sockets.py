"""The layer over CCXT's socket: the guarded session opens it, its messages are bounded, and it tells what it hears.

CCXT itself stops reading at a message that it cannot parse, and says so nowhere; it unpacks messages without a bound,
and leaves errors that hold signed addresses to the log of unretrieved exceptions. This module does not import CCXT.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import aiohttp

from exchange_service.plugin_api import VenueMalformed
from exchange_service_ccxt_generic.answers import RECORD, Answer, size_of

# Bytes of a message, packed and unpacked.
MESSAGE_LIMIT = 1024 * 1024
# Seconds that a venue has to end a connection from its side.
_CLOSE_LIMIT = 0.5
# What zlib calls the forms of packed messages.
_GZIP, _BARE_DEFLATE = 16 + zlib.MAX_WBITS, -zlib.MAX_WBITS
# The names under which CCXT waits for the answer to a login begin so.
_LOGINS = ("auth", "challenge")


@dataclass(slots=True)
class Failure:
    """Why a watch ends: the error, and the answer or message that led to it."""

    error: BaseException
    answer: Answer = field(repr=False)


class Signals:
    """What the sockets of one watch tell: that an account may have changed, that they broke, and when we sent."""

    def __init__(self) -> None:
        self.failure: Failure | None = None
        # Whether the subscriptions stand.
        self.stands = False
        self._hinted = False
        self._told = asyncio.Event()
        self._sent = asyncio.Event()

    def hint(self) -> None:
        """Note that the account may have changed."""
        self._hinted = True
        self._told.set()

    def fail(self, error: BaseException, answer: Answer | None = None) -> None:
        """Note what ends the watch; the first counts. A refused request counts before what CCXT makes of it."""
        if self.failure is None:
            self.failure = _refused_request() or Failure(error, answer or Answer(error=_as_exception(error)))
        self._told.set()

    def note_sending(self) -> None:
        """Note that a connection was opened, or that a message was sent."""
        self._sent.set()

    async def hint_or_failure(self) -> None:
        """Wait until there is one of both. A hint is forgotten then."""
        while not self._hinted and self.failure is None:
            self._told.clear()
            await self._told.wait()
        self._hinted = False

    async def quiet(self, seconds: float) -> None:
        """Wait until we have sent nothing for so long."""
        while True:
            self._sent.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._sent.wait()
            except TimeoutError:
                return


def _refused_request() -> Failure | None:
    record = RECORD.get(None)
    answers = record.answers if record is not None else []
    return next((Failure(answer.error, answer) for answer in answers if answer.error is not None), None)


def _as_exception(error: BaseException) -> Exception | None:
    return error if isinstance(error, Exception) else None


class GuardedSocket:
    """A layer over CCXT's class `Client`, which is one socket."""

    # CCXT's own members.
    url: str
    connection: Any
    connecting: bool
    asyncio_loop: asyncio.AbstractEventLoop
    options: Mapping[str, Any]
    futures: Mapping[str, asyncio.Future[Any]]
    error: BaseException | None
    gunzip: bool
    inflate: bool
    decompressBinary: bool  # noqa: N815 - CCXT's name
    on_message_callback: Callable[[Any, Any], None]
    # Set by the instance that makes the socket: what hears it, where an address really leads, and CCXT's errors.
    signals: Signals
    rebased: Callable[[str], str]
    refuse_status: Callable[[int], None]
    refusal: Callable[[], Exception]
    parse: Callable[[str], Any]
    # The task that opens the connection.
    opening: asyncio.Task[None] | None = None
    # Whether the venue answers subscriptions; whether something was sent, and whether something came after that.
    is_answered = True
    has_sent = False
    was_answered = False
    # The message that CCXT is reading now.
    _reading = ""

    def is_settled(self) -> bool:
        """Whether it is open, no login waits for its answer, and the venue has answered what was sent last."""
        if self.connection is None:
            return False
        waits = any(name.startswith(_LOGINS) and not future.done() for name, future in self.futures.items())
        return not waits and (self.was_answered or not self.has_sent or not self.is_answered)

    def connect(self, session: Any, backoff_delay: float = 0) -> Any:
        """Begin to open the connection, unless that has begun; CCXT's future of it."""
        if not self.connection and not self.connecting:
            self.connecting = True
            self.opening = self.asyncio_loop.create_task(self.open(session))  # type: ignore[attr-defined]
        return self.connected  # type: ignore[attr-defined]

    async def create_connection(self, session: Any) -> Any:
        """Open the connection through the guarded session. Errors that are not of the network end the watch."""
        try:
            connection = await session.ws_connect(
                self.rebased(self.url),
                autoping=False,
                autoclose=False,
                headers=self.options.get("headers"),
                max_msg_size=MESSAGE_LIMIT,
                timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_LIMIT),
            )
        except aiohttp.WSServerHandshakeError as error:
            self._fail_by_status(error.status, dict(error.headers or {}))
            raise
        except (aiohttp.ClientError, OSError):
            raise
        except Exception as error:
            self.signals.fail(error)
            raise
        self.signals.note_sending()
        return connection

    def _fail_by_status(self, status: int, headers: Mapping[str, str]) -> None:
        """End the watch with CCXT's error for a refused handshake, if the status has one."""
        try:
            self.refuse_status(status)
        except Exception as error:
            self.signals.fail(error, Answer(status, headers, error=error))

    async def send(self, message: Any) -> None:
        """Send a message."""
        self.has_sent, self.was_answered = True, False
        await super().send(message)  # type: ignore[misc]
        self.signals.note_sending()

    def handle_message(self, message: aiohttp.WSMessage) -> None:
        """Read a message. What CCXT cannot read may mean a change; what it reads as an error ends the watch."""
        try:
            self._handle(message)
        except (json.JSONDecodeError, RecursionError):
            self._break(VenueMalformed("It sent a message that is not JSON."))
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError):
            self.signals.hint()
        except Exception as error:
            # An unknown message is no reason to believe that the account is not pushed.
            unknown = type(error).__name__ == "NotSupported"
            self._break(VenueMalformed("It sent an unknown message.") if unknown else error)
        finally:
            self._reading = ""

    def _break(self, error: Exception) -> None:
        """End the connection as CCXT ends a broken one."""
        self.on_error(error)  # type: ignore[attr-defined]

    def _handle(self, message: aiohttp.WSMessage) -> None:
        if message.type is aiohttp.WSMsgType.PING:
            self.asyncio_loop.create_task(self._pong(message.data))
        elif message.type is aiohttp.WSMsgType.ERROR:
            raise VenueMalformed("It sent a message that is too large, or is not one of a WebSocket.")
        else:
            super().handle_message(message)  # type: ignore[misc]

    async def _pong(self, data: bytes) -> None:
        try:
            await self.connection.pong(data)
        except (aiohttp.ClientError, ConnectionError, RuntimeError) as error:
            self._break(error)

    def handle_text_or_binary_message(self, data: Any) -> None:
        """Give a message to CCXT's class: its value if it is JSON, otherwise its text or its bytes."""
        self.was_answered = True
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) and self.decompressBinary else data
        # CCXT takes a lone bracket for a text.
        is_json = isinstance(text, str) and len(text) > 1 and text[0] in "{["
        self._reading = text if is_json else ""
        value = self.parse(text) if is_json else text
        self.on_message_callback(self, value)
        if not self.signals.stands and _refuses(value):
            raise self.refusal()

    def resolve(self, result: Any, message_hash: str) -> Any:
        """CCXT's result of a message. A balance is a hint also while nothing waits for it."""
        if isinstance(result, Mapping) and "total" in result:
            self.signals.hint()
        return super().resolve(result, message_hash)  # type: ignore[misc]

    def reject(self, result: BaseException, message_hash: str | None = None) -> Any:
        """CCXT's error of a message or of the connection, which ends the watch whatever CCXT meant to end by it."""
        answer = Answer(body=self._reading, size=size_of(self._reading), error=_as_exception(result))
        answer.is_json = bool(self._reading)
        self.signals.fail(result, answer)
        return super().reject(result, message_hash)  # type: ignore[misc]

    def future(self, message_hash: str) -> Any:
        """CCXT's future of a message. Its error is never logged as an unretrieved one."""
        future = super().future(message_hash)  # type: ignore[misc]
        future.remove_done_callback(_retrieve)
        future.add_done_callback(_retrieve)
        return future

    async def close(self, code: int = 1000) -> None:
        """Close the connection, also one that is being opened."""
        if self.opening is not None:
            self.opening.cancel()
            await asyncio.wait({self.opening})
        await super().close(code)  # type: ignore[misc]

    def log(self, *_: Any) -> None:
        """Print nothing."""


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _refuses(value: Any) -> bool:
    """Whether a message is a refusal by its form. Some classes of CCXT read past one."""
    if not isinstance(value, Mapping):
        return False
    says_error = "error" in (value.get("event"), value.get("status"))
    return says_error or value.get("success") is False or bool(value.get("error"))


def unpack(data: bytes, form: int) -> bytes:
    """The unpacked message; VenueMalformed if it is broken, or larger than a message may be."""
    unpacker = zlib.decompressobj(form)
    try:
        text = unpacker.decompress(data, MESSAGE_LIMIT)
    except zlib.error:
        raise VenueMalformed("It sent a packed message that is broken.") from None
    if unpacker.unconsumed_tail:
        raise VenueMalformed("It sent a packed message that is too large.")
    return text


@cache
def socket_class() -> type:
    """CCXT's class of sockets below the layer. CCXT is already imported when a socket is opened."""
    module = importlib.import_module("ccxt.async_support.base.ws.client")
    # The module's own functions have no bound.
    setattr(module, "gunzip", partial(unpack, form=_GZIP))  # noqa: B010 - the type checker knows no such attribute
    setattr(module, "inflate", partial(unpack, form=_BARE_DEFLATE))  # noqa: B010
    return type("GuardedClient", (GuardedSocket, module.Client), {})
