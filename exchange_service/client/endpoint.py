"""Where the service is, and how a channel to it is made: addresses, options and the service config of gRPC."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exchange_service.addresses import host_of, is_ip_address, is_loopback, is_private
from exchange_service.client.failures import ServiceUnreachable

# How gRPC writes what a name stands for, and sockets of this machine.
_SCHEMES = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:")
# Those that lead to several addresses.
_SPREAD_SCHEMES = ("dns:", "ipv4:", "ipv6:")

_SERVICE = "exchange_service.v1.ExchangeService"
_KEEPALIVE = (
    # A dead connection is noticed within 40 seconds; by default it is not noticed at all.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A minute by default, which the line above does not change.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # Otherwise channels to one address share a connection, and its limit of open calls.
    ("grpc.use_local_subchannel_pool", 1),
)
# A replica that has been started again is tried within a second, and not after up to two minutes.
_RECONNECTING = (("grpc.max_reconnect_backoff_ms", 1000),)
# docs/operations.md, "Several replicas". gRPC heeds the delay in the trailer grpc-retry-pushback-ms, and does not try
# again if the service sends -1.
_RETRIES: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [{"service": _SERVICE, "method": name} for name in ("ListExchanges", "GetBalance")],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                # CANCELLED: gRPC's answer to a call that arrives in the moment in which a replica ends.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
    # After several failures in a row nothing is retried: retries would make the trouble of a service worse.
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
_SPREADING: dict[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    # A replica that says NOT_SERVING, because it is about to end, gets no further calls.
    "healthCheckConfig": {"serviceName": _SERVICE},
}

ChannelOptions = Sequence[tuple[str, Any]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address, or several replicas' addresses that are called in turn."""

    # As the caller gave it, several separated by commas.
    text: str
    # host:port of each replica; empty for one address, which gRPC reads itself.
    replicas: tuple[str, ...] = ()

    @property
    def local(self) -> bool:
        """Whether every address is on this machine."""
        return is_loopback(self.text)

    @property
    def spread(self) -> bool:
        """Whether calls go to several replicas in turn."""
        return bool(self.replicas) or self.text.startswith(_SPREAD_SCHEMES)

    @property
    def needs_lookup(self) -> bool:
        """Whether `target` asks for the addresses of names, which may take a while."""
        return not all(is_ip_address(host_of(one)) for one in self.replicas)

    @property
    def first_host(self) -> str:
        """The first address's host."""
        return host_of(self.text.removeprefix("dns:").lstrip("/").split(",")[0])

    def target(self) -> str:
        """What gRPC connects to. Raises ServiceUnreachable if no name has an address."""
        if not self.replicas:
            return self.text
        found = {4: list[str](), 6: list[str]()}
        for replica in self.replicas:
            for version, address in _addresses_of(replica):
                found[version].append(address)
        if not found[4] and not found[6]:
            raise ServiceUnreachable(
                f"The names in {self.text} have no address.", advice="Check the names, and this machine's DNS."
            )
        # gRPC takes several addresses of one kind only.
        version = 4 if len(found[4]) >= len(found[6]) else 6
        return f"ipv{version}:{','.join(dict.fromkeys(found[version]))}"

    def options(self, given: ChannelOptions, *, tls_name: str = "", retries: bool = True) -> list[tuple[str, Any]]:
        """The options of the channel; `given` ones take the place of ours. `tls_name`: the name in the certificate."""
        # By default gRPC sends a call to our own network, with its token, through the proxy that the environment names.
        made: list[tuple[str, Any]] = [*_KEEPALIVE, ("grpc.enable_http_proxy", 0 if is_private(self.text) else 1)]
        if retries:
            config = (_SPREADING | _RETRIES) if self.spread else _RETRIES
            # A config from DNS would take the place of ours.
            made += [*_RECONNECTING, ("grpc.service_config", json.dumps(config))]
            made.append(("grpc.service_config_disable_resolution", 1))
        if tls_name:
            made += [("grpc.ssl_target_name_override", tls_name), ("grpc.default_authority", tls_name)]
        elif self.replicas:
            # Otherwise all addresses together are taken for the name that the certificate should have.
            made.append(("grpc.default_authority", self.first_host))
        names = {name for name, _ in given}
        return [*((name, value) for name, value in made if name not in names), *given]


def endpoint_of(address: str | Sequence[str]) -> Endpoint:
    """The endpoint that the address names: host:port, several with commas or in a sequence, or a target of gRPC.

    Raises ValueError for an empty address, and for one among several that is not host:port.
    """
    parts = address.split(",") if isinstance(address, str) else list(address)
    parts = [part.strip() for part in parts]
    text = ",".join(parts)
    if not text or not all(parts):
        raise ValueError("An address is empty: give the service's host:port, such as 127.0.0.1:50051.")
    if len(parts) == 1 or (text.startswith(_SCHEMES) and isinstance(address, str)):
        return Endpoint(text)
    for part in parts:
        if part.startswith(_SCHEMES) or not part.rpartition(":")[2].isdigit():
            raise ValueError(f"{part!r} cannot stand beside other addresses: give each as host:port.")
    literal = {":" in host_of(part) for part in parts if is_ip_address(host_of(part))}
    if len(literal) > 1:
        raise ValueError("gRPC takes several addresses of IPv4 or of IPv6, and not of both.")
    return Endpoint(text, tuple(parts))


def _addresses_of(replica: str) -> list[tuple[int, str]]:
    """The addresses of host:port with the version of IP of each; none if the name has none."""
    host, port = host_of(replica), replica.rpartition(":")[2]
    try:
        entries = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [
        (6, f"[{entry[4][0]}]:{port}") if entry[0] == socket.AF_INET6 else (4, f"{entry[4][0]}:{port}")
        for entry in entries
    ]
