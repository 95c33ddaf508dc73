"""Addresses of services: whether one is on this machine or in a private network, and URLs that say what they mean."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

# A percent sign that does not begin an encoded byte.
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


# How gRPC writes what a name stands for, before one or several host:port.
_SCHEMES = ("dns:///", "dns:", "ipv4:", "ipv6:")
_UNIX = ("unix:", "unix-abstract:")
# Outgoing addresses: more do not fit into an error's advice.
_MOST_OUTGOING = 4
# The ends of names that only private networks know.
_PRIVATE_ENDS = (".local", ".internal", ".svc", ".lan", ".home.arpa", ".localhost")


def is_loopback(address: str) -> bool:
    """Whether a service's address is on this machine: host:port, unix:path, or as gRPC writes several of them."""
    return address.startswith(_UNIX) or all(is_loopback_host(host) for host in _hosts(address))


def is_private(address: str) -> bool:
    """Whether a service's address is on this machine or in a private network, where no proxy leads."""
    return address.startswith(_UNIX) or all(is_private_host(host) for host in _hosts(address))


def _hosts(address: str) -> list[str]:
    for scheme in _SCHEMES:
        if address.startswith(scheme):
            address = address.removeprefix(scheme)
            break
    return [host_of(part) for part in address.split(",")]


def host_of(part: str) -> str:
    """The host of host:port or [address]:port, or of one without a port."""
    host, colon, _ = part.rpartition(":")
    return (host if colon and not part.endswith("]") else part).strip("[]")


def is_private_host(host: str) -> bool:
    """Whether a host without its port is on this machine or in a private network."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.rstrip(".").lower()
        # A name of one word is one of this network's own.
        return "." not in name or name.endswith(_PRIVATE_ENDS)
    return address.is_private or address.is_link_local or address.is_loopback


def is_ip_address(host: str) -> bool:
    """Whether a host is an address and not a name, without brackets."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback_host(host: str) -> bool:
    """Whether a host is this machine: "localhost", or a loopback address of IPv4 or IPv6 without brackets."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Any other name, "127.example.com" too, may lead to another machine.
        return False


def encoding_problem(url: str) -> str:
    """What is wrong with the characters of a URL that may hold a password, without a part of it; empty if nothing is.

    A character such as # ends the address early if it is not encoded, and the rest of the password is then read as
    something else.
    """
    _, _, rest = url.partition("://")
    userinfo = rest.rpartition("@")[0]
    found = [name for name in "#/?@[]" if name in userinfo]
    if "#" in rest and "#" not in found:
        found.append("#")
    if _LONE_PERCENT.search(userinfo):
        found.append("%")
    if not found:
        return ""
    codes = ", ".join(f"{name} as %{ord(name):02X}" for name in found)
    return f"it holds characters that have a meaning in a URL: percent-encode the password ({codes})"


def spell_addresses(text: str) -> str:
    """IP addresses or networks with commas between them, in one form. ValueError, a sentence, for anything else, and
    for more than four."""
    try:
        networks = [ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",")]
    except ValueError:
        raise ValueError("it should be an IP address, or several with commas between them") from None
    if len(networks) > _MOST_OUTGOING:
        raise ValueError(f"it should be at most {_MOST_OUTGOING} addresses")
    single = (network.prefixlen == network.max_prefixlen for network in networks)
    return ", ".join(
        str(network.network_address) if alone else str(network) for network, alone in zip(networks, single, strict=True)
    )


def addresses_note(addresses: Sequence[str]) -> str:
    """The sentence about the service's addresses at the end of a listing's ip_whitelist; empty if none are known."""
    return f"This service calls from {', '.join(addresses)}." if addresses else ""
