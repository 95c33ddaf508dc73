"""The ways by which requests leave for the venues: directly, from an address of this machine, or through a proxy.

An account stays with one way. What a venue counts by network address is counted for each address.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

from exchange_service.addresses import spell_addresses
from exchange_service.errors import VenueUnavailable
from exchange_service.model import Account, Secret

if TYPE_CHECKING:
    # It names the way in its turn.
    from exchange_service.venues.fetching import Target

# The way that needs no entry: as the machine itself connects.
DIRECT = "direct"
# Stands for every venue without a line of its own.
EVERY_VENUE = "*"
_PARTS = ("ways", "venues", "pinned")
_OF_A_WAY = ("proxy", "user", "password", "local_address", "address")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}\Z")
_PROXY_PORTS = {"http": 3128, "socks5": 1080, "socks5h": 1080}
# What goes into a proxy's greeting as one byte of length.
_LONGEST_SECRET = 255


class EgressRefused(ValueError):
    """The setting `egress` cannot be used. The text says where, and holds no password."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that connects to venues: `kind` is "http" (CONNECT) or "socks5"."""

    kind: str
    host: str
    port: int
    user: str = ""
    password: Secret = field(default_factory=lambda: Secret(""), repr=False)


@dataclass(frozen=True, slots=True)
class Way:
    """One way out.

    `address` is what venues see, as the operator says; empty: not known. `counted_as` names the address by which the
    budgets of this way are kept: ways of one address share it, and it is empty for the machine's own.
    """

    name: str = DIRECT
    proxy: Proxy | None = None
    # An address of this machine, from which connections begin; empty: the system's choice.
    local_address: str = ""
    address: str = ""
    counted_as: str = ""


_DIRECT_WAY = Way()


@dataclass(frozen=True, slots=True)
class Egress:
    """Which way each account takes. Without arguments all take the direct one.

    `ways` are by name, the direct one among them; `venues` has the names of a venue's ways by the exchange's id or
    `EVERY_VENUE`; `pinned` the name of an account's way, by user, then by exchange id or "id.environment".
    """

    ways: Mapping[str, Way] = field(default_factory=lambda: MappingProxyType({DIRECT: _DIRECT_WAY}))
    venues: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pinned: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)

    def of_venue(self, exchange_id: str) -> tuple[Way, ...]:
        """The ways among which a venue's accounts are distributed."""
        names = self.venues.get(exchange_id) or self.venues.get(EVERY_VENUE) or (DIRECT,)
        return tuple(self.ways[name] for name in names)

    def of_account(self, account: Account, credential_of: str = "") -> Way:
        """The account's way: the one that it is pinned to, else one of its venue's. `credential_of` is the exchange
        whose credential it uses, if that is another one: such accounts share a way, as far as both have it."""
        stored = credential_of.lower() or account.exchange_id
        pinned = self._pin(account, account.exchange_id) or self._pin(account, stored)
        if pinned:
            return self.ways[pinned]
        ways = self.of_venue(account.exchange_id)
        if len(ways) == 1:
            return ways[0]
        # The highest of the hashes: a way that is added or taken away moves no account between the others.
        return max(ways, key=lambda way: _weight(way.name, account.user_id, stored, account.environment))

    def of_target(self, target: Target) -> Way:
        """The way of what a fetch is to read: in a plugin's process, the one that the service has chosen."""
        if not target.way:
            # The reference of a credential that is tried has a stand-in for its user.
            return self.of_account(target.account, target.reference.stored_as.exchange_id)
        way = self.ways.get(target.way)
        if way is None:
            # Never another one in its place: the venue may know this account by its address.
            raise VenueUnavailable(
                f"The way {target.way}, by which this account's venue is reached, is not known here."
            )
        return way

    def _pin(self, account: Account, exchange_id: str) -> str:
        of_user = self.pinned.get(account.user_id, {})
        return of_user.get(f"{exchange_id}.{account.environment}") or of_user.get(exchange_id, "")

    def serving(self, exchange_ids: Collection[str]) -> tuple[Way, ...]:
        """All ways that accounts of these exchanges may take, pinned ones included."""
        pins = (pin for of_user in self.pinned.values() for pin in of_user.items())
        names = {way for exchange, way in pins if exchange.partition(".")[0] in exchange_ids}
        names |= {way.name for exchange_id in exchange_ids for way in self.of_venue(exchange_id)}
        return tuple(way for name, way in self.ways.items() if name in names)

    def unused(self) -> list[str]:
        """The names of ways that no account takes."""
        used = {name for names in self.venues.values() for name in names}
        used |= {name for of_user in self.pinned.values() for name in of_user.values()}
        return [name for name in self.ways if name != DIRECT and name not in used]

    def addresses(self, exchange_id: str) -> tuple[str, ...]:
        """The addresses from which a venue may be asked, as far as they are known; pinned accounts' own are left
        out."""
        texts = (way.address for way in self.of_venue(exchange_id))
        return tuple(dict.fromkeys(part for text in texts for part in text.split(", ") if part))


def _weight(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).digest()


def read_egress(given: Mapping[str, Any], environment: Mapping[str, str], outgoing_address: str = "") -> Egress:
    """The setting `egress` as it is used; EgressRefused with a sentence if it cannot be.

    Passwords are read from the variables of `environment` that it names. `outgoing_address` is the direct way's. Which
    exchanges there are is not known here, see `named_exchanges`.
    """
    if unknown := _first_unknown(given, _PARTS):
        raise EgressRefused(f"has a part {unknown!r}.{_near(unknown, _PARTS)} Its parts are ways, venues and pinned.")
    direct = Way(address=outgoing_address)
    ways = {DIRECT: direct}
    for name, entry in _table(given.get("ways", {}), "ways").items():
        if name == DIRECT or not _NAME.match(name):
            raise EgressRefused(
                f"names a way {name[:40]!r}. A way's name has up to 32 lower-case letters, digits and hyphens, and is "
                "not 'direct', which needs no entry."
            )
        ways[name] = _read_way(name, _table(entry, f"the way {name}"), environment, direct)
    venues = {venue: _names(venue, value, ways) for venue, value in _table(given.get("venues", {}), "venues").items()}
    pinned = {user: _pins(value, ways) for user, value in _table(given.get("pinned", {}), "pinned").items()}
    return Egress(ways, venues, pinned)


def named_exchanges(egress: Egress) -> Iterator[tuple[str, str]]:
    """Where exchanges are named in it, each with the id or "id.environment"."""
    yield from (("venues", exchange) for exchange in egress.venues if exchange != EVERY_VENUE)
    yield from (("pinned", exchange) for of_user in egress.pinned.values() for exchange in of_user)


def _read_way(name: str, entry: Mapping[str, Any], environment: Mapping[str, str], direct: Way) -> Way:
    if unknown := _first_unknown(entry, _OF_A_WAY):
        raise EgressRefused(
            f"gives the way {name} a part {unknown!r}.{_near(unknown, _OF_A_WAY)} It has proxy (with user and "
            "password, if the proxy wants them) or local_address, and address."
        )
    if ("proxy" in entry) == ("local_address" in entry):
        raise EgressRefused(f'gives the way {name} neither or both of "proxy" and "local_address": write one of them.')
    local = _local_address(name, entry["local_address"]) if "local_address" in entry else ""
    proxy = _read_proxy(name, entry, environment) if "proxy" in entry else None
    if proxy is None and ("user" in entry or "password" in entry):
        raise EgressRefused(f"gives the way {name} a user or a password, and it has no proxy.")
    address = _address(name, entry.get("address"), local)
    # An address that the direct way has as well is counted with it.
    counted_as = "" if address and address == direct.address else address or name
    return Way(name, proxy, local, address, counted_as)


def _local_address(name: str, given: object) -> str:
    try:
        return str(ip_address(given if isinstance(given, str) else ""))
    except ValueError:
        raise EgressRefused(f"gives the way {name} a local_address that is not one IP address.") from None


def _address(name: str, given: object, local: str) -> str:
    if given is None:
        return local if local and ip_address(local).is_global else ""
    try:
        return spell_addresses(given if isinstance(given, str) else "")
    except ValueError as error:
        raise EgressRefused(f"gives the way {name} an address that cannot be used: {error}.") from None


def _read_proxy(name: str, entry: Mapping[str, Any], environment: Mapping[str, str]) -> Proxy:
    form = f"writes the proxy of the way {name} in a form that is not known: "
    parts, port = _split(entry["proxy"])
    if parts is None or not parts.hostname:
        raise EgressRefused(f"{form}it should be http://host:port or socks5://host:port.")
    if parts.username is not None or parts.password is not None:
        raise EgressRefused(
            f"writes a user or a password into the address of the proxy {name}: write them apart, as "
            '"user": "..." and "password": {"env": "NAME"}.'
        )
    if parts.scheme not in _PROXY_PORTS:
        raise EgressRefused(f"{form}it should begin with http:// or socks5://, and {name}'s does not.")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise EgressRefused(f"{form}it should end behind the port.")
    user, password = entry.get("user", ""), _password(name, entry.get("password"), environment)
    if not isinstance(user, str) or bool(user) != bool(password) or ":" in user:
        raise EgressRefused(f"should give the way {name} both a user (a text without a colon) and a password, or none.")
    if max(len(user.encode()), len(password.encode())) > _LONGEST_SECRET:
        raise EgressRefused(f"gives the way {name} a user or a password of more than {_LONGEST_SECRET} bytes.")
    kind = "http" if parts.scheme == "http" else "socks5"
    return Proxy(kind, parts.hostname, port or _PROXY_PORTS[parts.scheme], user, Secret(password))


def _split(given: object) -> tuple[SplitResult | None, int | None]:
    """The parts of an address and its port; None if it is not one."""
    try:
        parts = urlsplit(given if isinstance(given, str) else "")
        return parts, parts.port
    except ValueError:
        return None, None


def _password(name: str, given: object, environment: Mapping[str, str]) -> str:
    if given is None:
        return ""
    variable = given.get("env") if isinstance(given, Mapping) and set(given) == {"env"} else None
    if not isinstance(variable, str) or not _VARIABLE.match(variable):
        raise EgressRefused(
            f'should not hold the password of the way {name} itself: write {{"env": "NAME"}} with the name of an '
            "environment variable that holds it."
        )
    value = environment.get(variable, "").rstrip("\r\n")
    if not value.strip():
        raise EgressRefused(
            f"takes the password of the way {name} from an environment variable that is not set or empty. Set it where "
            "the service is started."
        )
    return value


def _names(venue: str, value: object, ways: Mapping[str, Way]) -> tuple[str, ...]:
    """The ways of a venue: a name, or a list of names."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise EgressRefused(f'should give {venue[:80]!r} a list of ways, such as ["direct"].')
    for name in names:
        _require_way(name, f"gives {venue[:80]!r}", ways)
    if len(set(names)) != len(names):
        raise EgressRefused(f"gives {venue[:80]!r} one way twice.")
    return tuple(names)


def _pins(value: object, ways: Mapping[str, Way]) -> Mapping[str, str]:
    pins = _table(value, "a user in pinned")
    for exchange, name in pins.items():
        _require_way(name, f"pins an account at {exchange[:80]!r} to", ways)
    return dict(pins)


def _require_way(name: object, says: str, ways: Mapping[str, Way]) -> None:
    if not isinstance(name, str) or name not in ways:
        shown = str(name)[:40]
        raise EgressRefused(
            f"{says} the way {shown!r}, which is not among its ways ({', '.join(ways)}).{_near(shown, tuple(ways))}"
        )


def _table(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise EgressRefused(f"should have an object of names for {what}.")
    return value


def _first_unknown(given: Mapping[str, Any], known: tuple[str, ...]) -> str:
    return next((name[:40] for name in given if name not in known), "")


def _near(name: str, known: tuple[str, ...]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
