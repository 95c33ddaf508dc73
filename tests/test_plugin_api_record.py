"""The names that plugins use are recorded: what would break a plugin is told by name, and what is added is no break."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.plugin_api_record import breaks, present, recorded

ROOT = Path(__file__).parent.parent
# In the record of which module, a change, and the sentence that tells it.
BREAKS: dict[str, tuple[str, str, str, str]] = {
    "a name is gone": ("plugin_api", "def wallet_address(", "def address_of_wallet(", "wallet_address: Public object"),
    "a method is gone": ("plugin_api", "    def wants(", "    def asks_for(", "VenueCall.wants: Public object"),
    "a field is gone": ("plugin_api", "    debt: Decimal | None\n", "", "AssetBalance.debt: Public object"),
    "a field has another name": (
        "plugin_api",
        "    sub_account: str\n",
        "    wallet: str\n",
        "VenueAccount.sub_account: Public object",
    ),
    "a parameter has another name": (
        "plugin_api",
        "def amount(source: Mapping[str, Any], key: str",
        "def amount(source: Mapping[str, Any], name: str",
        "amount(key): Parameter was removed",
    ),
    "a parameter is added that has to be given": (
        "plugin_api",
        "def parse_json(body: bytes | str",
        "def parse_json(body: bytes | str, limit: int",
        "parse_json(limit): Parameter was added as required",
    ),
    "a field is added that has to be given": (
        "plugin_api",
        "    def __init__(self, asset: str,",
        "    def __init__(self, account: str, asset: str,",
        "AssetBalance.__init__(account): Parameter was added as required",
    ),
    "a default is another": (
        "plugin_api",
        "cost: int = 1",
        "cost: int = 2",
        "RateLimit.__init__(cost): Parameter default was changed, from `cost: int = 1` to `cost: int = 2`",
    ),
    "a class derives from another": (
        "plugin_api",
        "class CredentialRejected(VenueError)",
        "class CredentialRejected(HostError)",
        "CredentialRejected: it is no VenueError any more",
    ),
    "a function is another kind of thing": (
        "plugin_api",
        "def exact_sum(",
        "class exact_sum:\n    def __call__(",
        "exact_sum: Public object points to a different kind of object",
    ),
    "a type is another": (
        "plugin_api",
        "    count: int\n",
        "    count: str\n",
        "RateLimit.count: its type was int and is str",
    ),
    "a parameter's type is another": (
        "plugin_api",
        "check_unique(names: Iterable[",
        "check_unique(names: Sequence[",
        "check_unique(names): its type was",
    ),
    "a name of the test kit is gone": (
        "testing",
        "def bearer_token(",
        "def token_of(",
        "testing: bearer_token: Public",
    ),
    "a method of a simulator is gone": ("testing", "    def move(", "    def moves(", "DemoVenue.move: Public object"),
}


def test_the_plugin_api_has_no_break_that_is_not_recorded() -> None:
    assert list(breaks(recorded(), present())) == [], "see `python -m scripts.plugin_api_record`"


@pytest.mark.parametrize("name", BREAKS)
def test_a_break_is_told_by_name(name: str) -> None:
    module, old, new, sentence = BREAKS[name]
    before = present()
    assert old in before[module]
    found = list(breaks(before, before | {module: before[module].replace(old, new, 1)}))
    assert any(sentence in told for told in found), found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("    venue_asset: str\n", "    venue_asset: str\n    note: str\n"),
        ("kind: str = '') -> None: ...", "kind: str = '', note: str = '') -> None: ..."),
        ("API_VERSION: Any\n", "API_VERSION: Any\n\nA_NEW_NAME: Any\n"),
        ("-> Decimal | None: ...\n\n", "-> Decimal | None: ...\n\ndef a_new_function() -> None: ...\n\n"),
        ("def parse_json(body: bytes | str", "def parse_json(body: bytes | str, limit: int = 7"),
    ],
)
def test_what_is_added_breaks_nothing(old: str, new: str) -> None:
    before = present()
    assert old in before["plugin_api"]
    after = before | {"plugin_api": before["plugin_api"].replace(old, new, 1)}
    assert after != before
    assert list(breaks(before, after)) == []


def test_the_command_fails_with_what_broke_and_how_to_record_it(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom scripts import plugin_api_record as record\n"
        "before = record.present()\n"
        "before['plugin_api'] += '\\ndef gone() -> None: ...\\n'\n"
        "record.recorded = lambda: before\nsys.exit(record.main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "exchange_service.plugin_api: gone: Public object was removed." in done.stdout
    assert "record it with `make api`" in done.stdout
