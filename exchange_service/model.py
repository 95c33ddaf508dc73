"""The nouns of the service: frozen values that every part of it, and every plugin, shares.

Amounts are `Decimal`, and `None` where the venue does not say; nothing here ever stands for "unknown" with a zero.
Times are aware `datetime`s in UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from exchange_service.amounts import exact_sum

if TYPE_CHECKING:
    from exchange_service.errors import ServiceError

PRODUCTION = "production"
SANDBOX = "sandbox"

# The catalogue's asset classes, as the owner's application shows them.
ASSET_CLASSES = ("Crypto", "Forex", "Stocks", "Options", "Futures", "Multi-Asset")


class Secret:
    """A text that does not show itself: neither printing nor formatting nor pickling gives it away."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself. Call it where it is used, and keep the result in no attribute."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> Any:
        raise TypeError("a Secret is not pickled")


_EMPTY = Secret("")

# The names of the secrets of a Credential, which are also the stored columns and the names in requests.
SECRET_FIELDS = ("api_key", "api_secret", "passphrase")


# The word by which every kind of account is asked for, each in rows of its own.
ALL_ACCOUNT_TYPES = "all"


@dataclass(frozen=True, slots=True, order=True)
class Account:
    """What one stored credential opens: a user, an exchange and an environment.

    `account_type` narrows what is read of it: one of the listing's, ALL_ACCOUNT_TYPES, or empty for its default.
    """

    user_id: str
    exchange_id: str
    environment: str = PRODUCTION
    account_type: str = ""

    def stored(self) -> Account:
        """The same without an account type: what a credential is stored for."""
        return replace(self, account_type="") if self.account_type else self


@dataclass(frozen=True, slots=True)
class Credential:
    """What a user gave to connect an account. Every text may be empty.

    `metadata` is the stored JSON object, for example `{"account_id": "..."}`; its values may be secrets too,
    so it is not shown either.
    """

    api_key: Secret = _EMPTY
    api_secret: Secret = _EMPTY
    passphrase: Secret = _EMPTY
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    @classmethod
    def from_texts(cls, texts: Mapping[str, str | None], metadata: Mapping[str, Any] | None = None) -> Credential:
        """A credential of plain texts by name; a name that is absent or None gives an empty secret."""
        key, secret, passphrase = (Secret(texts.get(name) or "") for name in SECRET_FIELDS)
        return cls(key, secret, passphrase, metadata=dict(metadata or {}))


@dataclass(frozen=True, slots=True)
class CredentialField:
    """One thing that a user gives: `name` is api_key, api_secret, passphrase or a key of the metadata."""

    name: str
    label: str
    required: bool = True
    secret: bool = True
    description: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the service can do with an exchange."""

    balance: bool = True
    push: bool = False
    sandbox: bool = False
    several_accounts: bool = False
    read_without_secret: bool = False


@dataclass(frozen=True, slots=True)
class Environment:
    """One of the separate worlds of a venue: its addresses by name, and the venue's own words for it.

    The hosts of `urls` are the only ones that the plugin can reach through the session it is given.
    """

    name: str
    urls: Mapping[str, str]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RateLimit:
    """How often a venue lets itself be asked: `count` in any `seconds`, in the venue's own units.

    `scope` is what it counts by: "address" for all our accounts together, "key" for each stored credential. `cost` is
    what one balance costs, of several requests or of a weight where the venue weighs them.
    """

    scope: Literal["address", "key"]
    count: int
    seconds: int
    cost: int = 1

    def __post_init__(self) -> None:
        if self.scope not in ("address", "key"):
            raise ValueError('RateLimit.scope must be "address" or "key"')
        for name in ("count", "seconds", "cost"):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise ValueError(f"RateLimit.{name} must be a whole number of 1 or more")
        if self.cost > self.count:
            raise ValueError("RateLimit.cost must not be more than its count: no balance could ever be read")


@dataclass(frozen=True, slots=True)
class ExchangeMetadata:
    """One listing: plain data that is known before any of the plugin's code for the venue has run."""

    id: str
    name: str
    asset_class: str
    asset_types: str
    market_hours: str
    environments: tuple[Environment, ...]
    credential_fields: tuple[CredentialField, ...] = ()
    icon: str = "i-heroicons-building-library"
    logo: str = ""
    color_class: str = "bg-gray-500/20 text-gray-500"
    requires_passphrase: bool = False
    requires_account_id: bool = False
    instructions: str = ""
    ip_whitelist: str = ""
    # The kinds of account that can be read, and those of them that a call reads which asks for none; empty: all.
    account_types: tuple[str, ...] = ()
    default_account_types: tuple[str, ...] = ()
    capabilities: Capabilities = Capabilities()
    documentation_url: str = ""
    credential_url: str = ""
    countries: tuple[str, ...] = ()
    credential_of: str = ""
    is_ccxt: bool = False
    # Why `capabilities.balance` is false, a sentence.
    unsupported_reason: str = ""
    # How often the venue may be asked; all of them hold. Empty: nobody knows, and the venue says when it is too often.
    limits: tuple[RateLimit, ...] = ()

    @property
    def venue(self) -> str:
        """What is asked behind this listing: two listings that share a credential are two views of one venue."""
        return self.credential_of or self.id

    def reads(self, account_type: str, asked: str) -> bool:
        """Whether a call that asks for `asked` (see Account.account_type) reads accounts of this type."""
        if asked == ALL_ACCOUNT_TYPES:
            return True
        return account_type == asked if asked else account_type in (self.default_account_types or self.account_types)

    def environment(self, name: str) -> Environment | None:
        """The environment of this name or alias, case ignored; an empty name is production."""
        wanted = name.strip().lower() or PRODUCTION
        for environment in self.environments:
            if wanted == environment.name or wanted in environment.aliases:
                return environment
        return None


@dataclass(frozen=True, slots=True)
class Manifest:
    """How a plugin introduces itself.

    `api_version` is the `API_VERSION` that the plugin was written against, as a literal number.
    `notes` are sentences that the plugin list shows, for example that its catalogue is older than its library.
    """

    api_version: int
    exchanges: tuple[ExchangeMetadata, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class PluginInfo:
    """Where a plugin comes from: the entry point's name, and the distribution's version and name."""

    name: str
    version: str
    distribution: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a listing's calls fail, a sentence, and since when, in seconds since the epoch.

    `serves` says whether some calls succeed all the same.
    """

    reason: str
    since: float
    serves: bool = True


# Written out in full, an amount beyond these would fill the memory; no venue states one.
_LARGEST_POWER = 100
_MOST_DIGITS = 250


def _check_amounts(value: Any, *, skip: frozenset[str]) -> None:
    """Refuse what is not an exact, finite number: a float has already lost digits."""
    for name in value.__slots__:
        amount = getattr(value, name)
        if amount is None or name in skip:
            continue
        if not isinstance(amount, Decimal):
            raise TypeError(f"{type(value).__name__}.{name} must be a Decimal or None, not {type(amount).__name__}")
        if not amount.is_finite():
            raise ValueError(f"{type(value).__name__}.{name} must be a finite number")
        if abs(amount.adjusted()) > _LARGEST_POWER or len(amount.as_tuple().digits) > _MOST_DIGITS:
            raise ValueError(f"{type(value).__name__}.{name} is too large, too small or too long to be an amount")


@dataclass(frozen=True, slots=True)
class AssetBalance:
    """One asset in one venue account, with the three numbers as the venue states them.

    `used` is never made up as `total - free`: on margin venues the three need not add up.
    `venue_asset` is the venue's own code, where it differs from `asset`.
    """

    asset: str
    total: Decimal | None = None
    free: Decimal | None = None
    used: Decimal | None = None
    debt: Decimal | None = None
    venue_asset: str = ""

    def __post_init__(self) -> None:
        _check_amounts(self, skip=frozenset({"asset", "venue_asset"}))

    def mismatch(self) -> bool:
        """Whether all three numbers are known and free and used do not add up to the total."""
        if self.total is None or self.free is None or self.used is None:
            return False
        return exact_sum((self.free, self.used)) != self.total

    def is_zero(self) -> bool:
        """Whether every amount that is known is zero, and at least one is known."""
        known = [amount for amount in (self.total, self.free, self.used, self.debt) if amount is not None]
        return bool(known) and not any(known)


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures for an account as a whole, all in `currency`; the field comments stand in balance.proto."""

    currency: str
    total: Decimal | None = None
    available: Decimal | None = None
    equity: Decimal | None = None
    margin_used: Decimal | None = None
    unrealised_pnl: Decimal | None = None
    cash: Decimal | None = None
    buying_power: Decimal | None = None

    def __post_init__(self) -> None:
        _check_amounts(self, skip=frozenset({"currency"}))


@dataclass(frozen=True, slots=True)
class VenueAccount:
    """One account as the venue keeps it: its rows and its summary, or the error that kept it from being read."""

    id: str = ""
    type: str = ""
    sub_account: str = ""
    label: str = ""
    assets: tuple[AssetBalance, ...] = ()
    summary: Summary | None = None
    error: ServiceError | None = None
    venue_time: datetime | None = None

    def __post_init__(self) -> None:
        if self.error is not None and (self.assets or self.summary):
            raise ValueError("a VenueAccount has either figures or an error")

    @property
    def identity(self) -> tuple[str, str, str]:
        """What tells it from the other accounts behind the same credential."""
        return (self.id, self.type, self.sub_account)


@dataclass(frozen=True, slots=True)
class Balance:
    """What a plugin answers: every account that the credential shows.

    `summary` is only given where one currency holds for all of them, all could be read and nothing overlaps.
    """

    venue_accounts: tuple[VenueAccount, ...]
    summary: Summary | None = None
    venue_time: datetime | None = None
    notes: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[VenueAccount, AssetBalance]]:
        """Every row with the account that holds it."""
        for account in self.venue_accounts:
            for asset in account.assets:
                yield account, asset


@dataclass(frozen=True, slots=True)
class KeyRights:
    """What the venue says that a key may do besides reading, and until when; None where it does not say.

    `notes` are sentences for the key's owner.
    """

    trade: bool | None = None
    withdraw: bool | None = None
    expires: datetime | None = None
    notes: tuple[str, ...] = ()
