"""Hyperliquid over HTTP: the requests, how long their answers are kept, and which VenueError each error is."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from exchange_service.plugin_api import (
    SECRET_FIELDS,
    AddressNotAllowed,
    CredentialInvalid,
    RequestRefused,
    Response,
    VenueCall,
    VenueMalformed,
    gateway_error,
    raise_unexpected_status,
    read_metadata,
    require_same_accounts,
    wallet_address,
)
from exchange_service_hyperliquid import parse

T = TypeVar("T")

# Seconds. The limit is a weight of 1200 a minute for our network address. A state weighs 2, a role 60, and most other
# requests 20, so everything but the states is kept. A spot state shows when the kept mode is out of date.
_MODE_AGE = 3600.0
# A wallet whose mode was never set may get one at any time, and has no summary until then.
_UNSET_MODE_AGE = 600.0
_ROLE_AGE = 600.0
_SUB_ACCOUNT_LIST_AGE = 600.0
_DEX_LIST_AGE = 600.0
_TOKEN_TABLE_AGE = 3600.0
# By type of request; any other one weighs 20.
# witness: vendor: https://hyperliquid.gitbook.io/hyperliquid-docs/for-developers/api/rate-limits
_WEIGHTS = {"clearinghouseState": 2, "spotClearinghouseState": 2, "userRole": 60}
_OTHER_WEIGHT = 20
_WINDOW = 60
# Each dex costs one request a balance. No user needs more.
_MAX_DEXS = 20
_MAX_DEX_NAME = 32
# The status for a body that the venue cannot read, such as one with an unknown type or a malformed address.
_UNREADABLE = 422
# Statuses that mean a key or an account elsewhere. Reads need no key and name no account in the path.
# witness: unproven: looked for in the vendor's pages and in the SDKs of hyperliquid-dex, nktkas and JKorf
_REJECTED = frozenset({400, 401, 404, 405, 415})
# Account types that the stored metadata can add to the default, and the name of each there.
_ADDED_TYPES = {"vault": "vaults", "staking": "staking"}
# What the venue does not push, or, for sub-accounts, what would use up the addresses that it pushes.
_POLLED_TYPES = "Hyperliquid pushes neither vaults nor staking, so an account that shows them is polled."
_POLLED_SUB_ACCOUNTS = (
    "Hyperliquid pushes ten addresses and each sub-account is one, so an account that shows its sub-accounts is polled."
)


class _UsedWeight:
    """What this process has asked of the venue within the last minute, in the venue's weights: it does not say so."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, weight: int) -> int:
        """Count a request, and return the weight of all."""
        now = _now()
        while self._entries and self._entries[0][0] <= now - _WINDOW:
            self._sum -= self._entries.popleft()[1]
        self._entries.append((now, weight))
        self._sum += weight
        return self._sum


@dataclass(frozen=True, slots=True)
class _Mode:
    """A mode, and when it was read, in the event loop's seconds."""

    name: str
    read: float

    def age(self) -> float:
        """Seconds since it was read."""
        return _now() - self.read


class HyperliquidClient:
    """The reads that a balance needs. Addresses are in lower case, as the venue writes them."""

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
        self.account_type = call.account.account_type
        self._call = call
        self.compute = call.compute
        self._url = call.url() + "/info"

    def wants(self, account_type: str) -> bool:
        """Whether accounts of this type are read: the requested types, or, if the call names none, the default and the
        types that the stored metadata add."""
        added = not self.account_type and account_type in self._added_types
        return added or self._call.wants(account_type)

    @property
    def unpushed(self) -> str | None:
        """Why the account cannot be pushed, a sentence; None if the venue pushes everything that the account shows."""
        if self.with_sub_accounts:
            return _POLLED_SUB_ACCOUNTS
        return _POLLED_TYPES if self.wants("vault") or self.wants("staking") else None

    def needless_secrets(self) -> tuple[str, ...]:
        """A sentence for each stored secret that is not needed."""
        credential = self._call.credential
        texts = {name: getattr(credential, name).reveal().strip() for name in SECRET_FIELDS}
        needless = [name for name, value in texts.items() if value and value.lower() != self.address]
        return tuple(f"Hyperliquid needs no {name} to be read: remove the stored one." for name in needless)

    async def mode(self, address: str) -> str:
        """The mode of the account, such as "default" or "unifiedAccount", which decides what the states mean.

        It is parse.UNSET_MODE if the venue knows none.
        """

        async def fetch() -> _Mode:
            return _Mode(parse.mode(await self._info("userAbstraction", user=address)), _now())

        state, name = self._call.account_state, f"mode {address}"
        kept = await state.get(name, fetch, max_age=_MODE_AGE)
        if kept.name == parse.UNSET_MODE and kept.age() > _UNSET_MODE_AGE:
            state.forget(name)
            kept = await state.get(name, fetch, max_age=_MODE_AGE)
        if kept.name not in parse.STANDARD_MODES | parse.UNIFIED_MODES | {parse.UNSET_MODE}:
            # It may be a mistake of the venue, so it is not kept.
            state.forget(name)
        return kept.name

    async def reread_mode(self, address: str) -> str:
        """The current mode, for when a state contradicts the one that `mode` returned."""
        self._call.account_state.forget(f"mode {address}")
        return await self.mode(address)

    async def role(self, address: str) -> parse.Role:
        """The role of an address at the venue. It weighs as much as thirty states: read it only if these are empty."""

        async def fetch() -> parse.Role:
            role = parse.role(await self._info("userRole", user=address))
            # The only answer that names a wallet besides the requested one, whose figures are then shown.
            await require_same_accounts(self._call.account_state, [role.master], "Hyperliquid", kind=address)
            return role

        return await self._call.account_state.get(f"role {address}", fetch, max_age=_ROLE_AGE)

    async def perp_state(self, address: str, dex: str = "") -> parse.PerpState:
        """The perpetuals of an address on one dex. Raises CredentialInvalid if the venue has no such dex."""
        collateral = await self._collateral(dex) if dex else parse.USDC
        state = await self._info("clearinghouseState", user=address, dex=dex)
        return await self._call.compute(parse.perp_state, state, dex, collateral)

    async def spot_state(self, address: str) -> parse.SpotState:
        """The spot tokens of an address."""
        return await self._call.compute(parse.spot_state, await self._info("spotClearinghouseState", user=address))

    async def sub_accounts(self, address: str) -> list[parse.SubAccount]:
        """The sub-accounts of a main wallet, those with an unreadable entry with its error."""

        async def fetch() -> list[parse.SubAccount]:
            listed = await self._info("subAccounts", user=address)
            return await self._call.compute(parse.sub_accounts, listed, address)

        return await self._call.account_state.get(f"sub accounts {address}", fetch, max_age=_SUB_ACCOUNT_LIST_AGE)

    async def vault_equities(self, address: str) -> Any:
        """The payload of the vaults of an address."""
        return await self._info("userVaultEquities", user=address)

    async def staking(self, address: str) -> Any:
        """The payload of the staking account of an address."""
        return await self._info("delegatorSummary", user=address)

    async def _collateral(self, dex: str) -> str:
        """The code of a builder dex's collateral. It need not be USDC, and the states do not name it."""
        if dex not in await self._market(_DEX_LIST_AGE, parse.dex_names, "perpDexs"):
            raise CredentialInvalid(f"extra_metadata.dexs names {dex!r}, but Hyperliquid has no such dex.")
        token = await self._market(_TOKEN_TABLE_AGE, parse.collateral_token, "meta", dex=dex)
        names = await self._market(_TOKEN_TABLE_AGE, parse.token_names, "spotMeta")
        if token not in names:
            raise VenueMalformed("Hyperliquid's token table lacks the collateral of a dex.")
        return names[token]

    async def _market(self, max_age: float, read: Callable[[Any], T], type: str, **fields: str) -> T:
        """A table that all accounts share. Its name in the state has the URL, because the two environments differ."""

        async def fetch() -> T:
            return await self._call.compute(read, await self._info(type, public=True, **fields))

        name = " ".join((self._url, type, *fields.values()))
        return await self._call.plugin_state.get(name, fetch, max_age=max_age)

    async def _info(self, type: str, *, public: bool = False, **fields: str) -> Any:
        used = await self._call.plugin_state.get(f"weight {self._url} {self._call.way}", _count_weight)
        # Reads differ much in their weight, and the first one of an account weighs most.
        self._call.report_usage(used.add(_WEIGHTS.get(type, _OTHER_WEIGHT)), _WINDOW)
        http = self._call.public_http if public else self._call.http
        response = await http.post(self._url, json={"type": type, **fields})
        _raise_for_error(response)
        return response.json()


async def _count_weight() -> _UsedWeight:
    return _UsedWeight()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _dex_names(listed: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))
    if len(names) > _MAX_DEXS:
        raise CredentialInvalid(f"extra_metadata.dexs names more than {_MAX_DEXS} dexs.")
    if any(len(name) > _MAX_DEX_NAME or not (name.isascii() and name.isalnum()) for name in names):
        raise CredentialInvalid("extra_metadata.dexs should be names with commas between them, for example xyz,flx.")
    return names


def _raise_for_error(response: Response) -> None:
    """Raise the error of a response. Reads need no key, so statuses such as 401 mean something else here."""
    status = response.status
    if status == 200:
        return
    if status == _UNREADABLE:
        raise RequestRefused(
            "Hyperliquid cannot read the request (HTTP 422).", advice="Check the stored wallet_address and dexs."
        )
    if error := gateway_error(response, "Hyperliquid"):
        raise error
    if status == 403:
        # There is no key that could lack a right.
        raise AddressNotAllowed(
            "Hyperliquid refuses requests from this service's network address (HTTP 403).",
            advice="Check that Hyperliquid serves the region of this service's network address.",
        )
    if status in _REJECTED:
        raise RequestRefused(f"Hyperliquid rejects our request (HTTP {status}).")
    raise_unexpected_status(response, "Hyperliquid")
