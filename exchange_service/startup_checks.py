"""Settings that the service refuses to start with, each with a sentence that says which to change."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib.util import find_spec
from urllib.parse import urlsplit

from exchange_service.addresses import host_of, is_loopback_host
from exchange_service.cache import check_url as check_cache_url
from exchange_service.credentials.engine import database_address
from exchange_service.identity.methods import certificate_scopes
from exchange_service.settings import Settings
from exchange_service.venues.egress import Egress, EgressRefused, named_exchanges, read_egress
from exchange_service.venues.loading import goes_by
from exchange_service.venues.registry import Registry

_KEY_LOG = "SSLKEYLOGFILE"
# What `sslmode` has to be for a PostgreSQL on another host: by default its library goes on without TLS.
_ENCRYPTED = ("require", "verify-ca", "verify-full")


class UnsafeSettings(Exception):
    """Settings that contradict each other or would open the service to others; the text says which to change."""


def check_urls(settings: Settings) -> None:
    """Raise UnsafeSettings for a URL that its library cannot read; the text has no part of it."""
    for name, check in (("cache_url", check_cache_url), ("database_url", database_address)):
        try:
            check(getattr(settings, name))
        except ValueError as error:
            raise UnsafeSettings(f"{name}: {error}.") from None


def check_settings(settings: Settings) -> None:
    """Raise UnsafeSettings for settings that contradict each other or would open the service to others unprotected."""
    check_urls(settings)
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise UnsafeSettings("Set both tls_certificate and tls_key, or neither.")
    _check_engine(settings)
    _check_identity(settings)
    _check_openness(settings)
    _check_http(settings)
    if not settings.loopback and os.environ.get("GRPC_TRACE", "none") not in ("", "none"):
        # It is gRPC's own, and writes the metadata of every call, tokens included, past our log.
        raise UnsafeSettings("GRPC_TRACE is set, which writes callers' tokens to standard error: unset it.")
    if os.environ.get(_KEY_LOG):
        # Python's own TLS heeds it, and so every connection to a venue.
        raise UnsafeSettings(
            f"{_KEY_LOG} is set, which writes the keys of connections to venues to a file, and with them users' "
            "credentials can be read off the network: unset it."
        )
    if not settings.metrics_on_loopback and not settings.metrics_open:
        raise UnsafeSettings(
            f"{settings.metrics_address} can be reached by others, and metrics tell who is served and how much: set "
            "metrics_address to a loopback one, or metrics_open=true to show them to everybody who can reach the port."
        )
    if settings.keyset_file is not None and settings.keyset is not None:
        raise UnsafeSettings("Set either keyset_file or keyset: nothing says which of two keysets seals.")
    _check_manager(settings)
    if not settings.allow_plaintext and settings.keyset_file is None and settings.keyset is None:
        raise UnsafeSettings("allow_plaintext=false leaves nothing to read without a keyset: set keyset_file.")


def _check_manager(settings: Settings) -> None:
    """Raise UnsafeSettings if the keyset's manager cannot be asked as the settings and Vault's variables say."""
    if settings.keyset_key is None:
        return
    if settings.keyset_file is None and settings.keyset is None:
        raise UnsafeSettings("keyset_key opens a keyset, and there is no keyset: set keyset_file.")
    # Late: few services have a manager of keys.
    from exchange_service.credentials.vault import unusable

    if problem := unusable(settings.keyset_login):
        raise UnsafeSettings(problem)


def _check_engine(settings: Settings) -> None:
    """Raise UnsafeSettings if the native engine is chosen and cannot do what other settings ask for."""
    if settings.engine != "native":
        return
    for name in ("tls_certificate", "tls_client_ca", "client_certificates"):
        if getattr(settings, name):
            raise UnsafeSettings(f"engine=native has no TLS, and {name} needs it: set engine=grpcio, or unset {name}.")
    if find_spec("pygrpc_native") is None:
        raise UnsafeSettings(
            "engine=native needs the package pygrpc-native, which is not installed: install exchange-service[native], "
            "or set engine=grpcio."
        )


def _check_identity(settings: Settings) -> None:
    """Raise UnsafeSettings if the authentication methods contradict each other."""
    if settings.jwt_jwks_url and settings.jwt_jwks_file:
        raise UnsafeSettings("Set jwt_jwks_url or jwt_jwks_file, not both.")
    if settings.knows_callers and (settings.open_to_all or settings.insecure):
        name = "open_to_all" if settings.open_to_all else "insecure"
        raise UnsafeSettings(f"{name} serves anybody, and other settings tell callers apart. Set one or the other.")
    if settings.tls_client_ca and not settings.tls_certificate:
        raise UnsafeSettings("tls_client_ca needs TLS: set tls_certificate and tls_key.")
    if settings.client_certificates and not settings.tls_client_ca:
        raise UnsafeSettings("client_certificates needs tls_client_ca, by which the certificates are checked.")
    if settings.tls_client_ca and not settings.knows_callers and not settings.open_to_all:
        raise UnsafeSettings("tls_client_ca alone does not say whom a caller may read: add client_certificates.")
    try:
        certificate_scopes(settings)
    except ValueError as error:
        raise UnsafeSettings(str(error)) from None


def _check_openness(settings: Settings) -> None:
    """Raise UnsafeSettings if programs of other machines could read without authentication, or overhear."""
    if settings.loopback:
        return
    exposed = settings.exposed[0]
    if settings.manage_accounts and not settings.knows_callers:
        raise UnsafeSettings(
            f"{exposed} can be reached by others, and with manage_accounts anybody who reaches the port could "
            "replace and remove users' credentials: set service_tokens, jwt_secret, jwt_jwks_url, or tls_client_ca "
            "with client_certificates; or manage_accounts=false."
        )
    if not settings.tls_certificate and settings.knows_callers:
        raise UnsafeSettings(
            f"{exposed} can be reached by others, and without TLS the callers' tokens would cross the "
            "network in the clear: set tls_certificate and tls_key."
        )
    if not settings.tls_certificate and not settings.insecure:
        raise UnsafeSettings(
            f"{exposed} can be reached by others and TLS is not set: set tls_certificate and tls_key, and a "
            "way to tell callers apart, such as service_tokens; or insecure=true to serve anybody who reaches the port."
        )
    if not (settings.knows_callers or settings.open_to_all or settings.insecure):
        raise UnsafeSettings(
            f"{exposed} can be reached by others, and nothing tells callers apart: set service_tokens, "
            "jwt_secret, jwt_jwks_url, or tls_client_ca with client_certificates; or open_to_all=true to show every "
            "user's balances to anybody who reaches the port."
        )


def _check_http(settings: Settings) -> None:
    """Raise UnsafeSettings if nobody could be served over HTTP, or a setting for it has nothing to work on."""
    if settings.http_address is None:
        for name in ("console", "http_origins", "http_hosts"):
            if getattr(settings, name):
                raise UnsafeSettings(f"{name} needs http_address, the address on which browsers are served.")
    elif settings.knows_callers and not settings.takes_tokens:
        raise UnsafeSettings(
            "http_address serves callers by their tokens, and only client certificates are accepted: set "
            "service_tokens, jwt_secret or jwt_jwks_url, or unset http_address."
        )


def venue_overrides(settings: Settings, registry: Registry) -> dict[str, str]:
    """The operator's addresses in place of venues', by "id" or "id.environment", of those that are served.

    Raises UnsafeSettings for one that no plugin serves, if all plugins are loaded: after a slip of the pen real keys
    would go to the real venue. If one is not loaded, the exchange may be its own; see `unused_settings`.
    """
    overrides = {}
    for name, url in settings.venue_urls.items():
        exchange_id, dot, environment = name.partition(".")
        listing = registry.listings.get(exchange_id)
        known = listing.metadata.environment(environment) if listing and environment else None
        if listing is None and _may_be_unlisted(exchange_id, registry):
            continue
        if listing is None or (dot and known is None):
            raise UnsafeSettings(
                f"venue_urls names {name!r}, which no plugin serves. It should be an exchange's id, or id.environment."
            )
        overrides[f"{exchange_id}.{known.name}" if known else exchange_id] = url
    return overrides


def open_egress(settings: Settings, registry: Registry) -> Egress:
    """The ways out, with the passwords that the environment holds. Raises UnsafeSettings for a setting `egress` that
    cannot be used on this machine, or that names an exchange which no plugin serves."""
    try:
        egress = read_egress(settings.egress, os.environ, settings.outgoing_address or "")
    except EgressRefused as refused:
        raise UnsafeSettings(f"egress {refused}") from None
    for part, name in named_exchanges(egress):
        _check_exchange(part, name, registry)
    for way in egress.ways.values():
        if way.proxy is not None and way.proxy.kind == "socks5" and find_spec("python_socks") is None:
            raise UnsafeSettings(
                f"egress gives the way {way.name} a SOCKS proxy, which needs a package that is not installed: install "
                "exchange-service[socks]."
            )
        if way.local_address and not _is_of_this_machine(way.local_address):
            raise UnsafeSettings(
                f"egress gives the way {way.name} the local_address {way.local_address}, which is not one of this "
                "machine: add it to a network interface, or remove the way."
            )
    return egress


def _check_exchange(part: str, name: str, registry: Registry) -> None:
    exchange_id, dot, environment = name.partition(".")
    listing = registry.listings.get(exchange_id)
    if listing is None and _may_be_unlisted(exchange_id, registry):
        return
    environments = {item.name for item in listing.metadata.environments} if listing is not None else set()
    if listing is None or (dot and (part == "venues" or environment not in environments)):
        near = get_close_matches(exchange_id, registry.listings, n=1)
        meant = f" Did you mean {near[0]!r}?" if near and listing is None else ""
        form = "an exchange's id" if part == "venues" else "an exchange's id, or id.environment"
        raise UnsafeSettings(
            f"egress names {name[:80]!r} in {part}, which no plugin serves.{meant} It should be {form}."
        )


def _is_of_this_machine(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((address, 0))
        return True
    return False


def _may_be_unlisted(exchange_id: str, registry: Registry) -> bool:
    """Whether an id that nobody serves may be one that a plugin would serve if nothing were wrong with it."""
    return bool(registry.not_loaded) or registry.has_unlisted(exchange_id)


def check_plugin_settings(settings: Settings, registry: Registry) -> None:
    """Raise UnsafeSettings for a setting that names a plugin which is not installed."""
    installed = [plugin.info for plugin in registry.plugins] + [item.plugin for item in registry.problems]
    # Of a plugin that was not found in an environment of its own, the distribution's name is not known.
    unknown = any(info.name in settings.plugin_interpreters and not info.distribution for info in installed)
    for exchange_id, choice in settings.exchange_plugins.items():
        if not unknown and not any(goes_by(info, choice) for info in installed):
            raise UnsafeSettings(f"exchange_plugins gives {exchange_id!r} to {choice!r}, which is not installed.")
    named = {info.name for info in installed}
    for setting in ("plugin_processes", "plugin_process_counts", "plugin_memory"):
        for name in getattr(settings, setting):
            if name not in named:
                raise UnsafeSettings(f"{setting} names {name!r}, which is not an installed plugin.")


def unencrypted_warnings(settings: Settings) -> list[str]:
    """A sentence for each connection to another machine that is not encrypted for certain, and for secrets of other
    people that would be stored in plain text."""
    warnings = []
    database = database_address(settings.database_url)
    if database.get_backend_name() == "postgresql":
        named = [database.host or "", *_as_list(database.query.get("host", ""))]
        # As its library does if the URL names none.
        hosts = [host for host in named if host] or [os.environ.get("PGHOST", "")]
        hosts += _as_list(database.query.get("hostaddr", ""))
        mode = _as_list(database.query.get("sslmode", os.environ.get("PGSSLMODE", "")))
        if any(_is_elsewhere(host) for host in hosts) and not (mode and mode[-1] in _ENCRYPTED):
            warnings.append(
                "database_url leads to another machine, and without TLS if the server has none: add "
                "?sslmode=verify-full&sslrootcert=FILE to it, or sslmode=require to encrypt only."
            )
    cache = urlsplit(settings.cache_url)
    if cache.scheme == "redis" and _is_elsewhere(cache.hostname or "localhost"):
        warnings.append("cache_url leads to another machine in plain text: use rediss://.")
    receiver = urlsplit(settings.traces_endpoint or "")
    if settings.traces == "otlp" and receiver.scheme == "http" and _is_elsewhere(receiver.hostname or "localhost"):
        warnings.append("traces_endpoint leads to another machine in plain text: use https://.")
    if settings.manage_accounts and settings.knows_callers and not (settings.keyset_file or settings.keyset):
        warnings.append(
            "manage_accounts lets callers store credentials, and without a keyset they are stored in plain text: set "
            "keyset_file."
        )
    return warnings


def _as_list(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _is_elsewhere(hosts: str) -> bool:
    """Whether one of these hosts, with or without a port, is another machine; a path is that of a socket."""
    return any(
        not host.startswith(("/", "@")) and not any(map(is_loopback_host, (host.strip("[]"), host_of(host))))
        for host in hosts.split(",")
        if host
    )


def unused_settings(settings: Settings, registry: Registry) -> list[str]:
    """A sentence for each setting that has no effect, because the plugin that it is for is not loaded or does not serve
    what it names."""
    sentences = []
    for name in settings.venue_urls:
        exchange_id = name.partition(".")[0]
        if exchange_id not in registry.listings and _may_be_unlisted(exchange_id, registry):
            sentences.append(f"venue_urls names {name!r}, which no plugin serves now.{_not_loaded(registry)}")
    for exchange_id, choice in settings.exchange_plugins.items():
        chosen = [plugin for plugin in registry.plugins if goes_by(plugin.info, choice)]
        ids = {metadata.id for plugin in chosen for metadata in plugin.manifest.exchanges}
        if exchange_id not in ids:
            lists = "does not list it" if chosen else "is not loaded"
            sentences.append(f"exchange_plugins gives {exchange_id!r} to {choice!r}, which {lists}.")
    for exchange_id in settings.polled_exchanges:
        if exchange_id not in registry.listings:
            sentences.append(f"polled_exchanges names {exchange_id!r}, which no plugin serves now.")
    sentences += _unused_ways(settings, registry)
    loaded = {plugin.info.name for plugin in registry.plugins}
    for setting in ("plugin_processes", "plugin_process_counts", "plugin_memory"):
        for name in getattr(settings, setting):
            if name not in loaded and any(item.plugin.name == name for item in registry.not_loaded):
                sentences.append(f"{setting} names {name!r}, which is not loaded.")
    return sentences + [_unused_plugin_settings(name, registry) for name in _unused_names(settings, registry)]


def _unused_ways(settings: Settings, registry: Registry) -> Iterator[str]:
    with suppress(EgressRefused):
        egress = read_egress(settings.egress, os.environ)
        for name in egress.unused():
            yield f"egress has the way {name!r}, which no venue and no pinned account uses."
        for part, name in named_exchanges(egress):
            exchange_id = name.partition(".")[0]
            if exchange_id not in registry.listings and _may_be_unlisted(exchange_id, registry):
                yield f"egress names {name!r} in {part}, which no plugin serves now.{_not_loaded(registry)}"


def _unused_names(settings: Settings, registry: Registry) -> Iterator[str]:
    """The names in plugin_settings of no plugin that is loaded."""
    for name in settings.plugin_settings:
        if not any(goes_by(plugin.info, name) for plugin in registry.plugins):
            yield name


def _unused_plugin_settings(name: str, registry: Registry) -> str:
    installed = any(goes_by(item.plugin, name) for item in registry.not_loaded)
    return f"plugin_settings names {name!r}, which is {'not loaded' if installed else 'not an installed plugin'}."


def _not_loaded(registry: Registry) -> str:
    """The plugins that could not be loaded, each with its reason: an exchange that is missing may be one of theirs."""
    return "".join(f" The plugin {item.plugin.name} was not loaded: {item.reason}" for item in registry.not_loaded)
