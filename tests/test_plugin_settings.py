"""What an operator sets for a plugin reaches that plugin alone, in its types; what is wrong is a sentence."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from exchange_service.cli import app
from exchange_service.cli.demo import running_demo
from exchange_service.credentials.keyset_files import create_keyset_file
from exchange_service.credentials.keysets import new_keyset
from exchange_service.errors import PluginUnavailable
from exchange_service.model import Manifest, PluginInfo, PluginSetting, Secret
from exchange_service.observability.redaction import redact_text
from exchange_service.plugin_host.discovery import open_registry
from exchange_service.plugin_host.process import ServeConfig
from exchange_service.settings import Settings
from exchange_service.testing.contract import PluginContract
from exchange_service.venues.manifests import PluginRejected
from exchange_service.venues.plugin_settings import OperatorSettings
from exchange_service.venues.registry import Registry
from exchange_service.venues.setting_values import SettingRefused, read_value, read_values, write_values
from tests.harness import Running, ScriptedPlugin, eventually, info, listing, serving, settings_for, until
from tests.test_plugin_host import install

SECRET = "the-client-secret-of-acme-4711"
DECLARED = (
    PluginSetting("client_id", "The application's id at Acme.", required=True),
    PluginSetting("client_secret", "The application's secret.", secret=True, required=True),
    PluginSetting("share", "A share of the limit.", type="number", default=Decimal("0.25")),
    PluginSetting("paper", "Whether paper accounts are read.", type="boolean"),
    PluginSetting("gateway", "The address of the gateway.", type="url"),
)
ACME = info("acme", "acme-exchange")
GIVEN = {"client_id": "abc", "client_secret": {"env": "ACME_CLIENT_SECRET"}}
ENVIRONMENT = {"ACME_CLIENT_SECRET": SECRET}


def values_of(
    given: Mapping[str, Any],
    *,
    plugin: PluginInfo = ACME,
    declared: Sequence[PluginSetting] = DECLARED,
    installed: Sequence[PluginInfo] = (ACME,),
    environment: Mapping[str, str] = ENVIRONMENT,
) -> Mapping[str, Any]:
    return OperatorSettings(given, environment=environment).values(plugin, declared, installed)


def refusal(given: Mapping[str, Any], **more: Any) -> str:
    with pytest.raises(PluginRejected) as refused:
        values_of(given, **more)
    return str(refused.value)


class TestValues:
    def test_a_plugin_gets_them_in_the_types_of_its_manifest_with_the_defaults(self) -> None:
        values = values_of({"acme": {**GIVEN, "paper": True, "gateway": "https://gate.acme.example"}})
        assert values == {
            "client_id": "abc",
            "client_secret": Secret(SECRET),
            "share": Decimal("0.25"),
            "paper": True,
            "gateway": "https://gate.acme.example",
        }
        assert SECRET not in repr(values)

    @pytest.mark.parametrize(
        ("kind", "given", "value"),
        [
            ("number", 5, 5),
            ("number", "5", 5),
            ("number", 0.1, Decimal("0.1")),
            ("number", "0.12345678901234567890", Decimal("0.12345678901234567890")),
            ("number", "-1e2", Decimal("-1e2")),
            ("boolean", "True", True),
            ("boolean", False, False),
            ("url", "http://127.0.0.1:9/x", "http://127.0.0.1:9/x"),
            ("text", " blanks are kept ", " blanks are kept "),
        ],
    )
    def test_a_text_of_the_environment_becomes_a_value_of_its_type_and_never_a_float(
        self, kind: Any, given: Any, value: Any
    ) -> None:
        read = read_value(PluginSetting("one", "One.", type=kind), given)
        assert (read, type(read)) == (value, type(value))

    @pytest.mark.parametrize(
        ("kind", "given"),
        [
            *(
                ("number", value)
                for value in ("five", "", "1_000", "٣", float("nan"), float("inf"), True, None, [1], "9" * 60)
            ),
            *(("boolean", value) for value in ("yes", 1, 0, "", None)),
            *(("text", value) for value in (5, True, "", "  ", None, ["a"], "a\0b", "x" * 20_000)),
            *(
                ("url", value)
                for value in ("gate.example", "ftp://gate.example", "http:/", "https://u:p@gate.example", 5)
            ),
            *(
                ("url", value)
                for value in ("https://gate.example/ x", "https://gаte.example", "https://gate.example:x")
            ),
        ],
    )
    def test_a_value_of_another_type_is_refused_and_not_repeated(self, kind: Any, given: Any) -> None:
        with pytest.raises(SettingRefused) as refused:
            read_value(PluginSetting("one", "One.", type=kind), given)
        assert str(refused.value).startswith(("should be ", "is empty"))
        assert not isinstance(given, str) or len(given) < 5 or given not in str(refused.value)

    def test_a_line_break_at_the_end_of_a_variable_is_none_of_the_secret(self) -> None:
        values = values_of({"acme": GIVEN}, environment={"ACME_CLIENT_SECRET": "one\ntwo\r\n"})
        assert values["client_secret"] == Secret("one\ntwo")

    def test_they_arrive_in_another_process_as_they_are(self) -> None:
        values = values_of({"acme": {**GIVEN, "paper": False, "share": 7}})
        assert read_values(DECLARED, write_values(values)) == values
        exact = read_values(DECLARED, write_values(values_of({"acme": {**GIVEN, "share": "1E+2"}})))
        assert (exact["share"], type(exact["share"])) == (Decimal(100), Decimal)

    def test_the_handshakes_request_shows_no_secret(self) -> None:
        config = ServeConfig(Manifest(1, (listing(),)), {}, 8.0, 300.0, settings=values_of({"acme": GIVEN}))
        assert SECRET not in repr(config)
        assert config.request().settings["client_secret"] == SECRET


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "parts"),
        [
            (
                {},
                ("It needs the setting 'client_id' (The application's id at Acme).", '{"acme": {"client_id": "..."}}'),
            ),
            ({"client_id": "abc"}, ("'client_secret'", '{"acme": {"client_secret": {"env": "ACME_CLIENT_SECRET"}}}')),
            ({**GIVEN, "client_idd": "x"}, ("gives acme the setting 'client_idd'", "Did you mean 'client_id'?")),
            ({**GIVEN, "zzz": "x"}, ("'zzz', which it does not have. It has client_id, client_secret,",)),
            ({**GIVEN, "share": "much"}, ("The setting 'share' of acme in plugin_settings should be a number",)),
            ({**GIVEN, "paper": "perhaps"}, ("'paper' of acme in plugin_settings should be true or false.",)),
            ({**GIVEN, "client_secret": {"env": "ACME_UNSET"}}, ("variable ACME_UNSET, which is not set or empty",)),
            ({**GIVEN, "client_secret": {"file": "x"}}, ('should be a value, or {"env": "NAME"}',)),
            ({**GIVEN, "client_secret": "xs1:k:a:b"}, ("'client_secret' of acme", "is sealed, and there is no keyset")),
        ],
    )
    def test_the_sentence_names_plugin_setting_and_what_to_write(self, given: Any, parts: Sequence[str]) -> None:
        sentence = refusal({"acme": given})
        assert all(part in sentence for part in parts), sentence

    @pytest.mark.threat("T94")
    @pytest.mark.parametrize("written", [SECRET, "1234", 4711])
    def test_a_secret_in_plain_text_is_refused_with_both_ways_and_not_repeated(self, written: Any) -> None:
        sentence = refusal({"acme": {**GIVEN, "client_secret": written}})
        assert "is a secret, and stands there in plain text" in sentence
        assert 'Write {"env": "ACME_CLIENT_SECRET"}' in sentence
        assert "`exchange-service plugins seal acme client_secret` prints" in sentence
        assert str(written) not in sentence

    @pytest.mark.parametrize("misplaced", ["mYs3cretOfAcmeWithoutBlanks", "JBSWY3DPEHPK3PXP", "A7F2_B", "ab_cd"])
    def test_a_secret_in_place_of_a_variables_name_is_not_repeated_unless_it_looks_like_a_name(
        self, misplaced: str
    ) -> None:
        sentence = refusal({"acme": {**GIVEN, "client_secret": {"env": misplaced}}})
        assert "which is not set or empty" in sentence
        assert (misplaced in sentence) == (misplaced == "A7F2_B")

    def test_a_plugin_without_settings_says_so(self) -> None:
        assert refusal({"acme": {"x": 1}}, declared=()).endswith("It has no settings.")


class TestWhose:
    def test_the_distributions_name_is_as_good_as_the_plugins(self) -> None:
        assert values_of({"Acme_Exchange": GIVEN})["client_id"] == "abc"
        assert "names it twice" in refusal({"acme": GIVEN, "acme-exchange": GIVEN})

    @pytest.mark.threat("T94")
    def test_a_plugin_that_calls_itself_as_the_distribution_of_another_gets_nothing_of_it(self) -> None:
        thief = info("acme-exchange", "acme-thief")
        both = (ACME, thief)
        given = {"acme-exchange": GIVEN}
        for plugin in both:
            assert "so neither gets it" in refusal(given, plugin=plugin, installed=both)
        assert values_of({"acme": GIVEN}, installed=both)["client_id"] == "abc"
        assert "It needs the setting" in refusal({"acme": GIVEN}, plugin=thief, installed=both)

    @pytest.mark.threat("T94", attack=True)
    def test_a_distribution_with_the_name_of_a_plugin_gets_its_secrets_unless_both_are_compared(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        thief = info("thief", "acme")
        with monkeypatch.context() as off:
            off.setattr("exchange_service.venues.plugin_settings._is_meant", lambda *_: True)
            stolen = values_of({"acme": GIVEN}, plugin=thief, installed=(ACME, thief))
            assert stolen["client_secret"] == Secret(SECRET)
        for plugin in (ACME, thief):
            sentence = refusal({"acme": GIVEN}, plugin=plugin, installed=(ACME, thief))
            assert "so neither gets it" in sentence
        assert "Write 'acme-exchange' for this one." in refusal({"acme": GIVEN}, installed=(ACME, thief))

    @pytest.mark.threat("T94")
    def test_a_plugin_of_this_project_keeps_its_settings_whatever_others_call_themselves(self) -> None:
        ours, thief = info("oanda"), info("thief", "oanda")
        installed = (ours, thief)
        assert values_of({"oanda": GIVEN}, plugin=ours, installed=installed)["client_id"] == "abc"
        assert "It needs the setting" in refusal({"oanda": GIVEN}, plugin=thief, installed=installed)

    @pytest.mark.threat("T94")
    @pytest.mark.parametrize("thief", ["aaa-thief", "zzz-thief"])
    async def test_of_two_distributions_with_a_plugin_of_one_name_neither_gets_what_is_set_for_the_name(
        self, thief: str, site: Path, tmp_path: Path
    ) -> None:
        add(site, "acme")
        install(site, "acme", ACME_PLUGIN.format(name="acme", settings=f"{OWN},", newer="return None"), thief)
        given = {"client_id": "abc", "client_secret": {"env": "ACME_CLIENT_SECRET"}}
        registry = open_registry(settings_for(tmp_path, plugin_settings={"acme": given}))
        assert [plugin for plugin in registry.plugins if plugin.info.name == "acme"] == []
        assert any("so neither gets it" in problem.reason for problem in registry.not_loaded)
        await registry.close()
        named = open_registry(settings_for(tmp_path, plugin_settings={"acme-acme": given}))
        served = [plugin.info.distribution for plugin in named.plugins if plugin.info.name == "acme"]
        await named.close()
        # The thief has the name, and none of the settings.
        assert served == ([] if thief < "acme-acme" else ["acme-acme"])


ACME_PLUGIN = """
import json, logging, os

from exchange_service.plugin_api import *

NAME = "{name}"


@hookimpl
def exchange_manifest():
    return Manifest(1, (ExchangeMetadata(
        NAME, NAME.title(), "Crypto", "Crypto Spot", "24/7 Trading",
        (Environment("production", {{"api": "https://acme.example"}}),), account_types=("spot",),
    ),), settings=({settings}))


@hookimpl
async def fetch_balance(call):
    shown = {{
        name: value.reveal() if isinstance(value, Secret) else str(value) for name, value in call.settings.items()
    }}
    for value in shown.values():
        print("the plugin prints", value)
        logging.getLogger("acme").warning("the plugin logs %s", value)
    found = [name for name, value in os.environ.items() if "client-secret-of" in value]
    report = {{"settings": shown, "repr": repr(call) + repr(dict(call.settings)), "found": found}}
    return Balance((VenueAccount(type="spot"),), notes=(json.dumps(report),))


@hookimpl
async def refresh_manifest():
    {newer}
"""
OWN = 'PluginSetting("client_id", "The id.", required=True), PluginSetting("client_secret", "It.", secret=True)'


def add(folder: Path, name: str, settings: str = OWN, newer: str = "return None") -> None:
    settings = f"{settings}," if settings else ""
    install(folder, name, ACME_PLUGIN.format(name=name, settings=settings, newer=newer))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("EXCHANGE_SERVICE_DATABASE_URL", f"sqlite:///{tmp_path / 'service.db'}")
    # Nothing listens there.
    monkeypatch.setenv("EXCHANGE_SERVICE_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("ACME_CLIENT_SECRET", SECRET)
    monkeypatch.setenv("OTHER_CLIENT_SECRET", "the-client-secret-of-other-0815")
    return folder


async def report_of(running: Running, name: str) -> dict[str, Any]:
    await running.store(name)
    found: dict[str, Any] = {}

    async def serves() -> bool:
        try:
            reply = await running.client.get_balance("alice", name, max_age=0)
        except PluginUnavailable:
            return False
        found.update(json.loads(reply.balance.notes[0]))
        return True

    await eventually(serves, "the plugin's process")
    return found


BOTH = {
    "acme": {"client_id": "abc", "client_secret": {"env": "ACME_CLIENT_SECRET"}},
    "other": {"client_id": "def", "client_secret": {"env": "OTHER_CLIENT_SECRET"}},
}


class TestService:
    @pytest.mark.threat("T94")
    @pytest.mark.parametrize("place", ["own-process", "in-process"])
    async def test_each_plugin_gets_its_own_and_no_log_line_shows_a_secret(
        self, site: Path, tmp_path: Path, place: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for name in BOTH:
            add(site, name)
        places = {name: place for name in BOTH if place == "in-process"}
        with capture_logs() as lines:
            async with serving(tmp_path, plugin_settings=BOTH, plugin_processes=places) as running:
                reports = {name: await report_of(running, name) for name in BOTH}
                assert reports["acme"]["settings"] == {"client_id": "abc", "client_secret": SECRET}
                secret = "the-client-secret-of-other-0815"
                assert reports["other"]["settings"] == {"client_id": "def", "client_secret": secret}
                assert SECRET not in reports["acme"]["repr"]
                assert "Secret(***)" in reports["acme"]["repr"]
                if place == "own-process":
                    # The environment, from which the service has them, is not the process's.
                    assert [report["found"] for report in reports.values()] == [[], []]
                    await until(lambda: any("the plugin prints" in str(line) for line in lines), "a line of the plugin")
                    assert "client-secret-of" not in str(lines)
                assert redact_text(f"signed with {SECRET}", runs=False) == "signed with [hidden]"
        assert redact_text(f"signed with {SECRET}", runs=False) == f"signed with {SECRET}"
        assert SECRET not in repr(running.service.settings)

    async def test_a_plugin_whose_settings_are_wrong_is_a_problem_and_the_others_serve(
        self, site: Path, tmp_path: Path
    ) -> None:
        for name in BOTH:
            add(site, name)
        wrong = {**BOTH, "acme": {"client_id": "abc", "client_secret": SECRET}, "gone": {"x": 1}}
        with capture_logs() as lines:
            async with serving(tmp_path, plugin_settings=wrong) as running:
                assert (await report_of(running, "other"))["settings"]["client_id"] == "def"
                assert "acme" not in running.service.registry.listings
                problems = (await running.client.list_exchanges()).problems
                assert [item.plugin.name for item in problems if "in plain text" in item.reason] == ["acme"]
        unused = [line["reason"] for line in lines if line["event"] == "settings.unused"]
        assert "plugin_settings names 'gone', which is not an installed plugin." in unused
        assert "plugin_settings names 'acme', which is not loaded." in unused
        assert SECRET not in str(lines)

    async def test_a_newer_manifest_gets_its_new_settings_if_they_fit(self, site: Path, tmp_path: Path) -> None:
        more = f'{OWN}, PluginSetting("share", "It.", type="number", default=3)'
        newer = "return Manifest(1, exchange_manifest().exchanges, ('Newer.',), ({}))"
        add(site, "acme", newer=newer.format(more))
        add(site, "other", newer=newer.format(f'{OWN}, PluginSetting("region", "It.", required=True)'))
        async with serving(tmp_path, plugin_settings=BOTH) as running:
            registry = running.service.registry
            await until(lambda: any(item.reason == "Newer." for item in registry.problems), "the newer manifest")
            assert (await report_of(running, "acme"))["settings"]["share"] == "3"
            await until(lambda: any("'region'" in item.reason for item in registry.problems), "the refusal")
            (notice,) = [item for item in registry.problems if "'region'" in item.reason]
            assert notice.notice
            assert notice.reason.startswith("Its newer manifest is not used. It needs the setting 'region'")
            assert "share" not in (await report_of(running, "other"))["settings"]


def invoke(*arguments: str, input: str | None = None) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["plugins", *arguments], input=input)
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


class TestSealed:
    @pytest.fixture
    def keyset(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        file = tmp_path / "keyset.json"
        create_keyset_file(file)
        monkeypatch.setenv("EXCHANGE_SERVICE_KEYSET_FILE", str(file))
        # With a keyset third-party plugins are loaded by name.
        monkeypatch.setenv("EXCHANGE_SERVICE_ALLOWED_PLUGINS", '["acme-acme", "acme-other"]')
        return file

    def sealed(self, plugin: str = "acme", setting: str = "client_secret") -> str:
        code, output, errors = invoke("seal", plugin, setting, input=f"{SECRET}\n")
        assert code == 0, errors
        assert SECRET not in output + errors
        return output.strip().splitlines()[-1]

    def settings(self, tmp_path: Path, keyset: Path, given: Mapping[str, Any]) -> Settings:
        allowed = ["acme-acme", "acme-other"]
        return settings_for(tmp_path, keyset_file=keyset, allowed_plugins=allowed, plugin_settings=given)

    def loaded(self, registry: Registry, name: str = "acme") -> Any:
        return next(plugin.settings for plugin in registry.plugins if plugin.info.name == name)

    @pytest.mark.threat("T94")
    async def test_what_seal_prints_opens_for_its_own_plugin_and_setting_alone(
        self, site: Path, tmp_path: Path, keyset: Path
    ) -> None:
        add(site, "acme", f'{OWN}, PluginSetting("more", "It.", secret=True)')
        add(site, "other")
        text = await asyncio.to_thread(self.sealed)
        assert text.startswith("xs1:")
        registry = open_registry(self.settings(tmp_path, keyset, {"acme": {"client_id": "a", "client_secret": text}}))
        assert self.loaded(registry)["client_secret"] == Secret(SECRET)
        await registry.close()
        given = {"acme": {"client_id": "a", "more": text}, "other": {"client_id": "a", "client_secret": text}}
        registry = open_registry(self.settings(tmp_path, keyset, given))
        reasons = {item.plugin.name: item.reason for item in registry.problems}
        for name, setting in (("acme", "more"), ("other", "client_secret")):
            assert f"The setting '{setting}' of {name} in plugin_settings is sealed and does not open" in reasons[name]
            assert f"`exchange-service plugins seal {name} {setting}`" in reasons[name]

    async def test_another_keyset_or_none_does_not_open_it(self, site: Path, tmp_path: Path, keyset: Path) -> None:
        add(site, "acme")
        text = await asyncio.to_thread(self.sealed)
        given = {"acme": {"client_id": "a", "client_secret": text}}
        settings = self.settings(tmp_path, keyset, given)
        for changes, part in (
            ({"keyset_file": None, "keyset": new_keyset().as_text()}, "does not open"),
            ({"keyset_file": None}, "there is no keyset: set keyset_file."),
            ({"keyset_file": tmp_path / "missing.json"}, "the keyset cannot be used"),
        ):
            registry = open_registry(Settings.model_validate(settings.model_dump() | changes))
            (reason,) = [item.reason for item in registry.problems if item.plugin.name == "acme"]
            assert part in reason
            assert str(tmp_path) not in reason

    def test_a_key_that_seals_a_setting_is_not_retired(
        self, site: Path, keyset: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(site, "acme")
        text = self.sealed()
        monkeypatch.setenv("EXCHANGE_SERVICE_PLUGIN_SETTINGS", json.dumps({"acme": {"client_secret": text}}))
        done = CliRunner().invoke(app, ["keys", "retire", text.split(":")[1]])
        assert done.exit_code == 4
        assert "acme.client_secret; seal these again first" in " ".join(done.stderr.split())

    @pytest.mark.parametrize(
        ("arguments", "input", "sentence"),
        [
            (("nobody", "client_secret"), SECRET, "no installed plugin has the name 'nobody'"),
            (
                ("acme", "clientsecret"),
                SECRET,
                "acme has no setting 'clientsecret'; its settings: client_id, client_secret",
            ),
            (
                ("acme", "client_id"),
                SECRET,
                "'client_id' of acme is not a secret: write it into plugin_settings as it is",
            ),
            (("acme", "client_secret"), " \n", "standard input holds no secret"),
        ],
    )
    def test_seal_says_what_is_wrong(
        self, site: Path, keyset: Path, arguments: tuple[str, ...], input: str, sentence: str
    ) -> None:
        add(site, "acme")
        code, output, errors = invoke("seal", *arguments, input=input)
        assert (code, "xs1:" in output) == (2, False)
        assert sentence in errors

    def test_seal_needs_a_keyset(self, site: Path) -> None:
        add(site, "acme")
        code, _, errors = invoke("seal", "acme", "client_secret", input=SECRET)
        assert code == 4
        assert "there is no keyset: `exchange-service keys create FILE`" in errors


class TestShown:
    def test_settings_shows_what_is_set_and_no_secret(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        add(site, "acme", f'{OWN}, PluginSetting("share", "It.", type="number", default=3)')
        monkeypatch.setenv("EXCHANGE_SERVICE_PLUGIN_SETTINGS", json.dumps({"acme": BOTH["acme"]}))
        code, output, _ = invoke("settings", "acme", "-o", "json")
        assert code == 0
        shown = {entry["setting"]: (entry["type"], entry["set"], entry["value"]) for entry in json.loads(output)}
        assert shown == {
            "client_id": ("text", True, "abc"),
            "client_secret": ("secret", True, None),
            "share": ("number", False, 3),
        }
        table = invoke("settings", "acme")[1]
        assert SECRET not in output + table
        assert "(set)" in table

    def test_what_the_operator_keeps_elsewhere_is_not_shown_even_if_the_plugin_forgets_that_it_is_a_secret(
        self, site: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add(site, "acme", 'PluginSetting("client_secret", "It.")')
        monkeypatch.setenv("ACME_SECRET", SECRET)
        given = {"acme": {"client_secret": {"env": "ACME_SECRET"}}}
        monkeypatch.setenv("EXCHANGE_SERVICE_PLUGIN_SETTINGS", json.dumps(given))
        code, output, _ = invoke("settings", "acme", "-o", "json")
        (entry,) = json.loads(output)
        assert (code, entry["set"], entry["value"]) == (0, True, None)
        assert SECRET not in output + invoke("settings", "acme")[1]

    def test_settings_of_a_plugin_that_is_refused_for_them_are_shown_with_the_reason(self, site: Path) -> None:
        add(site, "acme")
        code, output, errors = invoke("settings", "acme")
        assert code == 0
        assert "client_id" in output
        assert "acme: It needs the setting 'client_id'" in errors

    def test_plugins_and_doctor_show_a_plugin_that_is_refused(self, site: Path) -> None:
        add(site, "acme")
        code, output, _ = invoke("-o", "json")
        assert code == 4
        (problem,) = json.loads(output)["problems"]
        assert problem["reason"].startswith("It needs the setting 'client_id'")
        doctor = CliRunner().invoke(app, ["doctor"])
        assert "It needs the setting 'client_id'" in " ".join(doctor.stdout.split())


def test_the_settings_repr_shows_names_alone() -> None:
    settings = Settings(plugin_settings={"acme": {"anything": SECRET, "pin": "1234"}})
    assert "'plugin_settings': " not in repr(settings)
    assert "plugin_settings={'acme': ['anything', 'pin']}" in repr(settings)


SIMULATOR = """
from exchange_service.testing import DemoVenue


class Simulator(DemoVenue):
    exchange_id = "acme"
    settings = {"client_id": "of the simulator", "client_secret": "the-client-secret-of-the-simulator"}

    def routes(self):
        return []

    def demo_credential(self, situation):
        return {"api_key": "a-key"} if situation == "moving" else None
"""


def add_with_simulator(site: Path) -> None:
    add(site, "acme")
    (site / "acme_simulator.py").write_text(SIMULATOR)
    with (site / "acme_acme-1.2.dist-info" / "entry_points.txt").open("a") as points:
        points.write("\n[exchange_service.simulators]\nacme = acme_simulator:Simulator\n")


class TestTry:
    """`plugins try`, in a process of its own as its author runs it."""

    async def tried(self, site: Path, *arguments: str, **environment: str) -> tuple[int, str]:
        variables = {**os.environ, "PYTHONPATH": str(site), **environment}
        command = [sys.executable, "-m", "exchange_service", "plugins", "try", "acme", *arguments]
        done = await asyncio.to_thread(
            subprocess.run, command, input='{"api_key": "k"}', capture_output=True, text=True, env=variables, timeout=60
        )
        return done.returncode, " ".join((done.stdout + done.stderr).split())

    async def test_the_simulators_values_are_used_and_its_secrets_are_masked(self, site: Path) -> None:
        add_with_simulator(site)
        code, output = await self.tried(site)
        assert code == 0, output
        assert "the plugin prints of the simulator" in output
        assert "the-client-secret-of-the-simulator" not in output

    async def test_the_real_venue_is_asked_with_what_the_operator_has_set(self, site: Path) -> None:
        add(site, "acme")
        code, output = await self.tried(
            site, "--live", EXCHANGE_SERVICE_PLUGIN_SETTINGS=json.dumps({"acme": BOTH["acme"]})
        )
        assert code == 0, output
        assert "the plugin prints abc" in output
        assert SECRET not in output
        code, output = await self.tried(site, "--live")
        assert code == 3
        assert "It needs the setting 'client_id'" in output


async def test_the_demo_gives_a_plugin_the_settings_of_its_simulator_in_place_of_the_operators(
    site: Path, tmp_path: Path
) -> None:
    add_with_simulator(site)
    async with running_demo(settings_for(tmp_path, plugin_settings={"acme": BOTH["acme"]})) as demo:
        (plugin,) = [item for item in demo.service.registry.plugins if item.info.name == "acme"]
        secret = Secret("the-client-secret-of-the-simulator")
        assert plugin.settings == {"client_id": "of the simulator", "client_secret": secret}
        assert "acme" in demo.users["demo"]


class _Suite(PluginContract):
    exchange_id = "acme"


def suite_of(settings: Sequence[PluginSetting], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the contract suite gives a plugin that declares these settings, if its simulator names these values."""
    suite = _Suite()
    plugin = ScriptedPlugin(listing("acme"))
    plugin.manifest = replace(plugin.manifest, settings=tuple(settings))
    # Of a plugin that is a module the suite knows the name.
    plugin.__name__ = "acme"  # type: ignore[attr-defined]
    suite.plugin = plugin
    return suite._setting_values(given)


class TestSuite:
    def test_a_plugin_gets_its_defaults_and_what_its_simulator_names(self) -> None:
        values = suite_of(DECLARED, {"client_id": "a", "client_secret": "b"})
        assert values == {"client_id": "a", "client_secret": Secret("b"), "share": Decimal("0.25")}

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ({"client_id": "a"}, "'client_secret' is required, and the simulator has no value for it: write `settings"),
            ({"client_id": "a", "client_secret": "b", "x": 1}, "name what the manifest does not declare: ['x']"),
            (
                {"client_id": 1, "client_secret": "b"},
                "do not fit the manifest: The setting 'client_id' should be a text",
            ),
        ],
    )
    def test_it_says_what_the_simulator_lacks(self, given: Mapping[str, Any], sentence: str) -> None:
        with pytest.raises(AssertionError) as failed:
            suite_of(DECLARED, given)
        assert sentence in str(failed.value)
