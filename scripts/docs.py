"""Writes the generated parts of docs/ (`make docs`). The tests call `generate` to check that they are current."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path

from exchange_service_ccxt_generic import exchange_manifest
from exchange_service_ccxt_generic.account_names import NAMES
from exchange_service_ccxt_generic.limits import has_known_window
from exchange_service_ccxt_generic.retired import shipped_retired

from exchange_service.app import Service, start_service
from exchange_service.cli.demo import SIMULATOR_GROUP
from exchange_service.cli.flags import default_text
from exchange_service.client import ExchangeServiceClient
from exchange_service.environment import ENVIRONMENT_PREFIX
from exchange_service.errors import ServiceError
from exchange_service.grpc_server.status import TABLE
from exchange_service.model import ALL_ACCOUNT_TYPES, Account, Credential, ExchangeMetadata, PushLimits, RateLimit
from exchange_service.observability.logs import configure_logging
from exchange_service.settings import Settings
from exchange_service.testing.venue import TROUBLES, DemoVenue
from exchange_service.testing.witnesses import Witness, parse_witness, payload_witness, table_rows
from exchange_service.v1 import error_reason_pb2
from plugins.ccxt_generic.tests.every_exchange.named import named_types
from plugins.ccxt_generic.tests.every_exchange.true_answers import unproven_types
from scripts.log_events_page import log_events_page
from scripts.metrics_page import metrics_page
from scripts.plugin_pages import directory_page, quality_page
from scripts.plugin_reference import reference_page
from scripts.reliability import reliability_page
from scripts.threats import security_page
from tests.witnessed import TABLES, payload_files

ROOT = Path(__file__).parent.parent
_REASON = re.compile(r"  // (?P<text>[^\n]*(?:\n  // [^\n]*)*)\n  ERROR_REASON_(?P<name>[A-Z_]+) = \d+;")

# Demo users that show a reason, as the command to type.
_DEMO = {
    "EXCHANGE_UNKNOWN": "balance --user demo --exchange onada",
    "EXCHANGE_RETIRED": "balance --user demo --exchange bitmex",
    "FIELD_INVALID": "balance --user demo --exchange oanda --environment mars",
    "CREDENTIAL_MISSING": "balance --user nobody --exchange oanda",
    "CREDENTIAL_REJECTED": "balance --user demo-refused --exchange oanda",
    "VENUE_RATE_LIMITED": "balance --user demo-limited --exchange oanda",
    "VENUE_UNAVAILABLE": "balance --user demo-stale --exchange oanda`, twice, the second time with `--max-age 0",
    "VENUE_TIMEOUT": "balance --user demo-slow --exchange oanda --max-age 0 --timeout 2",
    "ACCOUNT_UNKNOWN": "balance --user demo-partly --exchange oanda",
    "NOT_SUPPORTED": "balance --user demo --exchange bullish",
}


def settings_table() -> str:
    """Every setting, with its environment variable, default and meaning."""
    lines = ["| setting | environment | default | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        variable = f"`{ENVIRONMENT_PREFIX}{name.upper()}`"
        meaning = (field.description or "").replace("|", "\\|")
        lines.append(f"| `{name}` | {variable} | {default_text(name, field)} | {meaning} |")
    return "\n".join(lines)


def reasons_page() -> str:
    """docs/errors.md: each reason with its meaning, its code, who acts, what to do and a command that shows it."""
    meanings = _meanings()
    by_reason = {leaf.reason: (leaf, row) for leaf, row in TABLE.items()}
    parts = [_PAGE_HEAD]
    for name in error_reason_pb2.ErrorReason.keys():  # noqa: SIM118 - an enum wrapper is no dict
        reason = name.removeprefix("ERROR_REASON_")
        if reason == "UNSPECIFIED":
            continue
        leaf, row = by_reason[reason]
        delay = "" if leaf.default_retry_after is None else ", after the delay in `RetryInfo`"
        retry = f"yes{delay}" if row.retry else "no"
        lines = [f"## {reason}", "", f"{meanings[reason]}", ""]
        lines += [f"- code: `{row.code.name}`", f"- who acts: {row.who}", f"- try again: {retry}"]
        lines.append(f"- what to do: {row.next_step}")
        if reason in _DEMO:
            lines.append(f"- see it in the demo: `exchange-service {_DEMO[reason]}`")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


_PAGE_HEAD = """# Errors

This page explains each reason for which a call, or one account within a call, can fail, and what you can do about it.
`make docs` generates it from the status table.

Every failed call has a `google.rpc.Status` in the trailer `grpc-status-details-bin`, with exactly one `ErrorInfo`: its
domain is `exchange-service`, its reason one of the names below. A bad field comes with a `BadRequest`, a delay with a
`RetryInfo` and the trailer `grpc-retry-pushback-ms`, which gRPC's own retries obey.

The status message is the reason, what happened, and what to do: the advice of the error itself if it has any, else the
line "what to do" of its reason below. In a stream, and beside accounts that could be read, the same reasons come as an
`AccountFault`.

A venue sometimes refuses once what it took a moment ago. If an account has given a balance within `stale_grace`, a
refusal (CREDENTIAL_REJECTED, PERMISSION_MISSING, ADDRESS_NOT_ALLOWED, CLOCK_SKEW, REGION_RESTRICTED, ACCOUNT_UNKNOWN,
FEATURE_NOT_ENABLED, REQUEST_REFUSED) becomes an error only after the venue has said it twice, two seconds apart. Until
then calls and streams get the last good balance, with the refusal as the reason why it is stale. A call with `max_age`
zero waits for the second answer. It also looks up the stored credential again, so a corrected key counts at once."""


_VENUES_HEAD = """# What goes wrong at venues

This page shows the errors that you get if something goes wrong at a venue, and how far we know that the venues answer
so. `make docs` generates it: each line is an answer of the running service, with a simulator in place of the venue. A
test compares the table with a new one. [errors.md](errors.md) says what each reason means and whether to try again.

Some venues have no such case: Hyperliquid and Lighter, for example, are read without a key, and a token of Tradier has
no rights that could be missing. To most venues a key of the wrong environment looks like any wrong key. The message of
the status begins with the reason, which is left out here. The last column says where the venue's own answer is known
from: its documentation (vendor), CCXT's source, another project's captured answer (test data), or a public report.

Below the table: [what is pushed](#what-is-pushed), [how often venues are asked](#how-often-venues-are-asked),
[whose answer it is](#whose-answer-it-is), [retired exchanges](#retired-exchanges) and
[what is not proven](#what-is-not-proven).

| exchange | trouble | status | reason | message | proven by |
|---|---|---|---|---|---|"""


_NAMES_NONE = "the answer names none"

_NO_SUCH_CASE = "no such case at this venue"

_NAMES_HEAD = """## Whose answer it is

A venue, or a cache before it, may send one user's answer to another. Where an answer names the user or the account, the
name is compared: with the account that was asked for, or with the one that the same credential's answers have named
before. An answer that names another one is `VENUE_MALFORMED`, and callers get the last good balance, marked as such.
The names are kept while the account is in use, but no longer than an hour in which no answer has one of them. After a
start, or minutes without a call, nothing is known to compare the first answer with, unless the credential holds the
name.

Where the answer names none, nothing can tell whose it is. At Hyperliquid this is so for figures that are read: what it
pushes names its address, and its list of sub-accounts names the main wallet and is compared, as is the main wallet of
an API wallet.

| exchange | where its answers name the account |
|---|---|"""

_CCXT_NAMES_HEAD = """Through CCXT, with the account types whose recorded answers have the name:

| exchange | name | account types |
|---|---|---|"""

_PUSHED_HEAD = """## What is pushed

An account that a stream follows is pushed where its venue says when something has changed, see [push.md](push.md). What
comes is a whole balance, which the subscriber gets as it is, or a hint, after which the service reads the account. The
last column is what the service uses at once of what the venue allows one network address, as far as that is known;
beyond it accounts are polled. An account is what one stored credential opens. Each plugin's page has the details.

| exchange | what comes | what is allowed |
|---|---|---|"""

# By the listing's id: what comes.
_PUSHED = {
    "alpaca": "hints: changes of orders. The account is read every minute too",
    "aster": "hints: the events of futures and spot. With open positions the accounts are read every ten seconds too",
    "hyperliquid": "whole balances: the states of spot, the main dex and the stored builder dexs. With `sub_accounts`, "
    "`vaults` or `staking` the wallet is polled",
    "krakenfutures": "hints: changes of balances. With open positions the accounts are read every ten seconds too",
    "lighter": "whole balances: two channels of each account, joined with its last read; hints in unified mode and "
    "with isolated margin. With open positions the account is read too, every ten seconds or more rarely",
    "oanda": "hints: transactions. With open trades the account is read every ten seconds too",
    "tastytrade": "whole balances of all accounts of a login. With open positions the accounts are read every ten "
    "seconds too",
    "tradier": "hints: events of orders. With open positions the accounts are read every ten seconds too. Another "
    "program that listens for the same user takes the session; then the accounts are polled",
}
_ALLOWED = {
    "accounts": "{} accounts",
    "connections": "{} connections",
    "connects": "{} new ones a minute",
    "subscriptions": "{} subscriptions a connection",
    "messages": "{} messages of ours a minute",
    "unacknowledged": "{} subscriptions that wait for the venue's word",
}

_ASKED_HEAD = """## How often venues are asked

A balance takes its cost of each limit of its venue before the venue is asked. The units are the venue's own. Those of
CCXT's exchanges, in lower case here, are CCXT's units: 1,200 of them stand for the 6,000 that Binance counts for spot.
A limit counts for all accounts together (by address) or for each account (by key). The last two columns are what a
balance of the default account type takes, and one of all account types.

| exchange | limit | counts by | a balance | all types |
|---|---|---|---|---|"""

_PACED = """For the other exchanges of CCXT it is not known in which time the venue counts. CCXT's own pause between two
requests of an account is kept there, here in milliseconds for each unit; and all accounts together, or each one where
the venue counts by key, take no more units in a minute than such pauses would let pass:"""

_RETIRED_HEAD = """## Retired exchanges

These were served once, by this service or by an earlier CCXT, and are not any more: they have closed, or CCXT has
dropped them. Their calls fail with [EXCHANGE_RETIRED](errors.md#exchange_retired), and say why. What is stored for them
is kept and listed until it is removed. A stream of all accounts gives the error for this one and follows the others.
ListExchanges leaves them out, and names those that a `search` finds in `retired`. `doctor` and `credentials list` name
their credentials.

The day is that of the first release of CCXT without the exchange, or that on which our own list of CCXT's exchanges was
renewed without it. When a newer CCXT is installed, what it lacks is retired at once, without a day; what CCXT lists
again, or what another plugin serves, is served. The versions are read from CCXT's releases; the last column says where
the rest is known from.

| exchange | since | last in CCXT | first CCXT without it | what happened | known from |
|---|---|---|---|---|---|"""

_UNPROVEN_HEAD = """## What is not proven

Every fact about a venue in this project names where it is known from: each recorded answer in its file, each row of a
table beside it. These facts are our guesses, because we found no source. If you can confirm or correct one, please say
so."""


async def venues_page() -> str:
    """docs/venues.md: the error that a caller gets for each trouble that a simulator can show, and what is unproven."""
    lines = [_VENUES_HEAD]
    codes = {leaf: row.code.name for leaf, row in TABLE.items()}
    named: dict[str, str] = {}
    async with _service_with_simulators() as (service, venues), ExchangeServiceClient(service.address) as client:
        for exchange_id, venue in sorted(venues.items()):
            name = service.registry.find(exchange_id).metadata.name
            if not type(venue).__module__.startswith("exchange_service_ccxt_generic"):
                named[name] = venue.named_by
            for trouble in TROUBLES:
                row = venue.troubled_credential(trouble)
                if row is None:
                    lines.append(f"| {name} | {trouble} | | | {_NO_SUCH_CASE} | |")
                    continue
                credential = Credential.from_texts(row, row.get("extra_metadata"))
                await service.store.put(Account(trouble, exchange_id), credential)
                error = await _error_of(client, trouble, exchange_id)
                message = _cell(error.message.removeprefix(f"{error.reason}: "))
                witness = _cell(_witness(parse_witness(venue.trouble_witnesses.get(trouble, "unproven"))))
                cells = (name, trouble, codes[type(error)], f"`{error.reason}`", message, witness)
                lines.append(f"| {' | '.join(cells)} |")
        listings = [item.metadata for item in service.registry.listings.values()]
        sections = (lines, _pushed_accounts(listings), _limits(listings), _named_accounts(named), _retired())
        parts = (*("\n".join(section) for section in sections), _UNPROVEN_HEAD)
    return "\n\n".join(parts) + "\n\n" + "\n".join(_unproven_facts()) + "\n"


def _pushed_accounts(listings: Sequence[ExchangeMetadata]) -> Iterator[str]:
    """What is pushed, by the manifests. Raises KeyError for a listing of ours that pushes and has no words above."""
    yield _PUSHED_HEAD
    served = sorted((item for item in listings if item.capabilities.balance), key=lambda item: item.id)
    pushed = [item for item in served if item.capabilities.push]
    for item in pushed:
        if not item.is_ccxt:
            yield f"| {item.name} | {_PUSHED[item.id]} | {_allowed(item.push)} |"
    through_ccxt = ", ".join(item.id for item in pushed if item.is_ccxt)
    yield f"\nThrough CCXT all that comes is a hint, for some account types of these exchanges: {through_ccxt}."
    polled = ", ".join(item.id for item in served if not item.capabilities.push)
    yield f"\nThese are polled: {polled}."


def _allowed(limits: PushLimits) -> str:
    known = {name: getattr(limits, name) for name in _ALLOWED}
    texts = [_ALLOWED[name].format(f"{limit:,}") for name, limit in known.items() if limit is not None]
    return ", ".join(texts) or "not known"


def _limits(listings: Sequence[ExchangeMetadata]) -> Iterator[str]:
    """The limits of each listing that is read, and for which of them CCXT's pauses are kept."""
    yield _ASKED_HEAD
    served = sorted((item for item in listings if item.capabilities.balance), key=lambda item: item.id)
    for item in served:
        if not item.is_ccxt or has_known_window(item.id):
            yield from (_limit_row(item, limit) for limit in item.limits)
    yield f"\n{_PACED}\n"
    paced = [item for item in served if item.is_ccxt and not has_known_window(item.id)]
    yield "; ".join(f"{item.id} {_pause(item.limits[0])}" for item in paced) + "."


def _limit_row(item: ExchangeMetadata, limit: RateLimit) -> str:
    window = "a second" if limit.seconds == 1 else f"{limit.seconds} s"
    every = str(limit.cost_of(ALL_ACCOUNT_TYPES)) if len(item.account_types) > 1 else ""
    name = item.id if item.is_ccxt else item.name
    return f"| {name} | {limit.count:,} in {window} | {limit.scope} | {limit.cost} | {every} |"


def _pause(limit: RateLimit) -> str:
    return f"{limit.seconds * 1000 / limit.count:.4g}{' by key' if limit.scope == 'key' else ''}"


def _named_accounts(own: Mapping[str, str]) -> Iterator[str]:
    """Where the answers of our own venues and of CCXT's exchanges name the account, and where they do not."""
    yield _NAMES_HEAD
    yield from (f"| {name} | {_cell(where) or _NAMES_NONE} |" for name, where in own.items())
    yield f"\n{_CCXT_NAMES_HEAD}"
    for exchange_id, paths in NAMES.items():
        where = ", ".join(f"`{path.replace('.[]', '[]')}`" for path in paths)
        yield f"| {exchange_id} | {where} | {', '.join(named_types(exchange_id))} |"
    served = [listing.id for listing in exchange_manifest().exchanges if listing.capabilities.balance]
    others = ", ".join(name for name in served if name not in NAMES)
    yield f"\nAt these nothing is compared, because {_NAMES_NONE}, as far as answers are recorded: {others}."


def _retired() -> Iterator[str]:
    yield _RETIRED_HEAD
    for entry in shipped_retired():
        witness = _witness(parse_witness(entry.witness))
        cells = (f"{entry.name} (`{entry.id}`)", entry.since or "", entry.had, entry.lacks, entry.what, witness)
        yield f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _witness(witness: Witness) -> str:
    return f"{witness.kind}: {witness.source}" if witness.source else witness.kind


def _unproven_facts() -> Iterator[str]:
    """A line for each table and recorded answer with facts that nobody else has confirmed."""
    for path, tables in sorted(TABLES.items()):
        for table in tables:
            by_reason: dict[str, list[str]] = {}
            for row in table_rows(ROOT / path, table):
                if row.witness is not None and not row.witness.proven:
                    by_reason.setdefault(row.witness.source, []).append(" ".join(row.words) or row.text)
            for reason, rows in by_reason.items():
                yield f"- `{path}`, `{table}`: {', '.join(rows)}{_reason(reason)}"
    for file in payload_files():
        witness = payload_witness(file)
        if not witness.proven:
            yield f"- `{file.relative_to(ROOT).as_posix()}`{_reason(witness.source)}"
    listings = {listing.id: listing for listing in exchange_manifest().exchanges}
    types = ", ".join(" ".join(entry) for entry in unproven_types(listings))
    yield f"- account types of CCXT's exchanges of which no public answer was found: {types}"


def _reason(text: str) -> str:
    return f" ({text})" if text else ""


async def _error_of(client: ExchangeServiceClient, user: str, exchange_id: str) -> ServiceError:
    try:
        reply = await client.get_balance(user, exchange_id)
    except ServiceError as error:
        return error
    raise ValueError(f"{exchange_id}: the call for {user} returned a balance: {reply}")


@asynccontextmanager
async def _service_with_simulators() -> AsyncIterator[tuple[Service, dict[str, DemoVenue]]]:
    """A service on loopback, and the simulator of each exchange that has one."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        venues: dict[str, DemoVenue] = {}
        for point in entry_points(group=SIMULATOR_GROUP):
            venue: DemoVenue = point.load()()
            await stack.enter_async_context(venue)
            venues[venue.exchange_id] = venue
        settings = Settings(
            address="127.0.0.1:0",
            database_url=f"sqlite:///{folder}/docs.db",
            shutdown_grace=0.5,
            venue_urls={name: venue.url for name, venue in venues.items()},
        )
        # One simulator shows every trouble, each to another user.
        service = await start_service(settings, accounts_apart=True)
        stack.push_async_callback(service.stop)
        yield service, venues


def _meanings() -> dict[str, str]:
    """The comment of each reason in error_reason.proto, without the code before the colon."""
    text = (ROOT / "protos" / "exchange_service" / "v1" / "error_reason.proto").read_text()
    meanings = {}
    for match in _REASON.finditer(text):
        sentence = " ".join(line.strip().removeprefix("//").strip() for line in match["text"].splitlines())
        meaning = sentence.partition(": ")[2] or sentence
        meanings[match["name"]] = meaning[0].upper() + meaning[1:]
    return meanings


def with_settings(text: str) -> str:
    """The document with a current settings table between its marks. Raises ValueError if it has no marks."""
    begin, end = "<!-- settings: begin -->\n", "\n<!-- settings: end -->"
    head, opening, rest = text.partition(begin)
    _, closing, tail = rest.partition(end.lstrip())
    if not opening or not closing:
        raise ValueError("operations.md has lost the marks around its settings")
    return head + begin + settings_table() + end + tail


def with_files(text: str) -> str:
    """The page with the files that it shows as they are now; each follows a comment with its path below the root."""
    shown = re.compile(r"(<!-- shown: (?P<path>\S+) -->\n```\w+\n).*?(```\n)", re.DOTALL)
    return shown.sub(lambda match: match[1] + (ROOT / match["path"]).read_text() + match[3], text)


def generate() -> dict[Path, str]:
    """The current text of every file with generated parts."""
    operations = ROOT / "docs" / "operations.md"
    web_application = ROOT / "docs" / "web-application.md"
    return {
        operations: with_settings(operations.read_text()),
        ROOT / "docs" / "errors.md": reasons_page(),
        ROOT / "docs" / "log-events.md": log_events_page(),
        ROOT / "docs" / "metrics.md": metrics_page(),
        ROOT / "docs" / "plugin-reference.md": reference_page(),
        ROOT / "docs" / "plugin-quality.md": quality_page(),
        ROOT / "docs" / "plugins-directory.md": directory_page(),
        ROOT / "docs" / "reliability.md": reliability_page(),
        ROOT / "docs" / "security.md": security_page(),
        ROOT / "docs" / "venues.md": asyncio.run(venues_page()),
        web_application: with_files(web_application.read_text()),
    }


if __name__ == "__main__":
    configure_logging(level="error")
    for path, text in generate().items():
        path.write_text(text)
