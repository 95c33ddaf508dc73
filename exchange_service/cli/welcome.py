"""What the demo prints once it serves: how it listens, its users, and commands that work as they are printed."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from pathlib import Path

from exchange_service.addresses import host_of
from exchange_service.app import Service
from exchange_service.cli.columns import Column, Columns
from exchange_service.cli.demo import HTTP_ADDRESS, MAIN_USER, REDIS_HASH_KEY, SITUATION_NOTES, Demo, user_of
from exchange_service.cli.outcome import console, plain
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.settings import Settings

_DEFAULT_ADDRESS = "127.0.0.1:50051"
# Addresses to listen on, by what to call in their place.
_EVERY_INTERFACE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104


def print_welcome(running: Demo, seconds: float) -> None:
    """Print all of it; the demo took this long to start."""
    service = running.service
    how = f"({_transport(service.settings)}), ready in {seconds:.1f} s"
    console.print(f"[bold]exchange-service[/] listens on {service.address} {how}", soft_wrap=True)
    _print_console(service)
    console.print(f"cache      {running.cache}", soft_wrap=True)
    console.print(f"database   {running.database}", soft_wrap=True)
    for name, url in running.venues.items():
        console.print(f"simulated  {name} at {url}", soft_wrap=True)
    console.print(f"keys       of the simulated venues, to type and to break: {running.site.url}", soft_wrap=True)
    console.print("[yellow]The venues are simulated on this machine: no real account, no real money.[/]\n")
    console.print(_users(running))
    console.print("\nTry next, in a second terminal (`. .venv/bin/activate` first):")
    for command in commands(running):
        console.print(f"  {plain(command)}", soft_wrap=True)
    console.print("\nInterrupt (Ctrl-C) to end.")


def _transport(settings: Settings) -> str:
    """How the service is called, and what its callers must show."""
    transport = "plaintext"
    if settings.tls_certificate is not None:
        transport = "TLS, with client certificates" if settings.tls_client_ca is not None else "TLS"
    methods = ["a service token"] * settings.service_tokens + ["a JWT"] * _takes_web_tokens(settings)
    if methods:
        transport += f"; callers need {' or '.join(methods)}"
    return f"gRPC, {transport}"


def _takes_web_tokens(settings: Settings) -> bool:
    return bool(settings.jwt_secret or settings.jwt_jwks_url or settings.jwt_jwks_file)


def _print_console(service: Service) -> None:
    url = service.web.console_url(MAIN_USER)
    if not url:
        return
    console.print(f"console    {url}", soft_wrap=True)
    # If callers are known, people sign in there with what identifies them.
    texts = [] if service.settings.knows_callers else ["This link signs in once, in one browser."]
    if service.settings.http_address == "127.0.0.1:0":
        texts.append(f"{HTTP_ADDRESS} is taken, so it has another port.")
    if texts:
        console.print(f"           {' '.join(texts)}")


def _users(running: Demo) -> Columns:
    users = Columns(Column("demo user", whole=True), Column("exchanges"), Column("what it shows"))
    for situation, note in SITUATION_NOTES.items():
        user = user_of(situation)
        if user in running.users:
            users.add(user, _list_exchanges(running.users[user], running.venues), note)
    return users


def _list_exchanges(exchanges: Collection[str], venues: Collection[str]) -> str:
    """The names of the exchanges, or of those that are missing, whichever list is shorter."""
    missing = [name for name in venues if name not in exchanges]
    if len(missing) < len(exchanges):
        return f"all but {', '.join(missing)}" if missing else "all"
    return ", ".join(exchanges)


def commands(running: Demo) -> Iterator[str]:
    """Commands for another terminal: first what makes the caller known, then three calls."""
    service = running.service
    yield from _credentials(running)
    flags = "".join(f" {flag}" for flag in _flags(service.settings, service.address))
    # A plugin's author may have installed no plugin but their own.
    exchange = "oanda" if "oanda" in running.venues else next(iter(running.venues), "oanda")
    for command in ("exchanges", f"balance --user {MAIN_USER} --exchange {exchange}", f"watch --user {MAIN_USER}"):
        yield f"exchange-service {command}{flags}"


def _credentials(running: Demo) -> Iterator[str]:
    settings = running.service.settings
    if settings.tls_client_ca is not None:
        authority = f"one that {settings.tls_client_ca.absolute()} has signed"
        yield f"export {ENVIRONMENT_PREFIX}CLIENT_CERTIFICATE=FILE  # {authority}"
        yield f"export {ENVIRONMENT_PREFIX}CLIENT_KEY=FILE  # its private key"
    if settings.service_tokens:
        # Tokens are signed by a key that is made of the hash key, which the demo chooses for its Redis.
        hash_key = settings.hash_key.get_secret_value() if settings.hash_key is not None else ""
        prefix = f"{ENVIRONMENT_PREFIX}HASH_KEY={shlex.quote(hash_key)} " if hash_key == REDIS_HASH_KEY else ""
        create = "exchange-service tokens create --name demo --all-users --service-tokens --database-url"
        yield f"export {ENVIRONMENT_PREFIX}TOKEN=$({prefix}{create} {shlex.quote(running.database)})"
    elif _takes_web_tokens(settings):
        yield f"export {ENVIRONMENT_PREFIX}TOKEN=JWT  # one that your settings accept"


def _flags(settings: Settings, address: str) -> Iterator[str]:
    """The flags with which a command reaches this demo, whatever its environment has."""
    certificate = settings.tls_certificate
    if certificate is not None:
        # It may be trusted for itself, by itself.
        yield f"--tls --tls-ca {shlex.quote(str(certificate.absolute()))}"
        address = _certified(address, certificate)
    else:
        host = host_of(address)
        address = address.replace(host, _EVERY_INTERFACE.get(host, host).strip("[]"))
    if address != _DEFAULT_ADDRESS:
        yield f"--address {address}"


def _certified(address: str, certificate: Path) -> str:
    """The address to call, with a host that the certificate names, if it names any."""
    from cryptography import x509

    port = address.rpartition(":")[2]
    host = host_of(address)
    host = _EVERY_INTERFACE.get(host, host)
    try:
        (own, *_) = x509.load_pem_x509_certificates(certificate.read_bytes())
        named = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return f"{host}:{port}"
    names = named.get_values_for_type(x509.DNSName)
    addresses = [str(one) for one in named.get_values_for_type(x509.IPAddress)]
    if host.strip("[]") in (*names, *addresses):
        return f"{host}:{port}"
    own_names = [name for name in names if not name.startswith("*")]
    return f"{'localhost' if 'localhost' in own_names else next(iter(own_names), host)}:{port}"
