"""CCXT's description of an exchange as one entry of the snapshot. Pure functions of plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from exchange_service_ccxt_generic.account_types import account_types
from exchange_service_ccxt_generic.refusals import unsupported_reason

_MARKETS = (("spot", "Spot"), ("margin", "Margin"), ("swap", "Swap"), ("future", "Future"), ("option", "Option"))

# Alpaca trades shares too; everything else in CCXT is crypto.
_ASSET_CLASSES = {"alpaca": "Multi-Asset"}

# CCXT's credential, our field for it, its label, and whether it is a secret.
_FIELDS: tuple[tuple[str, str, str, bool], ...] = (
    ("apiKey", "api_key", "API key", True),
    ("secret", "api_secret", "API secret", True),
    ("password", "passphrase", "API passphrase", True),
    ("uid", "uid", "User ID", False),
    ("accountId", "account_id", "Account ID", False),
    ("login", "login", "Login name", False),
    ("walletAddress", "wallet_address", "Wallet address", False),
)

# Reading needs the wallet's address here, although CCXT does not declare it.
_WALLET_NEEDED = frozenset({"dydx", "pacifica"})


def required_credentials(exchange_id: str, declared: Mapping[str, Any]) -> tuple[str, ...]:
    """CCXT's names of the credentials that a user must store."""
    names = {name for name, needed in declared.items() if needed}
    if exchange_id in _WALLET_NEEDED:
        names.add("walletAddress")
    return tuple(sorted(names))


def credential_fields(required: tuple[str, ...]) -> list[dict[str, Any]]:
    """Our fields for CCXT's required credentials, in the order of a form.

    A wallet's private key goes into `api_secret`, the sealed column, unless the exchange has a secret besides.
    """
    fields = [
        {"name": name, "label": label, "secret": secret} for key, name, label, secret in _FIELDS if key in required
    ]
    if "privateKey" in required:
        name = "private_key" if "secret" in required else "api_secret"
        fields.append({"name": name, "label": "Private key", "secret": True})
    return fields


def flat_urls(api: Any, hostname: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each address with its dotted name, `{hostname}` filled in; `api` is a text or nested objects of texts."""
    if isinstance(api, str):
        yield prefix or "api", api.replace("{hostname}", hostname or "")
    elif isinstance(api, Mapping):
        for name, below in api.items():
            yield from flat_urls(below, hostname, f"{prefix}.{name}" if prefix else str(name))


def environment_urls(urls: Mapping[str, Any], hostname: str) -> dict[str, str]:
    """Every address that an exchange uses, by dotted name."""
    found = dict(flat_urls(urls.get("api"), hostname))
    # htx has the hosts of its sections outside of its addresses.
    hosts = urls.get("hostnames")
    if isinstance(hosts, Mapping):
        found.update({f"hostnames.{name}": f"https://{host}" for name, host in hosts.items()})
    return found


def socket_urls(urls: Mapping[str, Any], hostname: str) -> dict[str, str]:
    """Every address of a socket, by dotted name; `urls` are those of CCXT's class for sockets."""
    # BitoPro has them outside of its addresses.
    found = {**dict(flat_urls(urls.get("ws"), hostname, "ws")), **dict(flat_urls(urls.get("api"), hostname))}
    return {name: url for name, url in found.items() if url.startswith("wss://")}


def _first_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        value = value[0] if value else ""
    if isinstance(value, Mapping):
        value = value.get("url", "")
    return value if isinstance(value, str) else ""


def _instructions(name: str, credential_url: str, site: str) -> str:
    where = credential_url or site
    if credential_url:
        return f"Create an API key for {name} that may only read, at {where}."
    if site:
        return f"Sign in to {name} at {where} and create an API key that may only read."
    return f"Sign in to {name} and create an API key that may only read."


def entry(
    described: Mapping[str, Any], production: Mapping[str, str], sandbox: Mapping[str, str] | None
) -> dict[str, Any]:
    """One exchange of the snapshot, from its description and the addresses of its environments."""
    exchange_id, name, urls, has = described["id"], described["name"], described["urls"], described["has"]
    required = required_credentials(exchange_id, described["requiredCredentials"])
    credential_url = _first_text(urls.get("api_management"))
    documentation = urls.get("doc") or urls.get("www")
    return {
        "id": exchange_id,
        "name": name,
        "asset_class": _ASSET_CLASSES.get(exchange_id, "Crypto"),
        "asset_types": " • ".join(label for key, label in _MARKETS if has.get(key)),
        "logo": _first_text(urls.get("logo")),
        "requires_passphrase": "password" in required,
        "requires_account_id": "uid" in required or "accountId" in required,
        "instructions": _instructions(name, credential_url, _first_text(urls.get("www"))),
        "required": list(required),
        "credential_fields": credential_fields(required),
        "account_types": list(account_types(exchange_id, has)),
        "documentation_url": _first_text(documentation),
        "credential_url": credential_url,
        "countries": [country for country in described.get("countries") or () if isinstance(country, str)],
        "production": dict(production),
        "sandbox": None if sandbox is None else dict(sandbox),
        "unsupported_reason": unsupported_reason(exchange_id),
        # Milliseconds between two requests of the smallest cost.
        "rate_limit": described["rateLimit"],
    }
