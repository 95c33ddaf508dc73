"""Addresses of services: whether one is on this machine or in a private network, and URLs that say what they mean."""

from __future__ import annotations

import ipaddress
import re

# A percent sign that does not begin an encoded byte.
_LONE_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def is_loopback(address: str) -> bool:
    """Whether a service's address, host:port or unix:path, is on this machine."""
    return address.startswith("unix:") or is_loopback_host(address.rpartition(":")[0].strip("[]"))


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
