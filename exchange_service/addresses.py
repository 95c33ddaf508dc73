"""Addresses of services: whether one is on this machine."""

from __future__ import annotations

import ipaddress


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
