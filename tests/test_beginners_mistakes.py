"""What a plugin's author is told of a beginner's mistake: what is wrong, where, and what to write.

The service and the contract suite say it in the same words. Callers see no text of the plugin.
"""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from exchange_service.authoring.trial_report import describe_trial
from exchange_service.authoring.trying import NotLoaded, Wish, load_project, try_plugin
from exchange_service.errors import PluginFailed
from exchange_service.model import Credential, PluginInfo
from exchange_service.plugin_host.main import _LogWriter
from exchange_service.testing import suite
from exchange_service.testing.projects import PluginProject
from exchange_service.venues.http import WHOLE_ADDRESS
from exchange_service.venues.loading import PLUGIN_GROUP, load_entry_point
from exchange_service.venues.printing import PRINTS
from exchange_service.venues.registry import Registry, load_registry
from tests.beginners.mistakes import AT_A_CALL, AT_LOAD, Mistake
from tests.beginners.plugin import MODULE, SOURCE, TOKEN, AcmeVenue, suite_of
from tests.harness import USER, ScriptedPlugin, loaded, serving

# What a sentence has beside what is wrong: the right form, or where it is found.
_WHAT_TO_WRITE = re.compile(
    r"[Ww]rite |Did you mean|Its hooks are|must be|All that a plugin imports|read |should ask|give each|end each way|"
    r"in [\w.]+, line"
)


class Plugin:
    """The plugin of the test in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.point = EntryPoint("acme", MODULE, PLUGIN_GROUP)

    def write(self, mistake: Mistake | None = None) -> EntryPoint:
        """Write the right plugin, or the one with the mistake."""
        text = SOURCE
        if mistake is not None:
            assert mistake.old in text
            text = text.replace(mistake.old, mistake.new)
            if "API_VERSION" in mistake.new:
                text = text.replace("    AssetBalance, Balance,", "    API_VERSION, AssetBalance, Balance,")
        (self.folder / f"{MODULE}.py").write_text(text)
        importlib.invalidate_caches()
        return self.point


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugin]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop(MODULE, None)
    yield Plugin(tmp_path)
    sys.modules.pop(MODULE, None)


def problem(point: EntryPoint) -> str:
    """Why the service does not load the plugin."""
    (found,) = load_registry(points=[point]).problems
    return found.reason


def project_of(point: EntryPoint) -> PluginProject:
    return PluginProject(PluginInfo("acme", "1.0", "exchange-service-acme"), point, (), None)


def suites_word(point: EntryPoint) -> str:
    """With what the contract suite fails that pytest collects for the plugin."""
    (refused,) = suite.project_suites(project_of(point))
    with pytest.raises(AssertionError) as failed:
        refused().test_the_service_would_load_it()  # type: ignore[attr-defined]
    return str(failed.value)


class TestAtLoad:
    @pytest.mark.parametrize("name", AT_LOAD)
    def test_the_list_of_plugins_and_the_suite_say_what_to_write(self, plugin: Plugin, name: str) -> None:
        point = plugin.write(AT_LOAD[name])
        assert problem(point) == AT_LOAD[name].told
        assert AT_LOAD[name].told in suites_word(point)

    @pytest.mark.parametrize("name", AT_LOAD)
    def test_plugins_try_says_the_same(self, plugin: Plugin, name: str) -> None:
        with pytest.raises(NotLoaded) as refused:
            load_project(project_of(plugin.write(AT_LOAD[name])))
        assert refused.value.reason == AT_LOAD[name].told

    @pytest.mark.parametrize("name", AT_LOAD)
    def test_no_path_of_the_machine_is_told(self, plugin: Plugin, name: str) -> None:
        assert str(plugin.folder) not in problem(plugin.write(AT_LOAD[name]))

    @pytest.mark.parametrize(
        ("value", "told"),
        [
            (
                "acme:Acme",
                'Its entry point names acme:Acme, which the module does not have: write acme = "acme".',
            ),
            (
                "acme:VenueCall",
                'Its entry point names acme:VenueCall, which is not a module: write acme = "acme" in its '
                "pyproject.toml.",
            ),
            (
                "acme:fetch_balance",
                'Its entry point names acme:fetch_balance, which is not a module: write acme = "acme" in its '
                "pyproject.toml.",
            ),
            (
                "acmee",
                "Its entry point names the module acmee, which is not found: name the plugin's own module in its "
                'pyproject.toml, such as acme = "exchange_service_acme", and install it again.',
            ),
            (
                "acme.py/acme",
                "Its entry point 'acme.py/acme' does not name a module: write a line such as acme = "
                '"exchange_service_acme" in its pyproject.toml.',
            ),
        ],
    )
    def test_an_entry_point_that_names_something_else_is_told_the_right_line(
        self, plugin: Plugin, value: str, told: str
    ) -> None:
        plugin.write()
        point = EntryPoint("acme", value, PLUGIN_GROUP)
        assert problem(point) == told
        assert told in suites_word(point)

    def test_two_plugins_of_one_id_are_both_named_with_the_setting_that_chooses(self) -> None:
        (told,) = Registry([loaded(ScriptedPlugin(), "first"), loaded(ScriptedPlugin(), "second")]).problems
        assert told.reason == (
            "'fakex' is claimed by exchange-service-first and exchange-service-second; exchange-service-first serves "
            "it. Uninstall one, or choose the other one with the setting "
            'exchange_plugins={"fakex": "exchange-service-second"}.'
        )

    def test_the_name_of_the_page_may_be_imported_if_the_number_is_written(self, plugin: Plugin) -> None:
        good = SOURCE.replace("    AssetBalance, Balance,", "    API_VERSION, AssetBalance, Balance,")
        (plugin.folder / f"{MODULE}.py").write_text(good)
        assert load_registry(points=[plugin.point]).problems == ()

    def test_a_text_of_an_exception_that_may_hold_anything_is_not_told(self, plugin: Plugin) -> None:
        for raised in ("TypeError('hunter2')", "TypeError('hunter2() got an unexpected keyword argument \\'x\\'')"):
            mistake = Mistake("", "import time", f"raise {raised}", "")
            assert problem(plugin.write(mistake)).startswith(
                "Importing acme failed with TypeError in acme, line 3. Run"
            )
            sys.modules.pop(MODULE, None)


# Python's own word for the await that two of the mistakes lack.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
class TestAtACall:
    @pytest.mark.parametrize("name", [name for name in AT_A_CALL if AT_A_CALL[name].told])
    async def test_the_log_says_what_to_write_and_the_caller_sees_no_text_of_the_plugin(
        self, plugin: Plugin, name: str, tmp_path: Path
    ) -> None:
        registry = Registry([load_entry_point(plugin.write(AT_A_CALL[name]))])
        async with (
            AcmeVenue() as venue,
            serving(tmp_path, registry=registry, venue_urls={"acme": venue.url}, venue_timeout=1.0) as running,
        ):
            await running.store("acme", api_key=TOKEN)
            with capture_logs() as lines, pytest.raises(PluginFailed) as failed:
                await running.client.get_balance(USER, "acme")
        (line,) = [line for line in lines if line["event"] == "plugin.failed"]
        assert (line["plugin"], line["problem"]) == ("acme", AT_A_CALL[name].told)
        assert MODULE in str(failed.value) or "Acme" in str(failed.value)
        assert "12.50" not in str(failed.value)
        assert TOKEN not in str(failed.value)

    @pytest.mark.parametrize("name", AT_A_CALL)
    async def test_the_suite_fails_with_the_same_words(self, plugin: Plugin, name: str) -> None:
        mistake = AT_A_CALL[name]
        suite = suite_of(plugin.write(mistake).load())
        with pytest.raises((AssertionError, PluginFailed)) as failed:
            await getattr(suite, mistake.test)()
        assert (mistake.told or PRINTS).removesuffix(".") in str(failed.value)

    @pytest.mark.parametrize("name", AT_A_CALL)
    async def test_plugins_try_says_the_same(self, plugin: Plugin, name: str) -> None:
        mistake = AT_A_CALL[name]
        project = load_project(project_of(plugin.write(mistake)))
        async with AcmeVenue() as venue:
            wish = Wish(url=venue.url, timeout=1.0)
            credential = Credential.from_texts({"api_key": TOKEN})
            trial = await try_plugin(project, project.listing("acme"), wish, credential, "the test")
        report = describe_trial(project, trial, lines=1)
        if mistake.told:
            assert mistake.told in (report["error"]["problem"], trial.error and trial.error.text)
        else:
            assert f"{PRINTS[0].upper()}{PRINTS[1:]}." in report["notices"]

    async def test_the_right_plugin_gives_a_balance_and_passes(self, plugin: Plugin) -> None:
        suite = suite_of(plugin.write().load())
        for test in {mistake.test for mistake in AT_A_CALL.values()}:
            await getattr(suite, test)()

    async def test_a_slash_that_is_missing_before_the_path_is_told_at_the_real_host_too(
        self, plugin: Plugin, tmp_path: Path
    ) -> None:
        registry = Registry([load_entry_point(plugin.write(AT_A_CALL["a slash is missing"]))])
        async with serving(tmp_path, registry=registry) as running:
            await running.store("acme", api_key=TOKEN)
            with pytest.raises(PluginFailed) as failed:
                await running.client.get_balance(USER, "acme")
        assert "a host that its manifest does not name: api.acme.examplev1" in str(failed.value)
        assert 'A slash is missing behind the host: write call.url() + "/v1/..." in the plugin.' in str(failed.value)
        assert "with the slash" in WHOLE_ADDRESS

    async def test_a_blocked_loop_is_told_with_the_place_while_it_blocks(self, plugin: Plugin, tmp_path: Path) -> None:
        registry = Registry([load_entry_point(plugin.write(AT_A_CALL["the loop is blocked"]))])
        async with (
            AcmeVenue() as venue,
            serving(tmp_path, registry=registry, venue_urls={"acme": venue.url}, venue_timeout=1.0) as running,
        ):
            await running.store("acme", api_key=TOKEN)
            with capture_logs() as lines, pytest.raises(PluginFailed, match=r"blocked its event loop for 2(\.\d)? s"):
                await running.client.get_balance(USER, "acme")
        events = {line["event"]: line["at"][-1] for line in lines if line["event"].startswith("plugin.")}
        sleeps = SOURCE[: SOURCE.index("    token =")].count("\n") + 1
        assert events == dict.fromkeys(("plugin.blocks", "plugin.failed"), f"{plugin.folder / MODULE}.py:{sleeps}")

    def test_print_in_a_plugins_process_is_told_once_with_the_place(self) -> None:
        code = compile("import logging\nfor _ in range(3):\n    print('here')\n", "acme", "exec")
        with capture_logs() as lines, contextlib.redirect_stdout(_LogWriter()):  # type: ignore[type-var]
            exec(code, {"__name__": MODULE})
        (told,) = [line for line in lines if line["event"] == "plugin.prints"]
        assert (told["problem"], told["at"]) == (PRINTS, "acme, line 3")
        assert [line["line"] for line in lines if line["event"] == "plugin.output"] == ["here"] * 3


async def test_print_at_import_fails_the_suite(plugin: Plugin) -> None:
    plugin.write(Mistake("", "import time\n", "import time\nprint('here')\n", ""))
    suite = suite_of(plugin.point.load())
    with pytest.raises(AssertionError, match=r"it prints: write .*; at import"):
        suite.test_importing_it_pulls_in_neither_heavy_libraries_nor_the_service()


async def test_a_secret_of_the_credential_that_the_listing_does_not_ask_for_fails_the_suite(plugin: Plugin) -> None:
    mistake = Mistake("", '(CredentialField("api_key", "API token"),)', "()", "")
    suite = suite_of(plugin.write(mistake).load())
    with pytest.raises(
        AssertionError, match=r'credential_fields of acme .*: write CredentialField\("api_key", "..."\)'
    ):
        await suite.test_a_good_credential_gives_a_balance()


@pytest.mark.parametrize("name", [*AT_LOAD, *AT_A_CALL])
def test_each_sentence_says_what_to_write(name: str) -> None:
    told = (AT_LOAD | AT_A_CALL)[name].told or PRINTS
    assert _WHAT_TO_WRITE.search(told)
