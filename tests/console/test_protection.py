"""What other sites can do with the console through a browser of a person who has signed in: nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.requests import Request
from structlog.testing import capture_logs

from exchange_service.console import pages, security
from exchange_service.console.events import LiveAccounts
from exchange_service.console.exchange_names import ExchangeName
from exchange_service.console.security import LARGEST_BODY
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.v1.balance_pb2 import AccountFault, AssetBalance, Balance, Freshness, Summary, VenueAccount
from exchange_service.v1.exchange_service_pb2 import (
    AccountErrorEvent,
    BalanceEvent,
    StreamBalancesResponse,
)
from tests.console.browsing import HOST, Browser
from tests.console.consoles import Elements, browsing, console_of
from tests.harness import Running, ScriptedPlugin

make_environment = pages.environment.__wrapped__
FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
async def opened(tmp_path: Path) -> AsyncIterator[tuple[Running, Browser]]:
    async with browsing(tmp_path, ScriptedPlugin()) as opened:
        yield opened


@pytest.fixture
def browser(opened: tuple[Running, Browser]) -> Browser:
    return opened[1]


class TestForms:
    @pytest.mark.threat("T80", attack=True)
    @pytest.mark.parametrize(
        "headers",
        [
            {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
            {"sec-fetch-site": "same-site", "origin": "http://127.0.0.1:8000"},
            {"sec-fetch-site": "none"},
            {"sec-fetch-site": "same-origin", "origin": "https://evil.example"},
            {"sec-fetch-site": "same-origin", "origin": "null"},
            # Browsers that do not say where a request comes from.
            {"origin": "https://evil.example"},
            {"origin": "https://127.0.0.1"},
            {"origin": f"http://{HOST}.evil.example"},
            {"origin": f"http://evil.example/{HOST}"},
            {},
        ],
    )
    async def test_a_form_of_another_site_does_nothing(
        self, browser: Browser, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
    ) -> None:
        victim = Browser(browser.app, cookies=dict(browser.cookies))
        page = await victim.request("POST", "/logout", {**FORM, **headers})
        assert page.status == 403
        assert (await victim.get("/accounts")).status == 200
        with monkeypatch.context() as off:
            off.setattr(security, "_may_write", lambda headers, scheme: True)
            await victim.request("POST", "/logout", {**FORM, **headers})
        assert (await browser.get("/accounts")).status == 303

    @pytest.mark.threat("T80")
    async def test_no_site_can_sign_a_browser_in_as_somebody_else(self, opened: tuple[Running, Browser]) -> None:
        victim = Browser(console_of(opened[0], authenticated=True))
        headers = {**FORM, "sec-fetch-site": "cross-site", "origin": "https://evil.example"}
        assert (await victim.request("POST", "/login", headers, b"token=theirs")).status == 403
        assert not victim.cookies

    @pytest.mark.parametrize(
        "headers",
        [
            {"sec-fetch-site": "same-origin"},
            {"origin": f"http://{HOST}"},
            # A proxy has taken the TLS off.
            {"sec-fetch-site": "same-origin", "origin": f"https://{HOST}"},
        ],
    )
    async def test_our_own_forms_work_in_every_browser(self, browser: Browser, headers: dict[str, str]) -> None:
        assert (await browser.request("POST", "/logout", {**FORM, **headers})).status == 303

    async def test_a_page_over_tls_takes_no_form_of_the_page_without(self, opened: tuple[Running, Browser]) -> None:
        browser = Browser(console_of(opened[0], secure=True), scheme="https")
        assert (await browser.request("POST", "/logout", {**FORM, "origin": f"http://{HOST}"})).status == 403

    async def test_no_page_changes_anything_by_being_opened(self, browser: Browser) -> None:
        assert (await browser.get("/logout")).status == 405
        assert (await browser.get("/accounts")).status == 200

    @pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "TRACE", "OPTIONS"])
    async def test_pages_are_opened_and_take_forms_and_nothing_else(self, browser: Browser, method: str) -> None:
        for path in ("/accounts", "/accounts/events", "/logout", "/static/console.css"):
            assert (await browser.request(method, path, {"sec-fetch-site": "same-origin"})).status == 405
        assert (await browser.get("/accounts")).status == 200

    @pytest.mark.parametrize("path", ["/accounts/", "/static", "/logout/"])
    async def test_no_answer_leads_to_an_address_without_tls(self, browser: Browser, path: str) -> None:
        page = await browser.get(path)
        assert (page.status, page.headers.get("location")) == (404, None)


class TestReading:
    @pytest.mark.threat("T81", attack=True)
    @pytest.mark.parametrize("path", ["/accounts", "/accounts.json", "/accounts/events", "/exchanges.json"])
    @pytest.mark.parametrize(("mode", "kind"), [("no-cors", "image"), ("cors", "empty"), ("navigate", "iframe")])
    async def test_other_sites_can_neither_read_nor_frame_a_page(
        self, browser: Browser, monkeypatch: pytest.MonkeyPatch, path: str, mode: str, kind: str
    ) -> None:
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": mode, "sec-fetch-dest": kind}
        assert (await browser.request("GET", path, headers)).status == 403
        if path != "/accounts/events":
            monkeypatch.setattr(security, "_may_read", lambda headers: True)
            assert (await browser.request("GET", path, headers)).status == 200

    async def test_a_link_on_another_site_may_lead_here(self, browser: Browser) -> None:
        headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
        assert (await browser.request("GET", "/accounts", headers)).status == 200

    @pytest.mark.threat("T81")
    @pytest.mark.parametrize(
        "path",
        [
            "/login",
            "/accounts",
            "/accounts.json",
            "/exchanges",
            "/plugins",
            "/nowhere",
            "/static/console.css",
            "/logout",
        ],
    )
    async def test_each_response_says_that_no_page_may_frame_or_use_it(self, browser: Browser, path: str) -> None:
        headers = (await browser.get(path)).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            **dict.fromkeys(("script-src", "style-src", "img-src", "connect-src", "form-action"), "'self'"),
            **dict.fromkeys(("frame-ancestors", "base-uri"), "'none'"),
        }
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cache-control"] == ("private, max-age=86400" if path.startswith("/static") else "no-store")

    async def test_pages_ask_no_other_host_and_have_no_script_or_style_inside(self, browser: Browser) -> None:
        for path in ("/login", "/accounts", "/exchanges", "/plugins", "/nowhere"):
            page = Elements((await browser.get(path)).text)
            for tag, attributes in page.elements:
                assert tag != "style"
                assert not any(name == "style" or name.startswith(("on", "hx-on")) for name in attributes)
                if tag in ("script", "img", "link", "form", "iframe"):
                    address = attributes.get("src") or attributes.get("href") or attributes.get("action") or "/"
                    assert address.startswith("/")
                    assert not address.startswith("//")
            assert all(script.get("src") for script in page.named("script"))


# What each text is made of: markup that runs a script if it is taken for markup, in several places.
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}\u202e</style></title>"


def hostile_events() -> list[StreamBalancesResponse]:
    """Events whose every text is hostile."""
    fault = AccountFault(reason=error_reason_pb2.ERROR_REASON_CREDENTIAL_REJECTED, message=HOSTILE, advice=HOSTILE)
    summary = Summary(currency=HOSTILE, equity=HOSTILE, total=HOSTILE, available=HOSTILE, unrealised_pnl=HOSTILE)
    row = AssetBalance(asset=HOSTILE, venue_asset=HOSTILE + "2", total=HOSTILE, free=HOSTILE, debt=HOSTILE)
    named = {"id": HOSTILE, "type": HOSTILE, "sub_account": HOSTILE, "label": HOSTILE}
    accounts = [
        VenueAccount(assets=[row], summary=summary, **named),
        VenueAccount(error=fault, **named),
    ]
    place = {"exchange_id": HOSTILE, "environment": HOSTILE, "account_type": HOSTILE}
    balance = Balance(venue_accounts=accounts, summary=summary, notes=[HOSTILE], **place)
    freshness = Freshness(source=balance_pb2.BALANCE_SOURCE_LAST_GOOD, stale=fault)
    return [
        StreamBalancesResponse(balance=BalanceEvent(balance=balance, freshness=freshness)),
        StreamBalancesResponse(account_error=AccountErrorEvent(error=fault, **place)),
    ]


def scripts_in(text: str) -> list[str]:
    """The elements and attributes that only a hostile text brings in."""
    elements = Elements(text).elements
    return [tag for tag, attributes in elements if tag in ("script", "style", "title") or "onerror" in attributes]


def shown_texts(monkeypatch: pytest.MonkeyPatch, *, escaped: bool) -> str:
    """All fragments of hostile events."""
    environment = make_environment()
    environment.autoescape = escaped
    monkeypatch.setattr(pages, "environment", lambda: environment)
    live = LiveAccounts({HOSTILE: ExchangeName(HOSTILE)})
    context = {"user": HOSTILE, "manages": True, "link": lambda path, **parameters: pages._address(path, parameters)}
    text = ""
    for event in hostile_events():
        changes = live.apply(event)
        values = {**context, "accounts": live.in_order(), "further": 0, "began": True, "headline": live.headline()}
        text += pages.render_fragment("_roster.html", values) + pages.render_fragment("_headline.html", values)
        text += "".join(pages.render_fragment("_spoken.html", {"sentence": sentence}) for sentence in changes.spoken)
    return text


class TestTexts:
    @pytest.mark.threat("T82", attack=True)
    def test_no_text_of_a_venue_plugin_or_user_becomes_markup(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert scripts_in(shown_texts(monkeypatch, escaped=False))
        text = shown_texts(monkeypatch, escaped=True)
        assert scripts_in(text) == []
        # Each of them is there as text; 49 would be a template within a text.
        assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 25
        assert "49" not in Elements(text).text
        # A mark that turns text around is shown as what it is.
        assert "\u202e" not in Elements(text).text

    @pytest.mark.threat("T82")
    @pytest.mark.parametrize("path", ["/accounts?user={}", "/login?next={}", "/{}", "/login/link?key={}"])
    async def test_no_text_of_an_address_becomes_markup(self, browser: Browser, path: str) -> None:
        hostile = "%3Cscript%3Ealert(1)%3C/script%3E%22%3E%3Cimg%20src=x%20onerror=alert(2)%3E"
        page = await browser.get(path.format(hostile))
        assert "onerror" not in [name for _, attributes in Elements(page.text).elements for name in attributes]
        assert "<script>alert" not in page.text

    @pytest.mark.threat("T82")
    async def test_json_is_never_taken_for_a_page(self, browser: Browser) -> None:
        page = await browser.get("/accounts.json?user=%3Cscript%3E")
        assert page.headers["content-type"] == "application/json"
        assert json.loads(page.body)["user_id"] == "<script>"


class TestErrors:
    @pytest.mark.parametrize(("path", "status"), [("/nowhere", 404), ("/nowhere.json", 404), ("/logout", 405)])
    async def test_an_error_is_a_page_with_what_to_do(self, browser: Browser, path: str, status: int) -> None:
        page = await browser.get(path)
        assert page.status == status
        if path.endswith(".json"):
            assert set(json.loads(page.body)["error"]) == {"reason", "message"}
        else:
            assert "Start from the accounts." in Elements(page.text).words

    async def test_a_failure_shows_and_logs_no_text_of_an_exception(
        self, browser: Browser, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(request: Request) -> None:
            raise RuntimeError("the api_secret is hunter2")

        monkeypatch.setattr("exchange_service.console.accounts_page.open_visit", fail)
        with capture_logs() as lines:
            page = await browser.get("/accounts")
        assert page.status == 500
        assert "Load it again" in Elements(page.text).words
        assert [(line["event"], line["error"]) for line in lines] == [("console.failed", "RuntimeError")]
        assert "hunter2" not in page.text + str(lines)

    async def test_an_error_of_the_service_comes_with_its_reason_and_next_step(self, browser: Browser) -> None:
        page = await browser.get(f"/accounts?user={'u' * 300}")
        assert page.status == 400
        assert "FIELD_INVALID" in page.text

    async def test_a_body_is_bounded_whether_it_says_its_length_or_not(self, browser: Browser) -> None:
        own = {**FORM, "sec-fetch-site": "same-origin"}
        large = b"token=" + b"a" * LARGEST_BODY
        said = await browser.request("POST", "/login", {**own, "content-length": str(len(large))}, b"")
        unsaid = await browser.request("POST", "/login", own, large)
        assert (said.status, unsaid.status) == (413, 413)

    async def test_a_form_of_another_type_is_refused(self, opened: tuple[Running, Browser]) -> None:
        console = console_of(opened[0], authenticated=True)
        own = {"sec-fetch-site": "same-origin", "content-type": "multipart/form-data; boundary=x"}
        assert (await Browser(console).request("POST", "/login", own, b"--x--")).status == 415
