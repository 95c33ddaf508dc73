"""The values that the service and its plugins share: accounts, credentials, listings and balances, all frozen.

An amount is a `Decimal`, or `None` if the venue does not say; zero never means "unknown". Times are aware `datetime`s
in UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from exchange_service.amounts import exact_sum

if TYPE_CHECKING:
    from exchange_service.errors import ServiceError

# The environment of real accounts, which every venue has.
PRODUCTION = "production"
# The environment of accounts to try things with.
SANDBOX = "sandbox"

# What a row of a balance is: money of its asset, or an instrument that is held.
CASH = "cash"
HOLDING = "holding"
_KINDS = ("", CASH, HOLDING)

# The catalogue's asset classes, as the owner's application shows them.
ASSET_CLASSES = ("Crypto", "Forex", "Stocks", "Options", "Futures", "Multi-Asset")


class ModelError(Exception):
    """A value that one of these classes refuses. Its text names fields and types and holds no value: it may be logged
    and shown."""


class WrongType(ModelError, TypeError):
    """A value is of another type than its field."""


class WrongValue(ModelError, ValueError):
    """A value is outside the bounds of its field."""


class Secret:
    """A text that printing, formatting and `repr` show as `Secret(***)`. Pickling it raises TypeError."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself. Call it where the text is used, and do not store the result in an attribute."""
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


# The account type of a request that wants every type, each in rows of its own.
ALL_ACCOUNT_TYPES = "all"


@dataclass(frozen=True, slots=True, order=True)
class Account:
    """What one stored credential opens: a user's account at an exchange, in one environment.

    `account_type` narrows what is read: one of the listing's types, ALL_ACCOUNT_TYPES, or empty for its default.
    """

    # The caller's name of the user.
    user_id: str
    # The listing's id.
    exchange_id: str
    # The environment's own name, such as PRODUCTION.
    environment: str = PRODUCTION
    account_type: str = ""

    def stored(self) -> Account:
        """The account without an account type, as the credential store knows it."""
        return replace(self, account_type="") if self.account_type else self


@dataclass(frozen=True, slots=True)
class Credential:
    """What a user gave to connect an account. Every text may be empty.

    `metadata` is the stored JSON object, for example `{"account_id": "..."}`. Its values may be secrets too, so `repr`
    leaves it out.
    """

    # The three secrets, each empty if the user gave none.
    api_key: Secret = _EMPTY
    # As `api_key`: the second secret, for venues whose requests are signed.
    api_secret: Secret = _EMPTY
    # As `api_key`: the passphrase that some venues ask for beside a key.
    passphrase: Secret = _EMPTY
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    @classmethod
    def from_texts(cls, texts: Mapping[str, str | None], metadata: Mapping[str, Any] | None = None) -> Credential:
        """A credential from plain texts under the names of SECRET_FIELDS; None or absent: empty."""
        key, secret, passphrase = (Secret(texts.get(name) or "") for name in SECRET_FIELDS)
        return cls(key, secret, passphrase, metadata=dict(metadata or {}))

    def with_fields(self, changes: Mapping[str, Secret]) -> Credential:
        """The credential with new values of these fields, named as in CredentialField; the others stay."""
        texts = {name: value for name, value in changes.items() if name in SECRET_FIELDS}
        others = {name: value.reveal() for name, value in changes.items() if name not in SECRET_FIELDS}
        return replace(self, **texts, metadata={**self.metadata, **others})


@dataclass(frozen=True, slots=True)
class CredentialField:
    """One input of a user: `name` is api_key, api_secret, passphrase or a key of the metadata.

    `private_keys` are the kinds of private key in lines (PEM) that it takes: rsa, ed25519 or p256. Empty: it takes one
    line of text. None: not said, so the text is stored as it is given. `rotates`: the venue gives a new value at each
    use, and the plugin may store it by `VenueCall.replace_credential`.
    """

    # api_key, api_secret, passphrase or a key of the metadata.
    name: str
    # What the form calls it, as the venue does.
    label: str
    # Whether a credential without it is refused.
    required: bool = True
    # Whether it is hidden while it is typed, and in logs.
    secret: bool = True
    # Where the user finds it, a sentence.
    description: str = ""
    private_keys: tuple[str, ...] | None = None
    rotates: bool = False


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the service can do at an exchange. Without `balance` the listing is shown, but cannot be read."""

    balance: bool = True
    # The venue says when an account changes: the plugin has the hook watch_balance.
    push: bool = False
    # One of the environments is a sandbox.
    sandbox: bool = False
    # A credential may open more than one account.
    several_accounts: bool = False
    # Balances are public: the credential holds no secret.
    read_without_secret: bool = False


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment of a venue, such as production or sandbox: its addresses by name, and the venue's names for it.

    The plugin's session reaches the hosts of `urls` and no others.
    """

    # PRODUCTION or SANDBOX.
    name: str
    urls: Mapping[str, str]
    # The venue's own words for it, in lower case.
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A venue's limit: at most `count` in any `seconds`, in the venue's own units (requests, or weights).

    Raises ValueError for numbers that are not whole or below 1, and for a cost above `count`.
    """

    # What the venue counts by: "address" for all our accounts together, "key" for each stored credential.
    scope: Literal["address", "key"]
    # The most in the window, in the venue's own units: requests, or weights.
    count: int
    # The length of the window, in seconds.
    seconds: int
    # What reading one balance uses up, in the venue's units.
    cost: int = 1
    # The same units for some account types, "all" among them, where it differs.
    costs: Mapping[str, int] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.scope, str) or self.scope not in ("address", "key"):
            raise WrongValue('RateLimit.scope must be "address" or "key"')
        if not isinstance(self.costs, Mapping):
            raise WrongValue(f"RateLimit.costs must be a dict of numbers, not {type(self.costs).__name__}")
        numbers = {name: getattr(self, name) for name in ("count", "seconds", "cost")}
        for name, number in [*numbers.items(), *(("costs", cost) for cost in self.costs.values())]:
            if not isinstance(number, int) or isinstance(number, bool):
                raise WrongValue(
                    f"RateLimit.{name} must be a whole number of 1 or more, not {type(number).__name__}: multiply "
                    "count, seconds and cost by the same number until all are whole"
                )
            if number < 1:
                raise WrongValue(f"RateLimit.{name} must be a whole number of 1 or more")
        if max((self.cost, *self.costs.values())) > self.count:
            raise WrongValue("RateLimit.cost must not be more than its count: no balance could ever be read")

    def cost_of(self, account_type: str) -> int:
        """What a balance of this account type uses up; empty: of the listing's default."""
        return self.costs.get(account_type, self.cost)


@dataclass(frozen=True, slots=True)
class PushLimits:
    """How much a venue pushes at once; None where no limit is known."""

    # Accounts that are followed at once, for one network address and over all replicas.
    accounts: int | None = None
    # Connections that are open at once, of one process.
    connections: int | None = None
    # Connections that may be begun in a minute, by one process.
    connects: int | None = None
    # Topics of one connection.
    subscriptions: int | None = None
    # Our messages in a minute over all connections of one process.
    messages: int | None = None
    # Subscriptions that wait for the venue's word at once, of one process.
    unacknowledged: int | None = None


# Bytes of one answer of a venue: the usual and the largest limit of an account's, and the largest of market data.
ANSWER_LIMIT = 1024 * 1024
LARGEST_ANSWER_LIMIT = 8 * ANSWER_LIMIT
LARGEST_PUBLIC_ANSWER_LIMIT = 64 * ANSWER_LIMIT


@dataclass(frozen=True, slots=True)
class ExchangeMetadata:
    """One listing: plain data that is known before any code for the venue has run."""

    # 1 to 64 lower case letters, digits, `_` and `-`: how callers name the exchange.
    id: str
    # What people read, of 100 characters at most.
    name: str
    # One of ASSET_CLASSES.
    asset_class: str
    # What can be held, for people, such as "Stocks, ETFs".
    asset_types: str
    # When it trades, for people, such as "24/7 Trading".
    market_hours: str
    # Production first, then the sandbox if the venue has one.
    environments: tuple[Environment, ...]
    # What a user is asked for; empty if `credential_of` is set.
    credential_fields: tuple[CredentialField, ...] = ()
    # The name of an icon in the application that shows the listing.
    icon: str = "i-heroicons-building-library"
    # An https link, or /a-file.png of that application; empty: none.
    logo: str = ""
    # The classes of CSS for the icon's colours.
    color_class: str = "bg-gray-500/20 text-gray-500"
    # True exactly if the credential field passphrase is required.
    requires_passphrase: bool = False
    # True exactly if a credential field for an account id is required.
    requires_account_id: bool = False
    # How and where a user makes a key at the venue, in one or two sentences.
    instructions: str = ""
    # A note on allow-lists of network addresses at the venue, a sentence; empty: not known.
    ip_whitelist: str = ""
    # The account types that can be read, each the `type` of a VenueAccount; empty: any.
    account_types: tuple[str, ...] = ()
    # Those that are read if a call names no type; empty: all.
    default_account_types: tuple[str, ...] = ()
    # What the service can do here.
    capabilities: Capabilities = Capabilities()
    # The venue's documentation of its interface, an https link or empty.
    documentation_url: str = ""
    # Where a user makes a key, an https link or empty.
    credential_url: str = ""
    # Countries of the venue, as ISO 3166-1 has them in two upper case letters; empty: not known.
    countries: tuple[str, ...] = ()
    # Another id of the same plugin, whose stored credential is used if this one has none.
    credential_of: str = ""
    # Whether CCXT serves it: any other plugin comes before it for the same id.
    is_ccxt: bool = False
    # Why `capabilities.balance` is false, as a sentence.
    unsupported_reason: str = ""
    # How often the venue may be asked; all of them apply. Empty: not known, and only the venue itself limits us.
    limits: tuple[RateLimit, ...] = ()
    # How much the venue pushes, if `capabilities.push` is true.
    push: PushLimits = PushLimits()
    # Bytes, decompressed: the largest answer that is read through `http`. More is VENUE_MALFORMED.
    answer_limit: int = ANSWER_LIMIT
    # The same number of bytes through `public_http`.
    public_answer_limit: int = LARGEST_PUBLIC_ANSWER_LIMIT

    @property
    def rotating_fields(self) -> frozenset[str]:
        """The credential fields that the plugin may replace."""
        return frozenset(field.name for field in self.credential_fields if field.rotates)

    @property
    def venue(self) -> str:
        """The id of the venue behind this listing: two listings that share a credential are two views of one venue."""
        return self.credential_of or self.id

    def reads(self, account_type: str, requested: str) -> bool:
        """Whether a call for `requested` (see Account.account_type) reads accounts of `account_type`."""
        if requested == ALL_ACCOUNT_TYPES:
            return True
        return (
            account_type == requested
            if requested
            else account_type in (self.default_account_types or self.account_types)
        )

    def environment(self, name: str) -> Environment | None:
        """The environment with this name or alias, in any case; an empty name is production. None: not found."""
        wanted = name.strip().lower() or PRODUCTION
        for environment in self.environments:
            if wanted == environment.name or wanted in environment.aliases:
                return environment
        return None

    def environment_aliases(self, name: str) -> tuple[str, ...]:
        """The venue's own words for the environment of this name or alias; empty if there is no such environment."""
        environment = self.environment(name)
        return environment.aliases if environment is not None else ()


@dataclass(frozen=True, slots=True)
class PluginSetting:
    """One setting that the operator of a service gives a plugin, such as the id of an OAuth application.

    A number is a whole one or a Decimal. A secret is a text without a default.
    """

    # The key of `call.settings`, and what the operator writes in plugin_settings.
    name: str
    # What it is, for the operator; for a number with its unit.
    description: str
    # Of what type the operator's value is.
    type: Literal["text", "number", "boolean", "url"] = "text"
    # Whether it comes to the plugin as a `Secret`.
    secret: bool = False
    # Whether the plugin needs a value of the operator.
    required: bool = False
    # What is used if the operator gives no value, in the same units as theirs; None: there is none.
    default: str | bool | int | Decimal | None = None


@dataclass(frozen=True, slots=True)
class RetiredExchange:
    """An exchange that the plugin served once, and does not any more.

    Calls for it fail with EXCHANGE_RETIRED, and stored credentials are kept until they are removed. An id that a plugin
    lists is served all the same.
    """

    # The id of the listing that there was.
    id: str
    # Its name, as people know it.
    name: str
    # What happened, as sentences for the user.
    reason: str
    # The first day on which it was not served. None: it is not known.
    since: date | None = None
    # What the user should do, as a sentence, for example what replaces it. Empty: to remove the credential.
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """The exchanges that a plugin serves."""

    # The version of the plugin page that the plugin was written for, as a literal number.
    api_version: int
    # The listings, each with an id of its own.
    exchanges: tuple[ExchangeMetadata, ...]
    # Sentences for the operator, for example that the catalogue is older than the library. Each is a notice beside the
    # plugin in `exchange-service plugins`, in `doctor`, and in the replies of ListPlugins and ListExchanges, for as
    # long as the plugin is installed: use it for what the operator can act on. What a user should know before they
    # connect an account belongs in ExchangeMetadata.instructions, and what holds for one balance in Balance.notes.
    notes: tuple[str, ...] = ()
    # What the operator can set for the plugin; a call has the values.
    settings: tuple[PluginSetting, ...] = ()
    # The exchanges that earlier versions of the plugin listed.
    retired: tuple[RetiredExchange, ...] = ()


@dataclass(frozen=True, slots=True, order=True)
class PluginInfo:
    """Where a plugin comes from: the entry point's name, and the distribution's version and name."""

    name: str
    version: str
    distribution: str


@dataclass(slots=True)
class VenueReports:
    """What is learnt of the venue beside its answer during one call; see `VenueCall.report_usage`.

    `usage` has the units used of the limit whose window has so many seconds, and the seconds until that window ends.
    `costs` has, by such a window, the units that this call has really used, under 0 those of each limit. `cooldown` is
    in seconds, 0 if the venue did not ask for one. `answered_at` is when the first good answer began to come, by
    `time.monotonic`, and `opening` whether the call still waits for its credential; the host sets both.
    """

    usage: dict[int, tuple[int, float]] = field(default_factory=dict)
    cooldown: float = 0.0
    costs: dict[int, int] = field(default_factory=dict)
    answered_at: float | None = field(default=None, compare=False)
    opening: bool = field(default=False, compare=False)
    # Called after each report, so that the gate can act on it before the call ends.
    on_report: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a listing's calls fail, a sentence, and since when, in seconds since the epoch.

    `serves` says whether some calls succeed all the same.
    """

    reason: str
    since: float
    serves: bool = True


# An amount beyond these would fill the memory when it is written out; no venue states one.
_LARGEST_POWER = 100
_MOST_DIGITS = 250


# The fields of an AssetBalance that say which row it is.
_NO_AMOUNTS = frozenset({"asset", "venue_asset", "kind"})


def _check_amounts(value: Any, *, skip: frozenset[str]) -> None:
    """Raise TypeError for an amount that is not a Decimal, such as a float, ValueError for one that is too large."""
    for name in value.__slots__:
        amount = getattr(value, name)
        if amount is None or name in skip:
            continue
        if not isinstance(amount, Decimal):
            raise WrongType(
                f"{type(value).__name__}.{name} must be a Decimal or None, not {type(amount).__name__}: read it by "
                "`amount` or `required_amount`, which keep the venue's digits"
            )
        if not amount.is_finite():
            raise WrongValue(f"{type(value).__name__}.{name} must be a finite number")
        if abs(amount.adjusted()) > _LARGEST_POWER or len(amount.as_tuple().digits) > _MOST_DIGITS:
            raise WrongValue(f"{type(value).__name__}.{name} is too large, too small or too long to be an amount")


@dataclass(frozen=True, slots=True)
class AssetBalance:
    """One asset in one venue account, with the numbers as the venue states them; None if it does not say.

    Do not compute `used` as `total - free`: on margin venues the three need not add up. `venue_asset` is the venue's
    own code if it differs from `asset`. `kind` is CASH for money, HOLDING for an instrument such as a stock, or
    empty where nothing can be confused: a stock named USD and the currency are two rows. Raises TypeError for an amount
    that is not a Decimal, ValueError for one that is not finite and for another kind.
    """

    # The asset's code that everybody uses, for example BTC or EUR.
    asset: str
    # The whole amount in units of the asset, debt not subtracted unless the venue does so.
    total: Decimal | None = None
    # The amount that can be used now, in the same units.
    free: Decimal | None = None
    # The amount that is reserved by orders or positions, in the same units.
    used: Decimal | None = None
    # The amount that is owed, as the venue states it, in the same units; never negative.
    debt: Decimal | None = None
    # The venue's own code for it, for example XXBT. Empty: the venue uses the same code.
    venue_asset: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        _check_amounts(self, skip=_NO_AMOUNTS)
        if self.kind not in _KINDS:
            raise WrongValue('AssetBalance.kind must be CASH ("cash"), HOLDING ("holding") or empty')

    @property
    def identity(self) -> tuple[str, str, str]:
        """Asset, the venue's code and kind, which differ from those of every other row of the same venue account."""
        return (self.asset, self.venue_asset, self.kind)

    def mismatch(self) -> bool:
        """Whether `free` and `used` do not add up to `total`, or the only one of them that is known is larger."""
        parts = [part for part in (self.free, self.used) if part is not None]
        if self.total is None or not parts:
            return False
        return exact_sum(parts) != self.total if len(parts) == 2 else parts[0] > self.total

    def is_zero(self) -> bool:
        """Whether at least one amount is known, and all known ones are zero."""
        known = [amount for amount in (self.total, self.free, self.used, self.debt) if amount is not None]
        return bool(known) and not any(known)


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures for an account as a whole, in units of `currency`; None for one that the venue does not state. Raises as
    AssetBalance does."""

    # The code of the currency of every figure here, for example USD.
    currency: str
    # The venue's cash balance, which is also the total of the currency's row. Open profit is included only if the venue
    # includes it. What the account is worth with its positions is the equity. In units of its currency.
    total: Decimal | None = None
    # The amount that can be used for new orders, borrowed money not counted if the venue tells the two apart. In the
    # same units.
    available: Decimal | None = None
    # The account's value now: cash with the value of what is held and the open profit. A loss makes it less. In
    # the same units.
    equity: Decimal | None = None
    # Margin that is reserved for open positions, and for orders if the venue counts them. In the same units.
    margin_used: Decimal | None = None
    # Profit of open positions that is not yet realised; negative for a loss. In the same units.
    unrealised_pnl: Decimal | None = None
    # Settled or booked money, open profit not included. Often the same as the total. In the same units.
    cash: Decimal | None = None
    # The value that could be bought, borrowed money included. It may be more than the cash. In the same units.
    buying_power: Decimal | None = None

    def __post_init__(self) -> None:
        _check_amounts(self, skip=frozenset({"currency"}))


@dataclass(frozen=True, slots=True)
class VenueAccount:
    """One account as the venue keeps it: its rows and summary, or the error why it could not be read.

    Raises ValueError if there are both figures and an error.
    """

    # The venue's own identifier, for example an account number or a wallet address. Empty: the venue has no identifier.
    # Then the type and the sub-account tell its accounts apart. Do not invent one, and do not use a name of a key.
    id: str = ""
    # Its kind, one of the listing's account types: spot, margin, futures, ... Empty: not known.
    type: str = ""
    # The venue's name of a sub-account or section within the identifier, for example of a wallet, a vault, a builder
    # dex or the market of an isolated account. Empty: the main one.
    sub_account: str = ""
    # The name that the user gave it at the venue. Empty: it has no name. It is shown, and tells no accounts apart.
    label: str = ""
    # One row for each asset. Empty, without an error: the venue says that nothing is held.
    assets: tuple[AssetBalance, ...] = ()
    # Figures for the account as a whole. None: the venue does not give them.
    summary: Summary | None = None
    # Why it could not be read: a VenueError. Then it has no figures.
    error: ServiceError | None = None
    # When these figures were true, by the venue's own account. It has a time zone.
    venue_time: datetime | None = None

    def __post_init__(self) -> None:
        if self.error is not None and (self.assets or self.summary):
            raise WrongValue(
                "a VenueAccount has either figures or an error: leave assets and summary out beside an error"
            )

    @property
    def identity(self) -> tuple[str, str, str]:
        """Id, type and sub-account, which differ from those of every other account behind the same credential."""
        return (self.id, self.type, self.sub_account)


@dataclass(frozen=True, slots=True)
class Balance:
    """A plugin's answer: every account that the credential shows.

    Give a `summary` only if all accounts could be read, share one currency and do not overlap.
    """

    # Every account behind the credential; empty only if the answer proves that nothing is held.
    venue_accounts: tuple[VenueAccount, ...]
    summary: Summary | None = None
    # When the venue says that all of it was true, with a time zone.
    venue_time: datetime | None = None
    # Sentences for the user, such as that closed accounts are left out.
    notes: tuple[str, ...] = ()

    def rows(self) -> Iterator[tuple[VenueAccount, AssetBalance]]:
        """Every row with the account that holds it."""
        for account in self.venue_accounts:
            for asset in account.assets:
                yield account, asset


@dataclass(frozen=True, slots=True)
class Changed:
    """A watch's word that an account has changed, or may have: the host reads it soon."""


@dataclass(frozen=True, slots=True)
class KeyRights:
    """What a key may do besides reading, and when it expires; None if the venue does not say.

    `notes` are sentences for the key's owner.
    """

    # Whether it may trade.
    trade: bool | None = None
    # Whether it may withdraw.
    withdraw: bool | None = None
    # When it ends, with a time zone.
    expires: datetime | None = None
    notes: tuple[str, ...] = ()
