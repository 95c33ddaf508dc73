"""The console as the service serves it, over HTTP."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from exchange_service.startup_checks import UnsafeSettings
from tests.authenticated_service import authenticated_service, tls_settings
from tests.harness import ScriptedPlugin, registry_of, serving
from tests.identities import SECRET, Authority


async def test_the_address_that_is_printed_opens_the_accounts_once(tmp_path: Path) -> None:
    web = {"http_address": "127.0.0.1:0", "console": True}
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **web) as running:
        url = running.service.web.console_url("alice")
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as session, aiohttp.ClientSession() as other:
            async with session.get(url) as page:
                assert page.status == 200
            async with session.get(url.partition("/login")[0]) as page:
                assert page.url.path == "/accounts"
                assert "alice" in await page.text()
            async with other.get(url) as page:
                assert page.status == 403


async def test_a_service_with_callers_has_no_link_but_a_sign_in(tmp_path: Path) -> None:
    async with authenticated_service(tmp_path, http_address="127.0.0.1:0", console=True) as running:
        url = running.service.web.console_url()
        assert "key=" not in url
        async with aiohttp.ClientSession() as session, session.get(url) as page:
            assert page.url.path == "/login"


async def test_on_every_address_of_the_machine_the_console_is_at_the_first_of_the_names(tmp_path: Path) -> None:
    names = {"http_address": "0.0.0.0:0", "http_hosts": ["app.example", "other.example"]}
    settings = tls_settings(Authority.create(tmp_path), address="127.0.0.1:0", jwt_secret=SECRET, console=True, **names)
    async with authenticated_service(tmp_path, **settings) as running:
        port = running.service.web.address.rpartition(":")[2]
        assert running.service.web.console_url() == f"https://app.example:{port}/"


async def test_no_page_is_served_unless_the_console_is_on(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), http_address="127.0.0.1:0") as running:
        assert running.service.web.console_url() == ""
        url = f"http://{running.service.web.address}/login"
        async with aiohttp.ClientSession() as session, session.get(url) as page:
            assert page.status == 404


async def test_the_console_needs_an_address(tmp_path: Path) -> None:
    with pytest.raises(UnsafeSettings, match="http_address"):
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), console=True):
            pass
