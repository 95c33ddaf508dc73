"""A hook of another form than the plugin API says is refused at load with a sentence, and by a type checker before."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from exchange_service.venues.loading import load_plugin
from exchange_service.venues.manifests import PluginRejected
from tests.harness import info

HEAD = """
import functools
from collections.abc import AsyncIterator, Awaitable
from typing import Any, TYPE_CHECKING
from exchange_service.plugin_api import *

if TYPE_CHECKING:
    from nowhere import Nothing
"""
GOOD = {
    "exchange_manifest": """
@hookimpl
def exchange_manifest() -> Manifest:
    return Manifest(1, (ExchangeMetadata("acme", "Acme", "Crypto", "Crypto Spot", "24/7 Trading",
                                         (Environment("production", {"api": "https://acme.example"}),)),))
""",
    "fetch_balance": """
@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    return Balance(())
""",
    "watch_balance": """
@hookimpl
async def watch_balance(call: VenueCall) -> AsyncIterator[Balance]:
    yield Balance(())
""",
    "check_credential": """
@hookimpl
async def check_credential(call: VenueCall) -> KeyRights:
    return KeyRights()
""",
    "refresh_manifest": """
@hookimpl
async def refresh_manifest() -> Manifest | None:
    return None
""",
}


def load(folder: Path, **hooks: str) -> None:
    """Load a plugin with these hooks in place of the good ones."""
    module = ModuleType("acme_of_the_test")
    exec(compile(HEAD + "".join((GOOD | hooks).values()), "acme_of_the_test", "exec"), vars(module))
    load_plugin(module, info("acme"))


def changed(name: str, old: str, new: str) -> dict[str, str]:
    assert old in GOOD[name]
    return {name: GOOD[name].replace(old, new)}


# A change to a good hook that is refused, and a part of the sentence.
REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "an async manifest": (
        changed("exchange_manifest", "def", "async def"),
        "write `def exchange_manifest() -> Manifest`",
    ),
    "a manifest that yields": (changed("exchange_manifest", "return", "yield"), "write `def exchange_manifest()"),
    "a manifest that is a dict": (changed("exchange_manifest", "-> Manifest", "-> dict[str, Any]"), "it returns dict"),
    "a plain fetch_balance": (changed("fetch_balance", "async def", "def"), "write `async def fetch_balance(call)"),
    "a fetch_balance that yields": (
        changed("fetch_balance", "return", "yield"),
        "write `async def fetch_balance(call)",
    ),
    "a fetch_balance of a dict": (
        changed("fetch_balance", "-> Balance", "-> dict[str, Any]"),
        "says that it returns dict",
    ),
    "a fetch_balance of nothing": (changed("fetch_balance", "-> Balance", "-> None"), "says that it returns NoneType"),
    "a fetch_balance of perhaps": (
        changed("fetch_balance", "-> Balance", "-> Balance | None"),
        "returns exchange_service",
    ),
    "a fetch_balance of an account": (
        changed("fetch_balance", "-> Balance", "-> VenueAccount"),
        "returns VenueAccount",
    ),
    "an awaitable of an awaitable": (changed("fetch_balance", "-> Balance", "-> Awaitable[Balance]"), "Awaitable"),
    "a plain check_credential": (changed("check_credential", "async def", "def"), "write `async def check_credential"),
    "a check_credential of a flag": (changed("check_credential", "-> KeyRights", "-> bool"), "it returns bool"),
    "a plain refresh_manifest": (changed("refresh_manifest", "async def", "def"), "write `async def refresh_manifest"),
    "a refresh_manifest of a list": (changed("refresh_manifest", "-> Manifest | None", "-> list[Manifest]"), "list"),
    "a watch_balance that returns": (changed("watch_balance", "yield", "return"), "with yield`"),
    "a plain watch_balance": (changed("watch_balance", "async def", "def"), "with yield`"),
    "a watch_balance of accounts": (
        changed("watch_balance", "AsyncIterator[Balance]", "AsyncIterator[VenueAccount]"),
        "says that it returns",
    ),
    "a wrapper": (changed("fetch_balance", "@hookimpl", "@hookimpl(tryfirst=True, wrapper=True)"), "hook"),
}
ACCEPTED: dict[str, dict[str, str]] = {
    "no types": changed("fetch_balance", "(call: VenueCall) -> Balance", "(call)"),
    "Any": changed("fetch_balance", "-> Balance", "-> Any"),
    "a type that cannot be read": changed("fetch_balance", "-> Balance", '-> "Nothing"'),
    "a type as a text": changed("fetch_balance", "-> Balance", '-> "Balance"'),
    "no newer manifest": changed("refresh_manifest", "-> Manifest | None", "-> None"),
    "a decorated one": {
        "fetch_balance": """
def retried(function):
    @functools.wraps(function)
    def call_it(call):
        return function(call)
    return call_it

@hookimpl
@retried
async def fetch_balance(call: VenueCall) -> Balance:
    return Balance(())
"""
    },
}


class TestLoad:
    @pytest.mark.parametrize("name", REFUSED)
    def test_a_hook_of_another_form_is_refused_with_the_right_one(self, tmp_path: Path, name: str) -> None:
        hooks, words = REFUSED[name]
        with pytest.raises(PluginRejected) as refusal:
            load(tmp_path, **hooks)
        assert next(iter(hooks)) in str(refusal.value)
        assert words in str(refusal.value)
        assert str(refusal.value).endswith(".")

    @pytest.mark.parametrize("name", ACCEPTED)
    def test_what_says_nothing_wrong_is_loaded(self, tmp_path: Path, name: str) -> None:
        load(tmp_path, **ACCEPTED[name])

    def test_the_good_ones_are_loaded(self, tmp_path: Path) -> None:
        load(tmp_path)

    def test_a_listing_that_pushes_needs_the_hook_for_it(self, tmp_path: Path) -> None:
        pushing = changed("exchange_manifest", "),)),))", "),), capabilities=Capabilities(push=True)),))")
        load(tmp_path, **pushing)
        with pytest.raises(PluginRejected, match=r"Its listing acme says that it pushes, and the hook watch_balance"):
            load(tmp_path, **pushing, watch_balance="")

    @pytest.mark.parametrize("name", ["exchange_manifest", "fetch_balance"])
    def test_a_missing_one_is_named(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(PluginRejected, match=f"The hook {name} is missing"):
            load(tmp_path, **{name: ""})


# Hooks that a type checker refuses.
BADLY_TYPED = """
@hookimpl
def exchange_manifest() -> dict[str, Any]: ...
@hookimpl
def fetch_balance(call: VenueCall) -> Balance: ...
@hookimpl
async def fetch_balance_2(call: VenueCall) -> dict[str, Any]: ...
@hookimpl
async def fetch_balance_3(call: VenueCall, more: int) -> Balance: ...
@hookimpl
async def fetch_balance_4(call: VenueCall) -> Balance | None: ...
@hookimpl
async def check_credential(call: VenueCall) -> bool: ...
@hookimpl
def watch_balance(call: VenueCall) -> Balance: ...
@hookimpl
def refresh_manifest() -> Manifest | None: ...
"""


def test_mypy_sees_the_form_of_a_hook_and_keeps_its_signature(tmp_path: Path) -> None:
    typed = HEAD.replace("if TYPE_CHECKING:\n    from nowhere import Nothing\n", "")
    (tmp_path / "good.py").write_text(f"{typed}{''.join(GOOD.values())}\nreveal_type(fetch_balance)\n")
    (tmp_path / "bad.py").write_text(typed + BADLY_TYPED)
    root = Path(__file__).parent.parent
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--disable-error-code=empty-body",
        tmp_path / "good.py",
        tmp_path / "bad.py",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=110)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    good = [line for line in errors if "good.py" in line]
    assert good == []
    assert re.search(
        r"good\.py:\d+: note: Revealed type is \"def \(call: [\w.]*VenueCall\) -> .*Balance\]\"", done.stdout
    )
    refused = [line for line in errors if "bad.py" in line and "_Hook" in line]
    assert len(refused) == BADLY_TYPED.count("@hookimpl"), done.stdout
