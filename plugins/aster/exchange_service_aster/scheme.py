"""Aster's two schemes of signing: which one a stored credential is for, and the signed query of a request.

V3: an agent, which the wallet's owner registers, signs with its own private key. V1: an HMAC key, which Aster no
longer issues but still accepts.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any

from exchange_service.plugin_api import (
    SANDBOX,
    Credential,
    CredentialInvalid,
    NotSupported,
    VenueCall,
    clean_text,
    read_metadata,
    required_text,
    wallet_address,
)
from exchange_service_aster import signing
from exchange_service_aster.clock import VenueClock

V1 = "v1"
V3 = "v3"

_WALLET_NAMES = ("wallet_address", "l1_address", "user")
_ADDRESS = re.compile(r"0[xX][0-9a-fA-F]{40}\Z")
_PRIVATE_KEY = re.compile(r"(0[xX])?(?P<digits>[0-9a-fA-F]{64})\Z")
# The chain ids that an agent's signature contains.
_LIVE_CHAIN = 1666
_TEST_CHAIN = 714
# Milliseconds after its timestamp for which the venue accepts a V1 request.
_RECEIVE_WINDOW = 5000


class HmacScheme:
    """V1: the time and its HMAC in the query, the key in a header. The venue does not name the account."""

    account_id = ""
    futures_path = "/fapi/v4/account"
    spot_path = "/api/v1/account"
    futures_key_path = "/fapi/v1/listenKey"
    spot_key_path = "/api/v1/listenKey"

    def __init__(self, api_key: str, secret: str) -> None:
        self.headers = {"X-MBX-APIKEY": api_key}
        self._secret = secret

    def query(self, clock: VenueClock) -> str:
        """The signed query of one request that has no parameters of its own."""
        message = f"recvWindow={_RECEIVE_WINDOW}&timestamp={clock.milliseconds()}"
        return f"{message}&signature={signing.hmac_sha256(self._secret, message)}"

    def form(self, clock: VenueClock) -> str:
        """The body of a request for a listen key: the key in the header is enough."""
        return ""


class AgentScheme:
    """V3: a nonce, the wallet, the agent and the agent's signature in the query. Addresses are in lower case.

    Raises ValueError if the bytes are not a private key.
    """

    futures_path = "/fapi/v3/accountWithJoinMargin"
    spot_path = "/api/v3/account"
    futures_key_path = "/fapi/v3/listenKey"
    spot_key_path = "/api/v3/listenKey"

    def __init__(self, wallet: str, private_key: bytes, chain_id: int) -> None:
        self.headers: Mapping[str, str] = {}
        self.account_id = wallet
        self.agent = signing.address_of(private_key)
        self._private_key = private_key
        self._chain_id = chain_id

    def query(self, clock: VenueClock) -> str:
        """The signed query of one request that has no parameters of its own."""
        message = f"nonce={clock.next_nonce()}&user={self.account_id}&signer={self.agent}"
        return f"{message}&signature={signing.sign(self._private_key, message, self._chain_id)}"

    def form(self, clock: VenueClock) -> str:
        """The body of a request for a listen key."""
        return self.query(clock)


async def read_scheme(call: VenueCall) -> HmacScheme | AgentScheme:
    """The scheme of a call's credential.

    Raises CredentialInvalid with the name of the field that is missing or fits no scheme, and NotSupported for an
    agent if the library that signs for agents is not installed.
    """
    metadata = read_metadata(call.credential, wallet_address=str, l1_address=str, user=str, scheme=str)
    secret = clean_text(required_text(call.credential, "api_secret"), "api_secret")
    if _scheme_name(call.credential, metadata) == V1:
        return _hmac_scheme(call.credential, metadata, secret)
    wallet, private_key = _wallet(metadata), _private_key(secret)
    await call.plugin_state.get("signing", _load_signing)
    try:
        scheme = AgentScheme(wallet, private_key, _TEST_CHAIN if call.environment.name == SANDBOX else _LIVE_CHAIN)
    except ValueError:
        # The number is outside of the curve's range. The library's message is not passed on.
        raise CredentialInvalid("api_secret is not a private key: the number is out of range.") from None
    _check_agent(scheme, call.credential.api_key.reveal().strip())
    return scheme


async def _load_signing() -> None:
    try:
        await asyncio.to_thread(signing.load)
    except ImportError:
        raise NotSupported(
            "An agent's signature needs coincurve, which cannot be imported here: it has no release for Python 3.14. "
            "Older HMAC keys do not need it.",
            advice="Run the service with an earlier Python.",
        ) from None


def _scheme_name(credential: Credential, metadata: Mapping[str, Any]) -> str:
    """V1 or V3: the stored scheme, otherwise V1 for an API key that is not an address and has no wallet beside it.

    The secret does not decide: an HMAC secret may have as many hexadecimal digits as a private key.
    """
    named = metadata.get("scheme", "").lower()
    if named not in ("", V1, V3):
        raise CredentialInvalid("extra_metadata.scheme should be v1, v3 or left out.")
    api_key = credential.api_key.reveal().strip()
    if named or not api_key or _ADDRESS.match(api_key) or any(metadata.get(name) for name in _WALLET_NAMES):
        return named or V3
    return V1


def _hmac_scheme(credential: Credential, metadata: Mapping[str, Any], secret: str) -> HmacScheme:
    api_key = clean_text(required_text(credential, "api_key"), "api_key")
    for name in _WALLET_NAMES:
        if metadata.get(name):
            # The key decides which account is read, which need not be that wallet's.
            raise CredentialInvalid(
                f"extra_metadata.{name} cannot be stored with the scheme v1.", advice="Remove one of them."
            )
    if _ADDRESS.match(api_key):
        raise CredentialInvalid(
            "api_key is an address, but the scheme v1 needs an API key.", advice="Remove the scheme."
        )
    if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise CredentialInvalid("api_key is not an API key: it holds other than plain characters.")
    if secret[:2].lower() == "0x" and _PRIVATE_KEY.match(secret):
        raise CredentialInvalid(
            "api_secret is a private key of an agent, but api_key is an API key of the older scheme.",
            advice="Leave api_key empty for an agent, and store wallet_address.",
        )
    if not (secret.isascii() and secret.isprintable()):
        raise CredentialInvalid("api_secret is not an HMAC secret: it holds other than plain characters.")
    return HmacScheme(api_key, secret)


def _wallet(metadata: Mapping[str, Any]) -> str:
    # The API key is not read: here it is an agent's address, never the wallet's.
    if not any(metadata.get(name) for name in _WALLET_NAMES):
        raise CredentialInvalid(
            "extra_metadata.wallet_address is missing.",
            advice="Store the address of the main wallet that the agent acts for. For an HMAC key of the older scheme "
            "store its api_key instead.",
        )
    return wallet_address(Credential(metadata=metadata))


def _private_key(secret: str) -> bytes:
    match = _PRIVATE_KEY.match(secret)
    if match is None:
        raise CredentialInvalid(
            "api_secret is not a private key of an agent, which has 64 hexadecimal digits, with or without 0x.",
            advice="Store an HMAC key of the older scheme with its api_key and without wallet_address.",
        )
    return bytes.fromhex(match["digits"])


def _check_agent(scheme: AgentScheme, api_key: str) -> None:
    if scheme.agent == scheme.account_id:
        raise CredentialInvalid(
            "api_secret is the private key of the wallet itself, with which anybody can empty it.",
            advice="Delete it here, register an agent on Aster's page and store the agent's key.",
        )
    if api_key and not _ADDRESS.match(api_key):
        raise CredentialInvalid(
            "api_key is not an agent's address, which has 0x and 40 hexadecimal digits.",
            advice="Leave it empty for an agent; store an HMAC key of the older scheme without wallet_address.",
        )
    if api_key and api_key.lower() != scheme.agent:
        raise CredentialInvalid(
            "api_key is not the address of the key in api_secret.",
            advice="Store both of one agent, or leave api_key empty.",
        )
