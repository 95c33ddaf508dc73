"""A manifest's rules are one set: what the service refuses at load, the contract suite fails, in the same words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from decimal import Decimal
from types import MappingProxyType, ModuleType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from exchange_service.model import WrongValue
from exchange_service.plugin_api import (
    Balance,
    Capabilities,
    CredentialField,
    Environment,
    ExchangeMetadata,
    Manifest,
    PluginSetting,
    RateLimit,
    VenueCall,
    hookimpl,
)
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing import suite as suite_module
from exchange_service.testing.contract import ListingContract
from exchange_service.venues.loading import load_plugin
from exchange_service.venues.lookalikes import mixes_alphabets, shape
from exchange_service.venues.manifests import (
    PluginRejected,
    manifest_faults,
    read_manifest,
    validate_manifest,
    write_manifest,
)
from exchange_service.venues.registry import Registry, load_registry
from tests.harness import ScriptedPlugin, info, listing, loaded

LIMIT = RateLimit("address", 10, 60)
FIELD = CredentialField("api_key", "Key")
SETTING = PluginSetting("region", "The region.", type="number", default=Decimal("0.50"))
FULL = listing(
    "acme",
    name="Acme",
    credential_fields=(FIELD,),
    account_types=("cash", "margin"),
    default_account_types=("cash",),
    documentation_url="https://docs.acme.example",
    credential_url="https://acme.example/keys",
    countries=("DE",),
    limits=(LIMIT,),
)


def manifest_of(**changes: Any) -> Manifest:
    return Manifest(1, (replace(FULL, **changes),))


def with_field(item: Any, name: str, value: Any) -> Any:
    """The value with one field set past its constructor, as a plugin could do it."""
    changed = replace(item)
    object.__setattr__(changed, name, value)
    return changed


# Each class of a manifest, and the manifest around a value of it.
HOLDERS: dict[type, Any] = {
    Manifest: (Manifest(1, (FULL,)), lambda value: value),
    ExchangeMetadata: (FULL, lambda value: Manifest(1, (value,))),
    Environment: (FULL.environments[0], lambda value: manifest_of(environments=(value,))),
    CredentialField: (FIELD, lambda value: manifest_of(credential_fields=(value,))),
    Capabilities: (Capabilities(), lambda value: manifest_of(capabilities=value)),
    RateLimit: (LIMIT, lambda value: manifest_of(limits=(value,))),
    PluginSetting: (SETTING, lambda value: Manifest(1, (FULL,), settings=(value,))),
}


def wrong_values(kind: Any) -> Iterator[Any]:
    """Values that a field of this type must not have; the commonest slips first."""
    if get_origin(kind) is UnionType and len(get_args(kind)) > 2:
        yield from (1.5, b"x", ("x",), ["x"], {})
    elif get_origin(kind) is UnionType:
        yield from (value for value in wrong_values(get_args(kind)[0]) if value is not None)
    elif get_origin(kind) is tuple:
        (inner, _) = get_args(kind)
        held = {Environment: FULL.environments[0], CredentialField: FIELD, RateLimit: LIMIT, PluginSetting: SETTING}
        one = "cash" if inner is str else held.get(inner, FULL)
        yield from (one, [one], {one} if inner is str else [], None, 5, (one, None), (5,), ({},), (b"x",))
    elif kind is str:
        yield from (5, None, b"x", ("x",), ["x"], True, {})
    elif kind is bool:
        yield from (1, 0, "yes", None, (True,))
    elif kind is int:
        yield from ("1", 1.5, None, True, (1,))
    elif kind is Capabilities:
        yield from ({}, None, "balance", Capabilities, ("balance",), True)
    elif get_origin(kind) is Literal:
        yield from ("venue", 5, None, ("key",))
    elif get_args(kind) == (str, int):
        yield from ("cash", [("cash", 1)], None, {"cash": "1"}, {"cash": 1.5}, {5: 1}, MappingProxyType({"cash": 1}), 5)
    else:
        yield from ("https://x.example", [("api", "x")], None, {"api": 5}, {5: "x"}, MappingProxyType({"api": "x"}), 5)


def wire_takes(manifest: Manifest) -> bool:
    """Whether the manifest arrives as it is in another process."""
    try:
        return read_manifest(write_manifest(manifest)) == manifest
    except (ValueError, TypeError):
        return False


class TestTypes:
    @pytest.mark.threat("T38")
    @pytest.mark.parametrize("kind", HOLDERS, ids=lambda kind: kind.__name__)
    def test_a_value_of_another_type_is_refused_by_field_type_and_right_form(
        self, kind: type, record_property: Any
    ) -> None:
        good, around = HOLDERS[kind]
        tried, wrong = 0, []
        for item in fields(kind):
            for value in wrong_values(get_type_hints(kind)[item.name]):
                manifest = around(with_field(good, item.name, value))
                tried += 1
                faults = list(manifest_faults(manifest))
                parts = {type(part).__name__ for part in _parts(value)}
                types = {type(value).__name__, *parts, "None"}
                if not any(
                    item.name in fault and "should be" in fault and types & set(_words(fault)) for fault in faults
                ):
                    wrong.append((item.name, value, faults))
                # JSON has one form for True and for a flag that is 1.
                assert value is True or not wire_takes(manifest), f"{item.name}={value!r} would arrive as it is"
        record_property(
            SWEEP,
            [
                "wrong types in manifests",
                [f"{kind.__name__}.{item.name}" for item in fields(kind)],
                tried,
                0,
                len(wrong),
            ],
        )
        assert wrong == []

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            (
                {"account_types": "trading"},
                'should be a tuple of texts and is of the type str. A comma is missing: write ("trading",)',
            ),
            (
                {"limits": LIMIT},
                "is of the type RateLimit. A comma is missing: write (RateLimit(...),)",
            ),
            (
                {"account_types": ["cash"]},
                "account_types should be a tuple of texts and is of the type list. Write (..., ) with round brackets",
            ),
            ({"countries": "x" * 100}, 'write ("...",)'),
            ({"name": None}, "name should be a text and is None."),
        ],
    )
    def test_the_commonest_slips_are_named_with_what_to_write(self, changes: Any, sentence: str) -> None:
        (fault,) = manifest_faults(manifest_of(**changes))
        assert sentence in fault
        assert fault.startswith("In its manifest, exchanges[0]")

    def test_the_manifests_own_list_may_lack_its_comma_too(self) -> None:
        (fault,) = manifest_faults(Manifest(1, FULL))  # type: ignore[arg-type]
        assert "exchanges should be a tuple of ExchangeMetadata and is of the type ExchangeMetadata. A comma" in fault
        (fault,) = manifest_faults(Manifest(1, [FULL]))  # type: ignore[arg-type]
        assert "exchanges should be a tuple of ExchangeMetadata and is of the type list." in fault

    @pytest.mark.parametrize(
        "changes",
        [
            {"scope": 5},
            {"count": "10"},
            {"seconds": 1.5},
            {"cost": True},
            {"count": 0},
            {"costs": 5},
            {"costs": {"all": 0}},
        ],
    )
    def test_a_rate_limit_refuses_wrong_values_itself_and_names_the_field(self, changes: Any) -> None:
        with pytest.raises(WrongValue, match=f"RateLimit.{next(iter(changes))} must"):
            RateLimit(**{"scope": "key", "count": 10, "seconds": 60, "cost": 1, **changes})

    def test_every_installed_manifest_survives_the_wire_and_breaks_no_rule(self, record_property: Any) -> None:
        registry = load_registry()
        for plugin in registry.plugins:
            assert list(manifest_faults(plugin.manifest)) == []
            assert wire_takes(plugin.manifest)
        record_property(SWEEP, ["rules of manifests", sorted(registry.listings), len(registry.listings), 0, 0])


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, tuple | list) else []


def _words(sentence: str) -> list[str]:
    return sentence.replace(".", " ").replace(",", " ").split()


SANDBOXED = (
    Environment("production", {"api": "https://a.example"}),
    Environment("sandbox", {"api": "https://b.example"}),
)


def production(*, url: str = "https://a.example", name: str = "production", **more: Any) -> dict[str, Any]:
    return {"environments": (Environment(name, {"api": url}, **more),)}


# What the service refuses of values with the right types, and a part of the sentence.
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "a cost of an account type that is not listed": (
        {"limits": (RateLimit("address", 10, 60, costs={"Cash": 2}),)},
        "costs of an account type that is neither listed",
    ),
    "an id in capitals": ({"id": "Acme"}, "lower case letters"),
    "an id with a blank": ({"id": "ac me"}, "lower case letters"),
    "an id of 65 characters": ({"id": "a" * 65}, "lower case letters"),
    "an id that begins with a sign": ({"id": "-acme"}, "lower case letters"),
    "an id with a letter of another alphabet": ({"id": "аcme"}, "lower case letters"),
    "an id that ends with a line": ({"id": "acme\n"}, "lower case letters"),
    "an asset class of its own": ({"asset_class": "Shares"}, "asset_class that is not one of Crypto, Forex"),
    "an asset class in small letters": ({"asset_class": "crypto"}, "asset_class"),
    "a blank name": ({"name": " "}, "lacks name"),
    "an invisible name": ({"name": "\u3164"}, "in name that is not shown"),
    "a name of signs": ({"name": "..."}, "without a letter or digit"),
    "a name of two alphabets": ({"name": "Bіnance"}, "two alphabets"),
    "an escape in the name": ({"name": "\x1b[31mAcme"}, "in name"),
    "a direction in the name": ({"name": "Acme\u202egpj"}, "in name"),
    "a zero width blank in the name": ({"name": "Ac\u200bme"}, "in name"),
    "a C1 character in the instructions": ({"instructions": "Do\x9bit."}, "in instructions"),
    "a line end in the instructions": ({"instructions": "Do it.\nNow."}, "in instructions"),
    "an escape in a country": ({"countries": ("\x1b",)}, "countries[0]"),
    "half of a pair in market_hours": ({"market_hours": "\ud800"}, "in market_hours"),
    "a text without an end": ({"instructions": "x" * 3000}, "more than 2000"),
    "an http address": (production(url="http://a.example"), "https://"),
    "an address without a scheme": (production(url="a.example"), "without a host"),
    "an address with a password": (production(url="https://u:p@a.example"), "more than scheme"),
    "an address with a query": (production(url="https://a.example?x=1"), "more than scheme"),
    "an address of another alphabet": (production(url="https://аpi.example"), "without a host, or with a wrong one"),
    "an address with a wrong port": (production(url="https://a.example:port"), "without a host, or with a wrong one"),
    "an environment without an address": ({"environments": (Environment("production", {}),)}, "no address"),
    "no environment": ({"environments": ()}, "'production' first"),
    "another environment first": (
        {"environments": SANDBOXED[::-1], "capabilities": Capabilities(sandbox=True)},
        "first",
    ),
    "an environment of its own": (production(name="live"), 'Environment("production", {...}, aliases=("live",))'),
    "an alias in capitals": (production(aliases=("Live",)), "not lower case"),
    "an alias with a blank": (production(aliases=(" live",)), "not lower case"),
    "an alias twice": (production(aliases=("live", "live")), "share a name"),
    "a sandbox that capabilities lack": ({"environments": SANDBOXED}, "capabilities.sandbox"),
    "a sandbox in capabilities alone": ({"capabilities": Capabilities(sandbox=True)}, "capabilities.sandbox"),
    "an http link": ({"documentation_url": "http://docs.example"}, "documentation_url that is not a link"),
    "a link that runs code": ({"credential_url": "javascript:alert(1)"}, "credential_url"),
    "a link with a user": ({"credential_url": "https://binance.com@evil.example"}, "credential_url"),
    "a link of another alphabet": ({"credential_url": "https://bіnance.com"}, "credential_url"),
    "an http logo": ({"logo": "http://a.example/l.png"}, "logo"),
    "a logo of another host": ({"logo": "//evil.example/l.png"}, "logo"),
    "a logo that holds data": ({"logo": "data:image/svg+xml,x"}, "logo"),
    "another plugin's credential": ({"credential_of": "oanda"}, "another plugin"),
    "a credential field twice": ({"credential_fields": (FIELD, FIELD)}, "twice"),
    "a credential field with a blank": ({"credential_fields": (CredentialField("api key", "Key"),)}, "letter followed"),
    "a field that the service reads": ({"credential_fields": (CredentialField("sandbox", "S"),)}, "itself reads"),
    "a field without a label": ({"credential_fields": (CredentialField("api_key", ""),)}, "no label"),
    "a secret that is shown": ({"credential_fields": (CredentialField("api_secret", "S", secret=False),)}, "as secret"),
    "a key that rotates": (
        {"credential_fields": (CredentialField("api_key", "Key", rotates=True),)},
        "api_key rotates",
    ),
    "a number that rotates": (
        {"credential_fields": (CredentialField("account_id", "Account", secret=False, rotates=True),)},
        "because it rotates",
    ),
    "a private key of another kind": (
        {"credential_fields": (CredentialField("api_key", "Key", private_keys=("dsa",)),)},
        "not one of rsa",
    ),
    "an escape in a label": ({"credential_fields": (CredentialField("api_key", "\x1b]0;x"),)}, "the label of"),
    "an account type that is a request": ({"account_types": ("all",), "default_account_types": ()}, "'all'"),
    "an account type twice": ({"account_types": ("cash", "Cash")}, "twice"),
    "more units than can be counted": ({"limits": (RateLimit("key", 10**400, 60),)}, "more than 1000000000 units"),
    "a window without an end": ({"limits": (RateLimit("key", 10, 10**400),)}, "more than 31622400 seconds"),
    "a default that is not listed": ({"default_account_types": ("spot",)}, "account_types does not list"),
}


def environment(*names: str) -> dict[str, Any]:
    listed = tuple(Environment(name, {"api": "https://a.example"}) for name in names)
    return {"environments": listed, "capabilities": Capabilities(sandbox=len(names) > 1)}


@pytest.mark.parametrize(
    ("names", "written"),
    [
        (("production", "paper"), ['Environment("sandbox", {...}, aliases=("paper",))']),
        (("production", "Demo "), ['Environment("sandbox", {...}, aliases=("demo",))']),
        (("production", "uat-2"), ['Environment("sandbox", {...}, aliases=("uat-2",))']),
        (("live", "sandbox"), ['Environment("production", {...}, aliases=("live",))']),
        (
            ("live", "practice"),
            [
                'Environment("production", {...}, aliases=("live",))',
                'Environment("sandbox", {...}, aliases=("practice",))',
            ],
        ),
        (("production", "live"), ["a listing of its own"]),
        (("production", "alpha"), ['Environment("sandbox", {...}, aliases=("alpha",))']),
        (("production", "sandbox", "paper"), ["a listing of its own"]),
        (("production", "paper", "demo"), ['aliases=("paper",)', "a listing of its own"]),
        (("production", 'pa"per'), ['aliases=("pa\\"per",)']),
    ],
    ids=str,
)
def test_an_environment_of_another_name_is_refused_with_what_to_write(
    names: tuple[str, ...], written: list[str]
) -> None:
    sentences = list(manifest_faults(manifest_of(**environment(*names))))
    about = [sentence for sentence in sentences if "Environments are called 'production' and 'sandbox'" in sentence]
    assert len(about) == len(written)
    for sentence, words in zip(about, written, strict=True):
        assert words in sentence
    assert not any("capabilities.sandbox" in sentence or "'production' first" in sentence for sentence in sentences)


def test_environments_of_other_names_in_the_wrong_order_are_told_both() -> None:
    first, second, order = manifest_faults(manifest_of(**environment("testnet", "main")))
    assert 'Environment("sandbox", {...}, aliases=("testnet",))' in first
    assert 'Environment("production", {...}, aliases=("main",))' in second
    assert "'production' first" in order


def module_of(manifest: Manifest) -> ModuleType:
    """A plugin's module with this manifest."""

    @hookimpl
    def exchange_manifest() -> Manifest:
        return manifest

    @hookimpl
    async def fetch_balance(call: VenueCall) -> Balance:
        return Balance(())

    module = ModuleType("exchange_service_acme")
    vars(module).update(exchange_manifest=exchange_manifest, fetch_balance=fetch_balance)
    return module


def contract_of(tested: ModuleType) -> ListingContract:
    class Suite(ListingContract):
        plugin = tested
        exchange_id = "acme"

    return Suite()


class TestRules:
    @pytest.mark.threat("T36")
    @pytest.mark.parametrize("name", BROKEN)
    def test_a_broken_rule_is_refused_at_load_and_fails_the_contract_suite_in_the_same_words(self, name: str) -> None:
        changes, words = BROKEN[name]
        module = module_of(manifest_of(**changes))
        with pytest.raises(PluginRejected) as refusal:
            load_plugin(module, info("acme"))
        sentence = str(refusal.value)
        assert words in sentence
        assert sentence.endswith(".")
        assert sentence.isprintable(), "a sentence does nothing to a terminal"
        with pytest.raises(AssertionError) as failed:
            contract_of(module).test_the_service_would_load_it()
        assert sentence in str(failed.value)

    @pytest.mark.parametrize(
        "twin", [replace(FULL, id="acme_"), replace(FULL, id="other", name="ACME"), replace(FULL, id="0anda", name="X")]
    )
    def test_a_listing_that_the_service_leaves_out_for_its_looks_fails_the_suite(self, twin: ExchangeMetadata) -> None:
        with pytest.raises(AssertionError, match=r"leave listings out:\n.* looks like that of"):
            contract_of(module_of(Manifest(1, (FULL, twin)))).test_the_service_would_load_it()

    def test_a_listing_that_the_operator_may_choose_passes_the_suite(self) -> None:
        theirs = (replace(FULL, id="oanda", name="OANDA"), replace(FULL, id="kraken", name="Kraken"))
        contract_of(module_of(Manifest(1, (FULL, *theirs)))).test_the_service_would_load_it()

    def test_a_manifest_that_keeps_every_rule_passes_both(self) -> None:
        module = module_of(Manifest(1, (FULL,), notes=("All is well.",)))
        assert load_plugin(module, info("acme")).manifest.exchanges == (FULL,)
        contract_of(module).test_the_service_would_load_it()

    def test_a_manifest_without_an_exchange_and_a_note_that_does_something_are_refused(self) -> None:
        assert list(manifest_faults(Manifest(1, ()))) == [
            "It lists no exchange: write exchanges=(ExchangeMetadata(...),)."
        ]
        (fault,) = manifest_faults(Manifest(1, (FULL,), notes=("\x1b[2J",)))
        assert fault.startswith("It has a character in notes[0]")

    def test_a_logo_may_be_a_file_of_the_application_that_shows_it(self) -> None:
        assert validate_manifest(manifest_of(logo="/acme.png"))
        assert validate_manifest(manifest_of(logo="https://acme.example/acme.png"))

    def test_the_suite_of_the_command_line_fails_where_no_suite_can_be_made(self) -> None:
        (made,) = suite_module.suites(module_of(Manifest(1, FULL)), {})  # type: ignore[arg-type]
        with pytest.raises(AssertionError, match="A comma is missing"):
            made().test_the_service_would_load_it()


def third_party(*listings: ExchangeMetadata, name: str = "zzz") -> Any:
    return loaded(ScriptedPlugin(*listings), name, "acme-lookalike")


HOMOGLYPHS = str.maketrans("aceiopxyABEKMHOPCTX", "асеіорхуАВЕКМНОРСТХ")
# How a name is made to look like another one.
DISGUISES = {
    "in capitals": str.upper,
    "with separators": lambda name: "-".join(name),
    "with a dot": lambda name: f"{name}.",
    "with letters of another alphabet": lambda name: name.translate(HOMOGLYPHS),
    "with accents": lambda name: name.replace("a", "á").replace("o", "ö").replace("i", "í"),
    "in wide letters": lambda name: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in name),
    "with digits for letters": lambda name: name.replace("o", "0").replace("l", "1").replace("s", "5"),
    "as it is": lambda name: name,
}


@pytest.mark.threat("T36")
class TestLookalikes:
    ours = load_registry()

    @pytest.mark.parametrize("disguise", DISGUISES)
    def test_a_third_party_listing_whose_name_looks_like_another_is_not_listed(
        self, disguise: str, record_property: Any
    ) -> None:
        names = {metadata.metadata.name: exchange_id for exchange_id, metadata in self.ours.listings.items()}
        disguised = [(DISGUISES[disguise](name), name) for name in names]
        # One of two alphabets is refused before.
        made = [(shown, name) for shown, name in disguised if not mixes_alphabets(shown)]
        listings = [listing(f"twin-{number}", name=shown) for number, (shown, _) in enumerate(made)]
        registry = Registry([*self.ours.plugins, third_party(*listings)])
        served = [item.id for item in listings if item.id in registry.listings]
        tried = [names[name] for _, name in disguised]
        record_property(SWEEP, ["names that look like others'", tried, len(disguised), 0, len(served)])
        assert served == []
        assert set(registry.listings) == set(self.ours.listings)
        problems = [problem for problem in registry.problems if problem.plugin.distribution == "acme-lookalike"]
        assert len(problems) == len(made)
        assert all("looks like that of" in problem.reason and not problem.notice for problem in problems)

    @pytest.mark.parametrize("twin", ["binance_us", "binance-us", "b1nanceus", "0kx", "0anda", "tradier-options"])
    def test_a_third_party_id_that_looks_like_another_is_not_listed(self, twin: str) -> None:
        registry = Registry([*self.ours.plugins, third_party(listing(twin, name="Something Else"))])
        assert twin not in registry.listings
        (problem,) = [item for item in registry.problems if item.plugin.distribution == "acme-lookalike"]
        assert f"{twin!r} (Something Else) is not listed" in problem.reason

    def test_an_id_of_ccxt_under_the_name_of_another_venue_is_left_to_ccxt(self) -> None:
        registry = Registry([third_party(listing("binance", name="KRAKEN")), *self.ours.plugins])
        assert registry.find("binance").plugin.info.name == "ccxt_generic"

    def test_of_two_third_party_ones_the_first_is_listed(self) -> None:
        first = loaded(ScriptedPlugin(listing("acme", name="Acme")), "first", "acme-one")
        second = loaded(ScriptedPlugin(listing("acme2", name="ACME"), listing("other")), "second", "acme-two")
        registry = Registry([first, second])
        assert list(registry.listings) == ["acme", "other"]

    @pytest.mark.parametrize(
        "twin",
        [
            "BINANCE",
            "Ｂｉｎａｎｃｅ",
            "Bínance",
            "B-i-n-a-n-c-e",
            "Binаnсе",
            "ΒΙΝΑΝϹΕ",
            "𝐁𝐢𝐧𝐚𝐧𝐜𝐞",
            "ᏴINANCE",
            "Blnance",
            "Ⓑinance",
            "Ƀinance",
            "Bin\u200bance",
            "BƖNANCE",
        ],
    )
    def test_these_have_the_shape_of_binance(self, twin: str) -> None:
        assert shape(twin) == shape("Binance")

    def test_our_own_ids_and_names_are_told_apart(self) -> None:
        seen: dict[str, str] = {}
        for exchange_id, listed in self.ours.listings.items():
            for text in {shape(exchange_id), shape(listed.metadata.name)}:
                assert seen.setdefault(text, exchange_id) == exchange_id


class TestSettings:
    @pytest.mark.parametrize(
        "default", [None, "a", "0.5", True, False, 0, 7, 10**40, Decimal("0.50"), Decimal("1E+2"), Decimal(5)]
    )
    def test_a_default_arrives_in_another_process_as_it_is(self, default: Any) -> None:
        kinds: dict[type, Any] = {str: "text", bool: "boolean", int: "number", Decimal: "number"}
        setting = PluginSetting("one", "One.", kinds.get(type(default), "text"), default=default)
        manifest = Manifest(1, (FULL,), settings=(setting, PluginSetting("two", "Two.", secret=True, required=True)))
        assert list(manifest_faults(manifest)) == []
        (arrived, _) = read_manifest(write_manifest(manifest)).settings
        assert (arrived, type(arrived.default), str(arrived.default)) == (setting, type(default), str(default))

    @pytest.mark.parametrize(
        ("settings", "sentence"),
        [
            ((SETTING, SETTING), "It declares a setting twice."),
            ((PluginSetting("client-id", "x"),), "It declares a setting whose name is not a letter followed by"),
            ((PluginSetting("", "x"),), "whose name is not a letter followed by"),
            ((PluginSetting("a" * 65, "x"),), "whose name is not a letter followed by"),
            ((PluginSetting("one", " "),), "It has no description for the setting 'one': say what the operator"),
            ((PluginSetting("one", "a\nb"),), "a character in the description of the setting 'one'"),
            ((PluginSetting("one", "x", "number", secret=True),), "the secret 'one' with another type than text"),
            ((PluginSetting("one", "x", secret=True, default="a"),), "with another type than text, or with a default."),
            (
                (PluginSetting("one", "x", required=True, default="a"),),
                "'one', which is required: leave one of the two",
            ),
            ((PluginSetting("one", "x", "number", default="5"),), "the setting 'one' that is not a number."),
            ((PluginSetting("one", "x", "number", default=True),), "the setting 'one' that is not a number."),
            ((PluginSetting("one", "x", "number", default=Decimal("NaN")),), "the setting 'one' that is not a number."),
            ((PluginSetting("one", "x", "boolean", default="true"),), "the setting 'one' that is not a boolean."),
            ((PluginSetting("one", "x", default=5),), "the setting 'one' that is not a text."),
            ((PluginSetting("one", "x", default=""),), "the setting 'one' that is not a text."),
            ((PluginSetting("one", "x", "url", default="acme.example"),), "the setting 'one' that is not a url."),
            (tuple(PluginSetting(f"n{number}", "x") for number in range(33)), "It declares more than 32 settings."),
        ],
    )
    def test_a_broken_rule_is_a_sentence(self, settings: Any, sentence: str) -> None:
        (fault,) = manifest_faults(Manifest(1, (FULL,), settings=settings))
        assert sentence in fault

    def test_a_float_is_refused_with_the_exact_number_to_write(self) -> None:
        setting = PluginSetting("one", "x", "number", default=0.5)  # type: ignore[arg-type]
        (fault,) = manifest_faults(Manifest(1, (FULL,), settings=(setting,)))
        assert fault.startswith("In its manifest, settings[0] ('one').default should be a text or True or False or")
        assert fault.endswith('and is of the type float. Write Decimal("0.5").')
