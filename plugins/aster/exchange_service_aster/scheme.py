"""Which of Aster's two ways of signing a stored credential is for, and the signed query of a request.

V3: an agent that the wallet's owner registered signs with a private key of its own. V1: an HMAC key, which Aster no
longer issues but still takes.
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
# The chains in whose name an agent signs.
_LIVE_CHAIN = 1666
_TEST_CHAIN = 714
# Milliseconds for which the venue takes a V1 request after its timestamp.
_RECEIVE_WINDOW = 5000


class HmacScheme:
    """V1: the time and its HMAC in the query, the key in a header. It does not say whose account it reads."""

    account_id = ""
    futures_path = "/fapi/v4/account"
    spot_path = "/api/v1/account"

    def __init__(self, api_key: str, secret: str) -> None:
        self.headers = {"X-MBX-APIKEY": api_key}
        self._secret = secret

    def query(self, clock: VenueClock) -> str:
        """The signed query of one request that has no parameters of its own."""
        message = f"recvWindow={_RECEIVE_WINDOW}&timestamp={clock.milliseconds()}"
        return f"{message}&signature={signing.hmac_sha256(self._secret, message)}"


class AgentScheme:
    """V3: a nonce, the wallet, the agent and the agent's signature in the query. Addresses are in lower case.

    ValueError: the bytes are no private key.
    """

    futures_path = "/fapi/v3/accountWithJoinMargin"
    spot_path = "/api/v3/account"

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


async def read_scheme(call: VenueCall) -> HmacScheme | AgentScheme:
    """The scheme of a call's credential; CredentialInvalid names the field that is missing or fits no scheme.

    NotSupported: it is an agent's, and what signs for agents is not installed.
    """
    metadata = read_metadata(call.credential, wallet_address=str, l1_address=str, user=str, scheme=str)
    secret = required_text(call.credential, "api_secret")
    if _scheme_name(call.credential, metadata) == V1:
        return _hmac_scheme(call.credential, metadata, secret)
    wallet, private_key = _wallet(metadata), _private_key(secret)
    await call.plugin_state.get("signing", _load_signing)
    try:
        scheme = AgentScheme(wallet, private_key, _TEST_CHAIN if call.environment.name == SANDBOX else _LIVE_CHAIN)
    except ValueError:
        # Out of the curve's range. The library's text is left behind.
        raise CredentialInvalid("api_secret is no private key: the number is out of range.") from None
    _check_agent(scheme, call.credential.api_key.reveal().strip())
    return scheme


async def _load_signing() -> None:
    try:
        await asyncio.to_thread(signing.load)
    except ImportError:
        raise NotSupported(
            "An agent's signature needs coincurve, which cannot be imported here: it has no release for Python 3.14.",
            advice="Run the service with an earlier Python. Older HMAC keys are read without it.",
        ) from None


def _scheme_name(credential: Credential, metadata: Mapping[str, Any]) -> str:
    """V1 or V3: the stored word, else V1 for an API key that is no address and has no wallet beside it.

    The secret cannot tell: an HMAC secret may have as many hexadecimal digits as a private key.
    """
    named = metadata.get("scheme", "").lower()
    if named not in ("", V1, V3):
        raise CredentialInvalid("extra_metadata.scheme should be v1, v3 or left out.")
    api_key = credential.api_key.reveal().strip()
    if named or not api_key or _ADDRESS.match(api_key) or any(metadata.get(name) for name in _WALLET_NAMES):
        return named or V3
    return V1


def _hmac_scheme(credential: Credential, metadata: Mapping[str, Any], secret: str) -> HmacScheme:
    api_key = required_text(credential, "api_key")
    for name in _WALLET_NAMES:
        if metadata.get(name):
            # The key alone says whose account it reads, which need not be that wallet's.
            raise CredentialInvalid(f"extra_metadata.{name} does not go with the scheme v1.", advice="Leave one out.")
    if _ADDRESS.match(api_key):
        raise CredentialInvalid(
            "api_key is an address, and the scheme v1 takes an API key.", advice="Leave out the scheme."
        )
    if not (api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise CredentialInvalid("api_key is no API key: it holds other than plain characters.")
    if secret[:2].lower() == "0x" and _PRIVATE_KEY.match(secret):
        raise CredentialInvalid(
            "api_secret is a private key, as agents have one, and api_key is an API key of the older scheme.",
            advice="Leave api_key empty and store wallet_address if it is an agent's.",
        )
    if not (secret.isascii() and secret.isprintable()):
        raise CredentialInvalid("api_secret is no HMAC secret: it holds other than plain characters.")
    return HmacScheme(api_key, secret)


def _wallet(metadata: Mapping[str, Any]) -> str:
    # Without the API key, which is an agent's address here and never the wallet's.
    if not any(metadata.get(name) for name in _WALLET_NAMES):
        raise CredentialInvalid(
            "extra_metadata.wallet_address is missing.",
            advice="Store the address of the main wallet that the agent acts for. "
            "(An HMAC key of the older scheme needs its api_key instead.)",
        )
    return wallet_address(Credential(metadata=metadata))


def _private_key(secret: str) -> bytes:
    found = _PRIVATE_KEY.match(secret)
    if found is None:
        raise CredentialInvalid(
            "api_secret is no private key of an agent: 64 hexadecimal digits, with or without 0x.",
            advice="Store the agent's key. An HMAC key of the older scheme goes with its api_key and without "
            "wallet_address.",
        )
    return bytes.fromhex(found["digits"])


def _check_agent(scheme: AgentScheme, api_key: str) -> None:
    if scheme.agent == scheme.account_id:
        raise CredentialInvalid(
            "api_secret is the private key of the wallet itself.",
            advice="Delete it here, register an agent on Aster's page and store the agent's key: the wallet's key is "
            "all that is needed to empty it.",
        )
    if api_key and not _ADDRESS.match(api_key):
        raise CredentialInvalid(
            "api_key is no agent's address: 0x and 40 hexadecimal digits.",
            advice="Leave it empty for an agent; an HMAC key of the older scheme goes without wallet_address.",
        )
    if api_key and api_key.lower() != scheme.agent:
        raise CredentialInvalid(
            "api_key is another address than that of the key in api_secret.",
            advice="Store what belongs to one agent, or leave api_key empty.",
        )
