"""How a venue's push socket is spoken, and the socket itself."""

from __future__ import annotations

from collections.abc import Awaitable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeAlias

Topic: TypeAlias = Hashable


class Socket(Protocol):
    """An open WebSocket of a venue."""

    # How many subscriptions it carries, for the service's metrics. `subscribed` keeps it; set it if you do without.
    subscriptions: int

    async def send(self, message: str) -> None:
        """Send a text message. Raises VenueUnavailable if the connection has ended."""

    async def receive(self) -> str:
        """The next message as text: a binary one is decoded as UTF-8. Raises VenueUnavailable when the connection ends,
        VenueTimeout when the venue is silent, VenueMalformed for a message of more than 1 MiB."""


class SocketOpener(Protocol):
    """The part of `plugin_api.Http` that opens sockets."""

    def websocket(
        self, url: str, *, headers: Mapping[str, str] | None = None, silence: float = 60.0, ping: float = 20.0
    ) -> AbstractAsyncContextManager[Socket]:
        """See `plugin_api.Http`."""


class PushLanguage:
    """How one venue's socket is spoken. Subclass it, and override what the venue needs.

    One connection is shared by all who follow topics with a language of the same class, `url` and `login`.
    """

    # Seconds without a message after which the connection counts as broken. Pings and pongs of WebSocket are no
    # messages. Where a venue may have nothing to say for hours, such as one that pushes orders alone, set
    # keep_alive_every to less than half of this and let keep_alive be a message that the venue answers, such as its own
    # ping or a subscription again. If it answers nothing of the kind, raise this: a broken connection is then found by
    # the pings of WebSocket.
    silence = 60.0
    # Seconds between two pings of WebSocket itself; 0: none are sent.
    ping = 20.0
    # Seconds between two messages of `keep_alive`; 0: none are sent.
    keep_alive_every = 0.0
    # Seconds that connecting may take, with what `open` does.
    opening_limit = 10.0
    # Seconds that the venue may take to acknowledge a subscription.
    acknowledging_limit = 15.0
    # Seconds for which a connection that nobody follows stays open, so that the next account need not open another one.
    linger = 5.0
    # Whether the venue acknowledges each subscription: `read` then gives an (topic, None) pair for it, or a state.
    acknowledges = True

    def __init__(self, url: str, login: str = "") -> None:
        """`login` is one text that tells connections apart that are logged in for different users; it may be a secret.

        Where a login has several secrets, join all of them into one text, or give the whole message of the login: two
        users who share only one of them must not share a connection. Keep the parts as attributes of your own, which
        `open` and `subscribe` use.
        """
        # Where to connect.
        self.url = url
        # What tells connections of different users apart.
        self.login = login

    def __repr__(self) -> str:
        return type(self).__name__

    def headers(self) -> Mapping[str, str]:
        """The headers of the handshake."""
        return {}

    async def open(self, socket: Socket) -> None:
        """Say and wait for what comes before the first subscription, such as a login."""

    def keep_alive(self) -> str | Awaitable[str]:
        """The message that keeps the connection open; an `async def` if it needs a request first, such as for a token.
        Raises a VenueError to end the connection."""
        raise NotImplementedError

    def subscribe(self, topics: Sequence[Topic]) -> Iterable[str]:
        """The messages that subscribe to these topics; one topic at a time is asked for. A VenueError ends the topics'
        subscriptions alone.

        A topic is what the venue's messages name. Where only the first message tells an account's own name, take a
        constant topic on a connection of that login, and compare the name in `state`, by `require_account` or by
        `require_same_accounts`.
        """
        raise NotImplementedError

    def unsubscribe(self, topics: Sequence[Topic]) -> Iterable[str]:
        """The messages that end these subscriptions; empty if the venue knows none."""
        return ()

    def reply(self, message: Any) -> str | None:
        """What a message of the venue is to be answered with, such as a pong; None: nothing."""
        return None

    def read(self, message: Any) -> Iterable[tuple[Topic, Any]]:
        """Sort a message, a JSON value with exact numbers: each part with the topic that the message itself names.

        A part of None acknowledges the topic's subscription; a VenueError ends it with this error. A message that
        concerns no topic gives nothing. Raises VenueMalformed for what is not a message of the venue, and another
        VenueError to end the whole connection.
        """
        raise NotImplementedError

    def state(self, topic: Topic, before: Any, part: Any) -> Any:
        """What is known of the topic after this part; `before` is what was known, None at first. The part itself,
        unless you override it for a venue that sends only what changed.

        Return a new value and leave `before` as it is: others hold it. Return None as long as it is not whole, and
        `before` itself if nothing is new. Raises a VenueError to end the topic's subscriptions alone.
        """
        return part
