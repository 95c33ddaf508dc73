"""Signing in by token and by link, and what sessions withstand."""

from __future__ import annotations

import base64
import logging
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography.fernet import Fernet
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from exchange_service import clock
from exchange_service.console import security, sessions, sign_in_page
from exchange_service.console.pages import environment
from exchange_service.console.sessions import LIFETIME, LONGEST_TOKEN, LoginLinks, Session, Sessions
from tests.authenticated_service import ACTS_FOR_ALL, EVERYBODY, amount, authenticated_service
from tests.console.browsing import HOST, Browser, Page
from tests.console.consoles import Elements, browsing, console_of
from tests.harness import HASH_KEY, ScriptedPlugin
from tests.identities import service_token, web_token

COOKIE = "exchange_service_session"


def request_with(**cookies: str) -> Request:
    text = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return Request({"type": "http", "headers": [(b"host", HOST.encode()), (b"cookie", text.encode())]})


def cookie_of(made: Sessions, **content: str) -> str:
    response = Response()
    made.start(request_with(), response, **content)
    return response.headers["set-cookie"].split(";")[0].partition("=")[2]


def cookie_in(page: Page) -> str:
    return page.headers["set-cookie"].split(";")[0].partition("=")[2]


class TestToken:
    async def test_a_token_of_the_service_opens_the_pages_of_its_user(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            browser = Browser(console_of(running, authenticated=True))
            assert (await browser.get("/accounts")).headers["location"] == "/login?next=%2Faccounts"
            page = await browser.post("/login", {"token": web_token("alice"), "user": "alice"})
            assert (page.status, page.headers["location"]) == (303, "/accounts")
            assert "of alice" in Elements((await browser.get("/accounts")).text).words

    @pytest.mark.parametrize("token", ["", "wrong", "two words", "ünreadable", "x" * (LONGEST_TOKEN + 1)])
    async def test_another_token_opens_nothing_and_is_not_shown_again(self, tmp_path: Path, token: str) -> None:
        async with authenticated_service(tmp_path) as running:
            browser = Browser(console_of(running, authenticated=True))
            page = await browser.post("/login", {"token": token, "user": "alice"})
            assert page.status == 401
            assert not browser.cookies
            fields = {field["name"]: field.get("value") for field in Elements(page.text).named("input")}
            assert fields == {"next": "/accounts", "token": None, "user": "alice"}
            # It does not work in a browser's form.
            assert "certificate" not in page.text

    async def test_who_may_look_at_several_users_is_asked_for_one_and_links_keep_it(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            token, _ = await service_token(running, EVERYBODY)
            browser = Browser(console_of(running, authenticated=True))
            await browser.post("/login", {"token": token})
            assert "Whose accounts?" in (await browser.get("/accounts")).text
            page = Elements((await browser.get("/accounts?user=bob")).text)
            assert "/exchanges?user=bob" in [link.get("href") for link in page.named("a")]
            assert "/accounts/events?user=bob" in [part.get("sse-connect") for part in page.named("div")]

    async def test_a_token_that_is_withdrawn_ends_its_session_at_once(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            browser = Browser(console_of(running, authenticated=True))
            await browser.post("/login", {"token": web_token("alice", lifetime=600), "user": "alice"})
            assert (await browser.get("/accounts")).status == 200
            made = browser.app._state.sessions  # type: ignore[attr-defined]
            browser.cookies[COOKIE] = cookie_of(made, token=web_token("alice", lifetime=-60), user="alice")
            assert (await browser.get("/accounts")).headers["location"].startswith("/login")

    async def test_a_token_that_acts_for_users_shows_the_one_that_is_named(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            token, _ = await service_token(running, ACTS_FOR_ALL)
            browser = Browser(console_of(running, authenticated=True))
            await browser.post("/login", {"token": token, "user": "bob"})
            assert amount("bob", "fakex") in (await browser.get("/accounts.json")).text
            assert amount("alice", "fakex") in (await browser.get("/accounts.json?user=alice")).text

    @pytest.mark.threat("T87", attack=True)
    async def test_the_token_is_in_no_page_no_log_line_and_no_address(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caplog.set_level(logging.DEBUG)
        token = web_token("alice")
        texts = []
        async with authenticated_service(tmp_path) as running:
            browser = Browser(console_of(running, authenticated=True))
            with capture_logs() as lines:
                page = await browser.post("/login", {"token": token, "user": "alice", "next": "/accounts"})
                for path in ("/accounts", "/accounts.json", "/exchanges", "/plugins", "/login", "/nowhere"):
                    texts.append((await browser.get(path)).text)
                async with browser.events("/accounts/events") as events:
                    texts.append((await events.next_of("figures-"))[1])
            with monkeypatch.context() as off:
                # A cookie that is only signed, and not sealed.
                off.setattr(Fernet, "encrypt_at_time", lambda _, data, now: base64.urlsafe_b64encode(data))
                unsealed = await Browser(browser.app).post("/login", {"token": token})
        assert token in str(base64.urlsafe_b64decode(cookie_in(unsealed)))
        texts += [str(page.headers), str(lines), caplog.text]
        texts += [cookie_in(page), str(base64.urlsafe_b64decode(cookie_in(page)))]
        assert all(token not in text for text in texts)
        # Nor does the log have what the pages show.
        assert any('class="amount"' in text for text in texts)
        assert 'class="amount"' not in caplog.text + str(lines)


class TestLink:
    async def test_a_link_signs_in_without_a_token_and_shows_its_user(self, tmp_path: Path) -> None:
        async with browsing(tmp_path, ScriptedPlugin()) as (_, browser):
            assert "of alice" in Elements((await browser.get("/accounts")).text).words

    @pytest.mark.threat("T85", attack=True)
    async def test_a_link_works_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with browsing(tmp_path, ScriptedPlugin()) as (_, browser):
            console: Any = browser.app
            with monkeypatch.context() as off:
                off.setattr(LoginLinks, "use", lambda links, key: links._users.get(key))
                seen = console.new_login_path()
                assert [(await Browser(console).get(seen)).status for _ in range(2)] == [200, 200]
            seen = console.new_login_path()
            assert [(await Browser(console).get(seen)).status for _ in range(2)] == [200, 403]

    @pytest.mark.threat("T85")
    @pytest.mark.parametrize("key", ["", "A", "A" * 43, "%00", "%F0%9F%94%91"])
    async def test_a_guessed_key_opens_nothing_and_uses_up_nothing(self, tmp_path: Path, key: str) -> None:
        async with browsing(tmp_path, ScriptedPlugin()) as (_, browser):
            console: Any = browser.app
            waiting = console.new_login_path()
            other = Browser(console)
            assert (await other.get(f"/login/link?key={key}")).status == 403
            assert not other.cookies
            assert (await other.get(waiting)).status == 200

    async def test_a_service_that_knows_its_callers_takes_no_link(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            console = console_of(running, authenticated=True)
            assert (await Browser(console).get(console.new_login_path())).status == 403

    async def test_a_service_without_authentication_takes_no_token(self, tmp_path: Path) -> None:
        async with browsing(tmp_path, ScriptedPlugin()) as (_, browser):
            other = Browser(browser.app)
            page = await other.post("/login", {"token": "any"})
            assert (page.status, other.cookies) == (403, {})
            assert "printed a link" in page.text

    @pytest.mark.threat("T85", attack=True)
    async def test_what_only_looks_at_a_link_does_not_use_it_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with browsing(tmp_path, ScriptedPlugin()) as (_, browser):
            console: Any = browser.app

            async def status_after_a_look() -> int:
                link = console.new_login_path()
                await Browser(console).request("HEAD", link, {})
                return (await Browser(console).get(link)).status

            with monkeypatch.context() as off:
                off.setattr(security, "check_request", lambda scope: None)
                assert await status_after_a_look() == 403
            assert await status_after_a_look() == 200

    def test_of_many_links_the_oldest_is_forgotten(self) -> None:
        links = LoginLinks()
        keys = [links.new_key() for _ in range(40)]
        assert links.use(keys[0]) is None
        assert links.use(keys[-1]) == ""


class TestCookie:
    @pytest.mark.parametrize(("secure", "name"), [(False, COOKIE), (True, f"__Host-{COOKIE}")])
    async def test_scripts_and_other_sites_do_not_get_it(self, tmp_path: Path, secure: bool, name: str) -> None:
        async with browsing(tmp_path, ScriptedPlugin()) as (running, _):
            console = console_of(running, secure=secure)
            page = await Browser(console).get(console.new_login_path())
        cookie = page.headers["set-cookie"]
        assert cookie.startswith(f"{name}=")
        attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert {"httponly", "samesite=strict", "path=/", f"max-age={LIFETIME}"} <= attributes
        assert ("secure" in attributes) is secure

    @pytest.mark.threat("T86", attack=True)
    async def test_behind_a_proxy_that_takes_the_tls_off_it_never_goes_without_tls(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with authenticated_service(tmp_path) as running:
            console = console_of(running, authenticated=True)

            async def sign_in() -> tuple[Browser, str]:
                browser = Browser(console, scheme="https", host="balances.example.com")
                page = await browser.post("/login", {"token": web_token("alice"), "user": "alice"})
                return browser, page.headers["set-cookie"].lower()

            with monkeypatch.context() as off:
                off.setattr(sessions, "is_loopback_host", lambda host: True)
                browser, cookie = await sign_in()
                assert "secure" not in cookie
            # Nor does one that came without it open anything.
            assert (await browser.get("/accounts")).status == 303
            browser, cookie = await sign_in()
            assert cookie.startswith(f"__host-{COOKIE}=")
            assert "; secure" in cookie
            assert (await browser.get("/accounts")).status == 200

    @pytest.mark.threat("T86")
    def test_a_forged_or_altered_cookie_opens_nothing(self) -> None:
        made = Sessions(HASH_KEY, secure=False)
        good = cookie_of(made, token="t", user="alice")
        assert made.read(request_with(**{COOKIE: good})) is not None
        others = [cookie_of(Sessions(b"another service's key", secure=False), user="alice"), good[:-4], "x", ""]
        others += [good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :] for at in range(10, len(good) - 3, 9)]
        assert [made.read(request_with(**{COOKIE: text})) for text in others] == [None] * len(others)

    @pytest.mark.threat("T86")
    def test_a_cookie_opens_nothing_after_its_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = Sessions(HASH_KEY, secure=False)
        now = clock.wall()
        good = cookie_of(made, user="alice")
        monkeypatch.setattr(clock, "wall", lambda: now + LIFETIME - 60)
        assert made.read(request_with(**{COOKIE: good})) is not None
        monkeypatch.setattr(clock, "wall", lambda: now + LIFETIME + 1)
        assert made.read(request_with(**{COOKIE: good})) is None

    @pytest.mark.threat("T86", attack=True)
    async def test_a_copied_cookie_opens_nothing_after_signing_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with browsing(tmp_path, ScriptedPlugin()) as (_, browser):
            thief = Browser(browser.app, cookies=dict(browser.cookies))
            page = await browser.post("/logout", {})
            assert (page.status, page.headers["location"], browser.cookies) == (303, "/login", {})
            with monkeypatch.context() as off:
                off.setattr(Sessions, "is_live", lambda sessions, session: True)
                assert (await thief.get("/accounts")).status == 200
            assert (await thief.get("/accounts")).headers["location"].startswith("/login")

    @pytest.mark.threat("T83", attack=True)
    async def test_signing_in_replaces_a_session_that_somebody_planted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with browsing(tmp_path, ScriptedPlugin()) as (_, browser):
            console: Any = browser.app

            async def whose_pages_after_signing_in() -> str:
                victim = Browser(console, cookies=dict(browser.cookies))
                await victim.get(console.new_login_path("victim"))
                return Elements((await victim.get("/accounts")).text).words

            with monkeypatch.context() as off:
                # A sign-in that goes on with the session that the browser has.
                off.setattr(Sessions, "start", lambda *_, **__: None)
                assert "of alice" in await whose_pages_after_signing_in()
            assert "of victim" in await whose_pages_after_signing_in()
            assert "of victim" not in (await browser.get("/accounts")).text

    def test_a_session_shows_no_token_where_it_is_printed(self) -> None:
        assert "secret-token" not in repr(Session("1", token="secret-token"))


class TestNext:
    @pytest.mark.parametrize("page", ["/accounts", "/exchanges", "/plugins", "/accounts?user=demo-stale"])
    def test_one_returns_to_our_own_pages(self, page: str) -> None:
        assert sign_in_page.safe_next(page) == page

    @pytest.mark.threat("T84", attack=True)
    async def test_no_text_leads_to_another_site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with authenticated_service(tmp_path) as running:
            browser = Browser(console_of(running, authenticated=True))

            async def location_after(text: str) -> str:
                page = await browser.post("/login", {"token": web_token("alice"), "next": text})
                return page.headers["location"]

            with monkeypatch.context() as off:
                off.setattr(sign_in_page, "safe_next", lambda text: text)
                assert await location_after("https://evil.example/") == "https://evil.example/"
            for text in (
                *("https://evil.example/", "//evil.example", "///evil.example", "/\\evil.example", "\\\\evil.example"),
                *(
                    "/accounts/../..//evil.example",
                    "javascript:alert(1)",
                    "/accounts\r\nx: y",
                    "/accounts@evil.example",
                ),
                *(" //evil.example", "/%2fevil.example", "/logout", "/login", "/accounts?a=1#//evil", ""),
            ):
                assert await location_after(text) == "/accounts"
                form = Elements((await browser.get(f"/login?next={quote(text)}")).text)
                assert [field["value"] for field in form.named("input") if field["name"] == "next"] == ["/accounts"]

    @pytest.mark.threat("T84")
    async def test_the_step_after_another_sites_link_stays_here(self, tmp_path: Path) -> None:
        async with browsing(tmp_path, ScriptedPlugin()) as (_, browser):
            other = Browser(browser.app)
            clicked = {"sec-fetch-site": "cross-site"}
            page = Elements((await other.get("//evil.example/accounts", clicked)).text)
            targets = [meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "refresh"]
            assert all(target is not None and not target.startswith("0;url=//") for target in targets)
            again = Elements((await other.get("/accounts?user=bob", clicked)).text)
            assert [meta["content"] for meta in again.named("meta") if meta.get("http-equiv")] == [
                "0;url=/accounts?user=bob"
            ]


def test_every_template_escapes_what_it_shows() -> None:
    assert environment().autoescape is True
