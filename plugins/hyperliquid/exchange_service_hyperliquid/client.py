"""Hyperliquid over HTTP: one address, one request body a question, what is worth keeping, and errors as ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from exchange_service.plugin_api import (
    AddressNotAllowed,
    CredentialInvalid,
    RequestRefused,
    Response,
    VenueCall,
    VenueMalformed,
    read_metadata,
    wallet_address,
)
from exchange_service_hyperliquid import parse

T = TypeVar("T")

# All limits are per network address: 1200 weight a minute, of which most questions cost 20 and a role costs 60,
# while a state costs 2. So all but the states is kept. The mode may be, because a spot state tells when it has changed.
_MODE_AGE = 3600.0
_ROLE_AGE = 600.0
_SUB_ACCOUNT_LIST_AGE = 600.0
_DEX_LIST_AGE = 600.0
_TOKEN_TABLE_AGE = 3600.0
# A dex costs a request each refresh; no wallet needs more than this.
_MAX_DEXS = 20
_MAX_DEX_NAME = 32
# Kinds of account outside the default that the stored metadata may add to it, and the word there for each.
_ADDED_TYPES = {"vault": "vaults", "staking": "staking"}


class HyperliquidClient:
    """The questions that a balance needs. Addresses are in lower case, as the venue writes them."""

    def __init__(self, call: VenueCall) -> None:
        metadata = read_metadata(
            call.credential,
            wallet_address=str,
            l1_address=str,
            user=str,
            dexs=str,
            sub_accounts=bool,
            vaults=bool,
            staking=bool,
        )
        self.address = wallet_address(call.credential)
        self.dexs = _dex_names(metadata.get("dexs", ""))
        self.with_sub_accounts: bool = metadata.get("sub_accounts", False)
        self._added_types = [account_type for account_type, word in _ADDED_TYPES.items() if metadata.get(word)]
        self._call = call
        self._url = call.url() + "/info"

    def wants(self, account_type: str) -> bool:
        """Whether accounts of this type are read: those that the caller asks for, or, where he asks for none, the
        default and what the stored metadata add to it."""
        added = not self._call.account.account_type and account_type in self._added_types
        return added or self._call.wants(account_type)

    def needless_secrets(self) -> tuple[str, ...]:
        """A sentence for each secret that is stored although nothing here uses it."""
        credential = self._call.credential
        texts = {name: getattr(credential, name).reveal().strip() for name in ("api_key", "api_secret", "passphrase")}
        needless = [name for name, value in texts.items() if value and value.lower() != self.address]
        return tuple(f"Hyperliquid needs no {name} to be read: remove the stored one." for name in needless)

    async def mode(self, address: str) -> str:
        """The account mode, such as "default" or "unifiedAccount": it decides what the states mean."""

        async def ask() -> str:
            return parse.mode(await self._info("userAbstraction", user=address))

        mode = await self._call.account_state.get(f"mode {address}", ask, max_age=_MODE_AGE)
        if mode not in parse.STANDARD_MODES | parse.UNIFIED_MODES:
            # It may as well be a slip of the venue's, and then it should not last.
            self._call.account_state.forget(f"mode {address}")
        return mode

    async def mode_anew(self, address: str) -> str:
        """The account mode as it is now, where a state contradicts the one that `mode` gave."""
        self._call.account_state.forget(f"mode {address}")
        return await self.mode(address)

    async def role(self, address: str) -> parse.Role:
        """What the venue knows an address as. Costs as much as thirty states: ask only where the states say nothing."""

        async def ask() -> parse.Role:
            return parse.role(await self._info("userRole", user=address))

        return await self._call.account_state.get(f"role {address}", ask, max_age=_ROLE_AGE)

    async def perp_state(self, address: str, dex: str = "") -> parse.PerpState:
        """An address's perpetuals on one dex; CredentialInvalid if the venue has no dex of this name."""
        collateral = await self._collateral(dex) if dex else parse.USDC
        return parse.perp_state(await self._info("clearinghouseState", user=address, dex=dex), dex, collateral)

    async def spot_state(self, address: str) -> parse.SpotState:
        """An address's spot tokens."""
        return parse.spot_state(await self._info("spotClearinghouseState", user=address))

    async def sub_accounts(self, address: str) -> list[parse.SubAccount]:
        """The sub-accounts of a main wallet."""

        async def ask() -> list[parse.SubAccount]:
            return parse.sub_accounts(await self._info("subAccounts", user=address), address)

        return await self._call.account_state.get(f"sub accounts {address}", ask, max_age=_SUB_ACCOUNT_LIST_AGE)

    async def vault_equities(self, address: str) -> Any:
        """What an address has put into vaults, as the venue sends it."""
        return await self._info("userVaultEquities", user=address)

    async def staking(self, address: str) -> Any:
        """What an address has staked, as the venue sends it."""
        return await self._info("delegatorSummary", user=address)

    async def _collateral(self, dex: str) -> str:
        """The code of the token that a builder dex reckons in: it need not be USDC, and the states do not say."""
        if dex not in await self._market(_DEX_LIST_AGE, parse.dex_names, "perpDexs"):
            raise CredentialInvalid(f"extra_metadata.dexs names {dex!r}, and Hyperliquid has no such dex.")
        token = await self._market(_TOKEN_TABLE_AGE, parse.collateral_token, "meta", dex=dex)
        names = await self._market(_TOKEN_TABLE_AGE, parse.token_names, "spotMeta")
        if token not in names:
            raise VenueMalformed("Hyperliquid's token table lacks the collateral of a dex.")
        return names[token]

    async def _market(self, max_age: float, read: Callable[[Any], T], type: str, **fields: str) -> T:
        """A table that all accounts share, read by `read`. Its name holds the address: test and live differ."""

        async def ask() -> T:
            return read(await self._info(type, public=True, **fields))

        name = " ".join((self._url, type, *fields.values()))
        return await self._call.plugin_state.get(name, ask, max_age=max_age)

    async def _info(self, type: str, *, public: bool = False, **fields: str) -> Any:
        http = self._call.public_http if public else self._call.http
        response = await http.post(self._url, json={"type": type, **fields})
        _raise_for_error(response)
        return response.json()


def _dex_names(listed: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))
    if len(names) > _MAX_DEXS:
        raise CredentialInvalid(f"extra_metadata.dexs names more than {_MAX_DEXS} dexs.")
    if any(len(name) > _MAX_DEX_NAME or not (name.isascii() and name.isalnum()) for name in names):
        raise CredentialInvalid("extra_metadata.dexs should be names with commas between them, such as xyz,flx.")
    return names


def _raise_for_error(response: Response) -> None:
    """Our words for the statuses that no key can cause here; the rest is as everywhere."""
    status = response.status
    if status == 200:
        return
    if status == 422:
        raise RequestRefused(
            "Hyperliquid cannot read the request (HTTP 422).", advice="Check the stored wallet_address and dexs."
        )
    if status == 403:
        # There is no key that could lack a right, so it is the gateway in front that does not want us.
        raise AddressNotAllowed("Hyperliquid's gateway refuses requests from this service's network address.")
    if status in (400, 401, 404, 405, 415):
        raise RequestRefused(f"Hyperliquid calls our request wrong (HTTP {status}).")
    response.raise_for_status()
    raise VenueMalformed(f"Hyperliquid answered with an unexpected status (HTTP {status}).")
