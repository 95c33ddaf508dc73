"""A simulator of Lighter: the answers of GET /api/v1/account, and what it pushes. It shares no code with the client."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, ClassVar

from aiohttp import web

from exchange_service.testing import DemoVenue, Fault, show_situation
from exchange_service_lighter.simulator.push import PushedChannels

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}\Z")
_DIGITS = re.compile(r"[0-9]{1,19}\Z")
_FIRST_SUB_ACCOUNT = 281474976700001
_POOL = 281474976710654
_UNLOCKED = 1770000000
# The refusals: Lighter's code and its message. All but the first have status 400.
_ERRORS: dict[str, tuple[int, str]] = {
    "limit": (23000, "Too Many Requests!"),  # witness: report: JKorf/Lighter.Net Lighter.Net/LighterErrors.cs
    "parameter": (20001, "invalid param "),  # witness: report: lev7finance/lighter-ts docs/verified-facts.md
    "account": (21100, "account not found"),  # witness: report: elliottech/lighter-python#132
    "token": (20013, "invalid auth: "),  # witness: test data: lev7finance/lighter-ts test/fixtures/ws/errors.json
}
# Lighter is not known to send a header for how long to wait.
_LIMIT = Fault(status=429, body=b'{"code": 23000, "message": "Too Many Requests!"}')


@dataclass(slots=True)
class SimulatedPosition:
    """A perpetual position; `size` is negative for a short position, zero for a closed one.

    `margin_fraction` is in percent of the value. `allocated` is the collateral of an isolated position.
    """

    market_id: int
    symbol: str
    size: Decimal
    entry: Decimal
    mark: Decimal
    margin_fraction: Decimal = Decimal("5.00")
    allocated: Decimal | None = None

    @property
    def value(self) -> Decimal:
        return abs(self.size) * self.mark

    @property
    def unrealized(self) -> Decimal:
        return self.size * (self.mark - self.entry)

    @property
    def margin(self) -> Decimal:
        return self.value * self.margin_fraction / 100


@dataclass(slots=True)
class SimulatedAsset:
    """An asset: its spot balance, the part `locked` in orders, and the part that serves as margin."""

    symbol: str
    asset_id: int
    balance: str
    locked: str
    margin: str = "0.000000"


@dataclass(slots=True)
class SimulatedAccount:
    """One account. `kind` is the venue's account type, `mode` its trading mode, `code` the account's own code.

    `other_margin` is the value of the other assets that serve as margin. `changes` replaces fields of the answer; `...`
    leaves a field out.
    """

    index: int
    l1_address: str
    kind: int = 0
    mode: int = 0
    name: str = ""
    collateral: Decimal = Decimal(0)
    other_margin: Decimal = Decimal(0)
    positions: list[SimulatedPosition] = field(default_factory=list)
    assets: list[SimulatedAsset] = field(default_factory=list)
    # What was put into each pool, by the pool's number.
    shares: dict[int, str] = field(default_factory=dict)
    # What was taken out of staking and is not paid out yet, as (the asset's number, the amount).
    unlocks: list[tuple[int, str]] = field(default_factory=list)
    code: int = 0
    changes: dict[str, Any] = field(default_factory=dict)
    moving: bool = False


class LighterSimulator(DemoVenue):
    """Simulates mainnet.zklighter.elliot.ai."""

    exchange_id = "lighter"
    named_by = "`accounts[].l1_address` and `accounts[].index`"
    trouble_witnesses: ClassVar[Mapping[str, str]] = {
        "wrong environment": "unproven: an account of the other network is taken to be unknown",
        "unknown account": "report: elliottech/lighter-python#132",
        "rate limit": "report: JKorf/Lighter.Net Lighter.Net/LighterErrors.cs",
        "outage": "unproven: a gateway's page stands for it",
    }

    def __init__(self) -> None:
        super().__init__()
        self.accounts: dict[int, SimulatedAccount] = {}
        # The account that each token was made for.
        self.tokens: dict[str, int] = {}
        self.page_size = 100
        self.channels = PushedChannels(self.push, self._pushed_entry)
        self._random = random.Random(304)

    def add(self, *accounts: SimulatedAccount) -> None:
        """Let the venue have these accounts. Accounts with the same address belong to one wallet."""
        for account in accounts:
            self.accounts[account.index] = account

    def add_token(self, account_index: int, *, scope: str = "all", expires: int = 4102444800) -> str:
        """A new read-only token of this account, valid until `expires` in Unix seconds."""
        token = f"ro:{account_index}:{scope}:{expires}:{self._random.getrandbits(256):064x}"
        self.tokens[token] = account_index
        return token

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/api/v1/account", self._account), web.get("/stream", self.channels.serve)]

    def publish(self, *indexes: int) -> None:
        """Push what has changed in these accounts since the last time, to those that follow them."""
        for index in indexes:
            self.channels.publish(index)

    def _pushed_entry(self, index: int) -> Mapping[str, Any] | None:
        account = self.accounts.get(index)
        return None if account is None else _account_entry(account)

    def account_of(self, request: web.Request, body: bytes) -> str:
        value = request.query.get("value", "")
        if request.query.get("by") == "l1_address":
            return value.lower()
        account = self.accounts.get(int(value)) if _DIGITS.match(value) else None
        return account.l1_address.lower() if account else ""

    async def _account(self, request: web.Request) -> web.Response:
        token = request.headers.get("Authorization") or request.query.get("auth", "")
        by, value = request.query.get("by"), request.query.get("value", "")
        pattern = {"l1_address": _ADDRESS, "index": _DIGITS}.get(by or "")
        if pattern is None or not pattern.match(value):
            return _error("parameter")
        found = [account for account in self.accounts.values() if value.lower() == _name(account, by)]
        if token and not self._is_valid(token, found):
            return _error("token")
        if not found:
            return _error("account")
        return self._page(found, request.query.get("cursor", "0"))

    def _page(self, found: Sequence[SimulatedAccount], cursor: str) -> web.Response:
        if not _DIGITS.match(cursor):
            return _error("parameter")
        first, end = int(cursor), int(cursor) + self.page_size
        answer: dict[str, Any] = {"code": 200, "total": len(found)}
        if end < len(found):
            answer["next_cursor"] = str(end)
        return web.json_response({**answer, "accounts": [_account_entry(account) for account in found[first:end]]})

    def _is_valid(self, token: str, requested: Sequence[SimulatedAccount]) -> bool:
        """Whether the token is known, has not expired, and covers the requested accounts."""
        owner = self.accounts.get(self.tokens.get(token, -1))
        if owner is None:
            return False
        _, _, scope, expires, _ = token.split(":")
        if int(expires) <= time.time():
            return False
        if scope == "single":
            return all(account.index == owner.index for account in requested)
        return all(account.l1_address.lower() == owner.l1_address.lower() for account in requested)

    def demo_credential(self, situation: str) -> Mapping[str, Any] | None:
        if situation == "refused":
            # Reads are public, so there is no key to refuse.
            return None
        address = _demo_address(situation)
        index = 90210 if situation == "moving" else self._free_index()
        if situation == "empty":
            self.add(SimulatedAccount(index, address))
        else:
            self.add(_demo_account(index, address, moving=situation == "moving"), self._sub_account(address))
        if situation == "partly":
            self.add(self._sub_account(address, name="Broken", code=20500))
        show_situation(self, situation, address, limit=_LIMIT)
        return {"extra_metadata": {"wallet_address": address}}

    def other_credential(self) -> Mapping[str, Any]:
        address = _demo_address("other")
        self.add(SimulatedAccount(self._free_index(), address, collateral=Decimal("77.7")))
        return {"extra_metadata": {"wallet_address": address}}

    def troubled_credential(self, trouble: str) -> Mapping[str, Any] | None:
        if trouble in ("wrong key", "missing right"):
            # Reads need no key and no right. A refused token only means the lower limit.
            return None
        address = _demo_address(trouble)
        if trouble not in ("wrong environment", "unknown account"):
            self.add(_demo_account(self._free_index(), address))
        show_situation(self, trouble, address, limit=_LIMIT)
        return {"extra_metadata": {"wallet_address": address}}

    def move(self) -> None:
        for account in self.accounts.values():
            if account.moving:
                for position in account.positions:
                    position.mark += position.entry * Decimal(self._random.randint(-40, 42)).scaleb(-5)
                self.publish(account.index)

    def _free_index(self) -> int:
        return max((index for index in self.accounts if index < _FIRST_SUB_ACCOUNT), default=90210) + 1

    def _sub_account(self, address: str, *, name: str = "", code: int = 0) -> SimulatedAccount:
        index = max((*self.accounts, _FIRST_SUB_ACCOUNT - 1)) + 1
        return SimulatedAccount(max(index, _FIRST_SUB_ACCOUNT), address, kind=1, name=name, code=code)


def _name(account: SimulatedAccount, by: str | None) -> str:
    """The `value` of a request for this account, in lower case."""
    return str(account.index) if by == "index" else account.l1_address.lower()


def _account_entry(account: SimulatedAccount) -> dict[str, Any]:
    """The account as the venue shows it. Available is the value minus the margin of all positions."""
    cross = [position for position in account.positions if position.allocated is None]
    isolated = [position for position in account.positions if position.allocated is not None]
    profit = sum((position.unrealized for position in account.positions), Decimal(0))
    isolated_margin = sum((position.allocated or Decimal(0) for position in isolated), Decimal(0))
    isolated_profit = sum((position.unrealized for position in isolated), Decimal(0))
    margin = sum((position.margin for position in cross), Decimal(0))
    value = account.collateral + profit + account.other_margin
    answer = {
        "code": account.code,
        "account_type": account.kind,
        "account_trading_mode": account.mode,
        "index": account.index,
        "account_index": account.index,
        "l1_address": account.l1_address,
        "cancel_all_time": 0,
        "total_order_count": 2 * len(account.positions),
        "total_isolated_order_count": 0,
        "pending_order_count": 0,
        "status": 1,
        "name": account.name,
        "description": "",
        "can_invite": True,
        "referral_points_percentage": "",
        "available_balance": _money(max(Decimal(0), value - margin - isolated_margin - isolated_profit)),
        "collateral": _money(account.collateral),
        "total_asset_value": _short(value),
        "cross_asset_value": _short(value - isolated_margin - isolated_profit),
        "cross_initial_margin_requirement": _money(margin),
        "cross_maintenance_margin_requirement": _money(margin * Decimal("0.6")),
        "positions": [_position(position) for position in account.positions],
        "assets": [_asset(asset) for asset in account.assets],
        "shares": [_share(pool, principal) for pool, principal in account.shares.items()],
        "created_at": 0,
        "transaction_time": 0,
        "pending_unlocks": [
            {"unlock_timestamp": _UNLOCKED, "asset_index": asset, "amount": amount} for asset, amount in account.unlocks
        ],
        "approved_integrators": [],
        "can_rfq": False,
        "can_rfq_market_ids": None,
        "metadata": {"color": ""},
    }
    return {name: value for name, value in {**answer, **account.changes}.items() if value is not ...}


def _position(position: SimulatedPosition) -> dict[str, Any]:
    return {
        "market_id": position.market_id,
        "symbol": position.symbol,
        "initial_margin_fraction": str(position.margin_fraction),
        "open_order_count": 2,
        "pending_order_count": 0,
        "position_tied_order_count": 0,
        "sign": -1 if position.size < 0 else 1,
        "position": f"{abs(position.size):.4f}",
        "avg_entry_price": f"{position.entry:.2f}",
        "position_value": _money(position.value),
        "unrealized_pnl": _money(position.unrealized),
        "realized_pnl": "12.400000",
        "liquidation_price": "412.750000000001",
        "margin_mode": 0 if position.allocated is None else 1,
        "allocated_margin": _money(position.allocated or Decimal(0)),
    }


def _asset(asset: SimulatedAsset) -> dict[str, Any]:
    return {
        "symbol": asset.symbol,
        "asset_id": asset.asset_id,
        "balance": asset.balance,
        "locked_balance": asset.locked,
        "margin_mode": "enabled" if Decimal(asset.margin) else "disabled",
        "margin_balance": asset.margin,
    }


def _share(pool: int, principal: str) -> dict[str, Any]:
    return {
        "public_pool_index": pool,
        "shares_amount": 1000,
        "entry_usdc": principal,
        "entry_timestamp": 1764000000000,
        "principal_amount": principal,
    }


def _error(name: str) -> web.Response:
    code, message = _ERRORS[name]
    return web.json_response({"code": code, "message": message}, status=400)


def _money(value: Decimal) -> str:
    return f"{value:.6f}"


def _short(value: Decimal) -> str:
    """As the venue writes the value of an account: without zeros at the end."""
    return format(value.normalize(), "f")


def _demo_address(situation: str) -> str:
    # The address of "moving" is that of the worked example.
    return "0x" + ("aa" if situation == "moving" else situation.encode().hex()).rjust(40, "0")


def _demo_account(index: int, address: str, *, moving: bool = False) -> SimulatedAccount:
    """The worked example of the payloads: 3284.5 in perpetuals, two assets on spot, and a share in a pool."""
    return SimulatedAccount(
        index,
        address,
        collateral=Decimal("3200.5"),
        positions=[SimulatedPosition(0, "ETH", Decimal("1.2"), Decimal(3010), Decimal(3080))],
        assets=[
            SimulatedAsset("USDC", 3, "150.000000", "25.000000"),
            SimulatedAsset("ETH", 1, "0.50000000", "0.00000000", "0.00000000"),
        ],
        shares={_POOL: "100.000000"},
        moving=moving,
    )
