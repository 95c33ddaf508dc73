"""The mistakes, each with what its author is told.

`make docs` writes the table of docs/plugin-reference.md from them.
"""

from __future__ import annotations

from dataclasses import dataclass

ROW = 'AssetBalance(text(row, "code", "row"), total=required_amount(row, "quantity", "row"))'


@dataclass(frozen=True, slots=True)
class Mistake:
    """A change of the right plugin, and what its author is told.

    `wrong` is what the author wrote, in a few words of code. `told` stands in the list of plugins if the plugin is not
    loaded, else in the service's log. `test` is the test of the contract suite that says the same.
    """

    wrong: str
    old: str
    new: str
    told: str
    test: str = "test_a_good_credential_gives_a_balance"


# Told when the service loads the plugin.
AT_LOAD: dict[str, Mistake] = {
    "a hook's name is misspelt": Mistake(
        "async def fetch_balances(call)",
        "fetch_balance(call",
        "fetch_balances(call",
        "The hook fetch_balances is not part of the plugin API. Did you mean fetch_balance?",
    ),
    "a hook has a name of its own": Mistake(
        "async def read_account(call)",
        "fetch_balance(call",
        "read_account(call",
        (
            "The hook read_account is not part of the plugin API. Its hooks are exchange_manifest, "
            "fetch_balance, watch_balance, check_credential, refresh_manifest."
        ),
    ),
    "a hook takes other arguments": Mistake(
        "async def fetch_balance(account)",
        "fetch_balance(call: VenueCall)",
        "fetch_balance(account)",
        (
            "The hook fetch_balance takes other arguments than the plugin API says (account): write `async "
            "def fetch_balance(call) -> Balance`."
        ),
    ),
    "a hook takes nothing": Mistake(
        "async def fetch_balance()",
        "fetch_balance(call: VenueCall)",
        "fetch_balance()",
        (
            "The hook fetch_balance does not take what the plugin API gives it: write `async def "
            "fetch_balance(call) -> Balance`."
        ),
    ),
    "the manifest takes something": Mistake(
        "def exchange_manifest(call)",
        "exchange_manifest()",
        "exchange_manifest(call)",
        (
            "The hook exchange_manifest takes other arguments than the plugin API says (call): write `def "
            "exchange_manifest() -> Manifest`."
        ),
    ),
    "a hook is not async": Mistake(
        "def fetch_balance(call)",
        "async def",
        "def",
        (
            "Importing acme failed with SyntaxError in acme.py, line 34: 'await' outside async function: "
            "write `async def`."
        ),
    ),
    "the manifest is async": Mistake(
        "async def exchange_manifest()",
        "def exchange_manifest",
        "async def exchange_manifest",
        ("The hook exchange_manifest is not what the plugin API says: write `def exchange_manifest() -> Manifest`."),
    ),
    "a hook promises a dict": Mistake(
        "-> dict",
        "-> Balance",
        "-> dict",
        ("The hook fetch_balance says that it returns dict: write `async def fetch_balance(call) -> Balance`."),
    ),
    "a hook is not marked": Mistake(
        "no @hookimpl",
        "@hookimpl\nasync def fetch_balance(call: VenueCall) -> Balance:",
        "async def fetch_balance(call: VenueCall) -> Balance:",
        (
            "The hook fetch_balance is not marked: write `@hookimpl` in the line above `async def "
            "fetch_balance(call) -> Balance`."
        ),
    ),
    "no hook is marked": Mistake(
        "no @hookimpl at all",
        "@hookimpl\n",
        "",
        (
            "The hook exchange_manifest is not marked: write `@hookimpl` in the line above `def "
            "exchange_manifest() -> Manifest`."
        ),
    ),
    "a hook is missing": Mistake(
        "no exchange_manifest",
        "@hookimpl\ndef exchange_manifest",
        "def the_manifest",
        (
            "The hook exchange_manifest is missing: write `def exchange_manifest() -> Manifest` with "
            "`@hookimpl` in the line above it."
        ),
    ),
    "a tuple of one text lacks its comma": Mistake(
        'account_types=("cash")',
        '("cash",)',
        '("cash")',
        (
            "In its manifest, exchanges[0] ('acme').account_types should be a tuple of texts and is of the "
            'type str. A comma is missing: write ("cash",) with a comma before the bracket.'
        ),
    ),
    "a tuple of one listing lacks its comma": Mistake(
        "exchanges=(ACME)",
        "(ACME,)",
        "(ACME)",
        (
            "In its manifest, exchanges should be a tuple of ExchangeMetadata and is of the type "
            "ExchangeMetadata. A comma is missing: write (ExchangeMetadata(...),) with a comma before the "
            "bracket."
        ),
    ),
    "a tuple of one limit lacks its comma": Mistake(
        'limits=RateLimit("key", 90, 60)',
        '(RateLimit("key", 90, 60),)',
        'RateLimit("key", 90, 60)',
        (
            "In its manifest, exchanges[0] ('acme').limits should be a tuple of RateLimit and is of the type"
            " RateLimit. A comma is missing: write (RateLimit(...),) with a comma before the bracket."
        ),
    ),
    "a list stands for a tuple": Mistake(
        'account_types=["cash"]',
        '("cash",)',
        '["cash"]',
        (
            "In its manifest, exchanges[0] ('acme').account_types should be a tuple of texts and is of the "
            "type list. Write (..., ) with round brackets, and a comma also after a single element."
        ),
    ),
    "a list of listings stands for a tuple": Mistake(
        "exchanges=[ACME]",
        "(ACME,)",
        "[ACME]",
        (
            "In its manifest, exchanges should be a tuple of ExchangeMetadata and is of the type list. Write"
            " (..., ) with round brackets, and a comma also after a single element."
        ),
    ),
    "a limit is not whole": Mistake(
        'RateLimit("key", 1.5, 60)',
        "90, 60",
        "1.5, 60",
        (
            "Importing acme failed with WrongValue in acme, line 21: RateLimit.count must be a whole number "
            "of 1 or more, not float: multiply count, seconds and cost by the same number until all are "
            "whole."
        ),
    ),
    "a limit counts by something else": Mistake(
        'RateLimit("user", 90, 60)',
        '"key"',
        '"user"',
        ('Importing acme failed with WrongValue in acme, line 21: RateLimit.scope must be "address" or "key".'),
    ),
    "a library is not installed": Mistake(
        "import acme_sdk",
        "import time",
        "import acme_sdk",
        (
            "Importing acme failed with ModuleNotFoundError in acme, line 3: the module acme_sdk is not "
            "installed. Write the distribution that has it into `dependencies` of the plugin's "
            "pyproject.toml, and install the plugin again."
        ),
    ),
    "a name is not on the page": Mistake(
        "import require_text",
        "required_text,\n    text,",
        "require_text,\n    text,",
        (
            "Importing acme failed with ImportError in acme, line 5: exchange_service.plugin_api has no "
            "require_text. Did you mean required_text?"
        ),
    ),
    "a module of the service is imported that is not there": Mistake(
        "from exchange_service.plugins import ...",
        "import time",
        "from exchange_service.plugins import Plugin",
        (
            "Importing acme failed with ModuleNotFoundError in acme, line 3: this release has no "
            "exchange_service.plugins. All that a plugin imports is exchange_service.plugin_api."
        ),
    ),
    "a bracket is missing": Mistake(
        "return Manifest(...",
        "exchanges=(ACME,))",
        "exchanges=(ACME,)",
        "Importing acme failed with SyntaxError in acme.py, line 27: '(' was never closed.",
    ),
    "api_version is 0": Mistake(
        "api_version=0",
        "api_version=1",
        "api_version=0",
        "It says api_version=0, and the versions begin with 1: write api_version=1.",
    ),
    "api_version is of another release": Mistake(
        "api_version=2",
        "api_version=1",
        "api_version=2",
        (
            "It was written for version 2 of the plugin API, and this release of the service serves 1: write"
            " api_version=1 if it was not, or install a release of one of them that fits the other."
        ),
    ),
    "api_version is missing": Mistake(
        "Manifest(exchanges=...)",
        "api_version=1, ",
        "",
        (
            "Its manifest could not be read: TypeError in acme, line 27: Manifest lacks api_version: write "
            "Manifest(api_version=1, exchanges=...)."
        ),
    ),
    "api_version is a text": Mistake(
        'api_version="1"',
        "api_version=1",
        'api_version="1"',
        ("In its manifest, api_version should be a whole number and is of the type str. Write it without quotes."),
    ),
    "api_version is imported": Mistake(
        "api_version=API_VERSION",
        "api_version=1",
        "api_version=API_VERSION",
        (
            "It gives API_VERSION as the version that it was written for, which is always the version of the"
            " service: write the number, api_version=1."
        ),
    ),
    "an id is listed twice": Mistake(
        "exchanges=(ACME, ACME)",
        "(ACME,)",
        "(ACME, ACME)",
        "It lists the exchange id 'acme' twice: give each listing an id of its own.",
    ),
    "a dict stands for the manifest": Mistake(
        "return {...}",
        "return Manifest(api_version=1, exchanges=(ACME,))",
        'return {"exchanges": [ACME]}',
        (
            "exchange_manifest should return a Manifest, and returned dict: write `return "
            "Manifest(api_version=1, exchanges=(...,))`."
        ),
    ),
    "the manifest is not returned": Mistake(
        "Manifest(...)",
        "return Manifest(",
        "Manifest(",
        (
            "exchange_manifest should return a Manifest, and returned NoneType: write `return "
            "Manifest(api_version=1, exchanges=(...,))`."
        ),
    ),
    "a field of the listing is misspelt": Mistake(
        "asset_clas=...",
        "asset_class=",
        "asset_clas=",
        (
            "Importing acme failed with TypeError in acme, line 11: ExchangeMetadata has no asset_clas. Did "
            "you mean asset_class?"
        ),
    ),
    "a field of the listing is missing": Mistake(
        "no asset_types",
        '    asset_types="Stocks",\n',
        "",
        (
            "Importing acme failed with TypeError in acme, line 11: ExchangeMetadata lacks asset_types: "
            "write ExchangeMetadata(id=..., name=..., asset_class=..., asset_types=..., market_hours=..., "
            "environments=...)."
        ),
    ),
    "a field of the manifest is misspelt": Mistake(
        "Manifest(api_version=1, exchange=...)",
        "exchanges=(ACME,)",
        "exchange=(ACME,)",
        (
            "Its manifest could not be read: TypeError in acme, line 27: Manifest has no exchange. Did you "
            "mean exchanges?"
        ),
    ),
    "the manifest raises something": Mistake(
        "a KeyError in exchange_manifest",
        "return Manifest(api",
        'return {}["acme"] or Manifest(api',
        "Its manifest could not be read: KeyError in acme, line 27.",
    ),
    "an address has no TLS": Mistake(
        '"http://api.acme.example"',
        "https://",
        "http://",
        (
            "The listing 'acme' has an address that does not begin with https:// or wss:// ('api' of "
            '\'production\'): write "https://..." in place of "http://...".'
        ),
    ),
    "an address has no scheme": Mistake(
        '"api.acme.example"',
        "https://",
        "",
        (
            "The listing 'acme' has an address without a host, or with a wrong one ('api' of 'production'): "
            'write it whole, as in "https://api.acme.example".'
        ),
    ),
    "an id has capitals": Mistake(
        'id="Acme"',
        'id="acme"',
        'id="Acme"',
        (
            "The listing 'Acme' has an id that is not 1 to 64 lower case letters, digits, '_' and '-', or "
            "begins with '_' or '-': write one such as id=\"acme\"."
        ),
    ),
    "the environment has a name of the venue's": Mistake(
        'Environment("live", ...)',
        '"production"',
        '"live"',
        (
            "The listing 'acme' has an environment \"live\". Environments are called 'production' and 'sandbox', one "
            'of each at most: write Environment("production", {...}, aliases=("live",)).'
        ),
    ),
}

# Told when the service calls the plugin.
AT_A_CALL: dict[str, Mistake] = {
    "an amount is a float": Mistake(
        "total=float(...)",
        'required_amount(row, "quantity", "row")',
        'float(row["quantity"])',
        (
            "AssetBalance.total must be a Decimal or None, not float: read it by `amount` or "
            "`required_amount`, which keep the venue's digits"
        ),
    ),
    "an amount is a text": Mistake(
        'total=row["quantity"]',
        'required_amount(row, "quantity", "row")',
        'row["quantity"]',
        (
            "AssetBalance.total must be a Decimal or None, not str: read it by `amount` or "
            "`required_amount`, which keep the venue's digits"
        ),
    ),
    "a dict is returned": Mistake(
        'return {"ACME": ...}',
        "    return Balance(venue_accounts=(account,))\n",
        '    return {"ACME": "12.50"}\n',
        "it answered with dict in place of a Balance: write `return Balance(venue_accounts=(...,))`",
    ),
    "an await is missing before what is read": Mistake(
        "as_object(read(...))",
        '    account = VenueAccount(type="cash", assets=parse(response.json()))\n',
        "    async def answer(): return response.json()\n"
        '    account = VenueAccount(type="cash", assets=parse(answer()))\n',
        "a coroutine was read in place of a venue's answer: write `await` before the call that makes it",
    ),
    "an await is missing before what is returned": Mistake(
        "return read_balance(call)",
        "    return Balance(venue_accounts=(account,))\n",
        "    async def read_balance(): return Balance(venue_accounts=(account,))\n    return read_balance()\n",
        "it answered with a coroutine in place of a Balance: write `return await` in place of `return`",
    ),
    "a set is returned": Mistake(
        "return {account}",
        "    return Balance(venue_accounts=(account,))\n",
        "    return {1}\n",
        "it answered with set in place of a Balance: write `return Balance(venue_accounts=(...,))`",
    ),
    "a text is returned": Mistake(
        'return "12.50"',
        "    return Balance(venue_accounts=(account,))\n",
        '    return "12.50"\n',
        "it answered with str in place of a Balance: write `return Balance(venue_accounts=(...,))`",
    ),
    "nothing is returned": Mistake(
        "Balance(...)",
        "    return Balance(venue_accounts=(account,))\n",
        "    Balance(venue_accounts=(account,))\n",
        (
            "it answered with None in place of a Balance: end each way through the hook with `return "
            "Balance(venue_accounts=(...,))`"
        ),
    ),
    "an account is returned": Mistake(
        "return account",
        "    return Balance(venue_accounts=(account,))\n",
        "    return account\n",
        ("it answered with VenueAccount in place of a Balance: write `return Balance(venue_accounts=(account,))`"),
    ),
    "an error is returned": Mistake(
        "return CredentialRejected(...)",
        "    return Balance(venue_accounts=(account,))\n",
        '    return CredentialRejected("Acme refuses the token.")\n',
        "it returned the exception CredentialRejected: write `raise` in place of `return`",
    ),
    "a tuple of one account lacks its comma": Mistake(
        "venue_accounts=(account)",
        "(account,)",
        "(account)",
        (
            "its venue_accounts are not a tuple, but of the type VenueAccount: a comma is missing, write "
            "(VenueAccount(...),) with a comma before the bracket"
        ),
    ),
    "a tuple of one row lacks its comma": Mistake(
        "assets=(AssetBalance(...))",
        "assets=parse(response.json())",
        "assets=(parse(response.json())[0])",
        (
            "the assets of an account are not a tuple, but of the type AssetBalance: a comma is missing, "
            "write (AssetBalance(...),) with a comma before the bracket"
        ),
    ),
    "a generator stands for a tuple": Mistake(
        "assets=(... for row in rows)",
        f"return tuple({ROW} for row in rows)",
        f"return ({ROW} for row in rows)",
        "the assets of an account are not a tuple, but of the type generator: write tuple(...) around it",
    ),
    "a row has no asset": Mistake(
        "AssetBalance(total=...)",
        'text(row, "code", "row"), ',
        "",
        "AssetBalance lacks asset: write AssetBalance(asset=...).",
    ),
    "a row's asset is empty": Mistake(
        'AssetBalance("", ...)',
        'text(row, "code", "row")',
        '""',
        'a row has no asset: write AssetBalance("BTC", total=...), with the code as a text',
    ),
    "a row is a dict": Mistake(
        'assets=({"ACME": ...},)',
        'AssetBalance(text(row, "code", "row"), total=required_amount(row, "quantity", "row"))',
        'dict(asset="ACME")',
        "a row is not an AssetBalance, but of the type dict: write AssetBalance(...)",
    ),
    "a field of a row is misspelt": Mistake(
        "AssetBalance(..., totl=...)",
        "total=",
        "totl=",
        "AssetBalance has no totl. Did you mean total?",
    ),
    "a time has no zone": Mistake(
        "venue_time=datetime.now()",
        'type="cash", ',
        'type="cash", venue_time=datetime.now(), ',
        (
            "the venue_time of a VenueAccount has no time zone: read it by `milliseconds`, or write "
            "datetime(..., tzinfo=UTC)"
        ),
    ),
    "an account is of a type that is not listed": Mistake(
        'VenueAccount(type="margin")',
        'type="cash"',
        'type="margin"',
        ("an account is of the type 'margin', which account_types of acme does not list: write one of cash"),
    ),
    "a field is read that the user is not asked for": Mistake(
        'required_text(call.credential, "api_secret")',
        'credential, "api_key"',
        'credential, "api_secret"',
        (
            "it reads api_secret of the credential, which credential_fields of acme does not list: write "
            'CredentialField("api_secret", "...") there'
        ),
    ),
    "a field of the metadata is read as a secret": Mistake(
        'required_text(call.credential, "account_id")',
        'credential, "api_key"',
        'credential, "account_id"',
        "required_text reads api_key, api_secret, passphrase: read another field by read_metadata",
    ),
    "a slash is missing": Mistake(
        'call.url() + "v1/holdings"',
        '"/v1/holdings"',
        '"v1/holdings"',
        (
            "The plugin for Acme Brokerage asked for something that is not an HTTP address. Write call.url()"
            ' + "/v1/..." in the plugin, with the slash behind the host.'
        ),
    ),
    "an address is not whole": Mistake(
        'call.http.get("/v1/holdings")',
        'call.url() + "/v1/holdings"',
        '"/v1/holdings"',
        (
            "The plugin for Acme Brokerage asked for something that is not an HTTP address. Write call.url()"
            ' + "/v1/..." in the plugin, with the slash behind the host.'
        ),
    ),
    "another host is asked": Mistake(
        'call.http.get("https://acme.example/...")',
        'call.url() + "/v1/holdings"',
        '"https://acme.example/v1/holdings"',
        (
            "The plugin for Acme Brokerage asked for the host acme.example, and venue_urls sends it to "
            "another: it should ask call.url()."
        ),
    ),
    "the loop is blocked": Mistake(
        "time.sleep(2)",
        "    token =",
        "    time.sleep(2)\n    token =",
        (
            "it blocks the event loop, so all accounts of the plugin wait: write `await asyncio.sleep(...)` "
            "in place of time.sleep, `call.http` in place of requests, and `await asyncio.to_thread(...)` "
            "for what cannot be awaited"
        ),
        test="test_it_never_blocks_the_event_loop",
    ),
    "a hook prints": Mistake(
        "print(token)",
        "    response.raise",
        "    print('here')\n    response.raise",
        "",
    ),
}
