"""Connecting, checking, listing and removing accounts through a running service."""

from __future__ import annotations

import ast
import asyncio
import re
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic import SecretStr
from structlog.testing import capture_logs

from exchange_service.accounts import service, trying
from exchange_service.accounts.v1 import account_service_pb2 as messages
from exchange_service.accounts.v1 import account_service_pb2_grpc
from exchange_service.client import ExchangeServiceClient
from exchange_service.credentials.keysets import new_keyset
from exchange_service.errors import (
    AccountUnknown,
    CallerRateLimited,
    CredentialInvalid,
    CredentialMissing,
    CredentialRejected,
    ExchangeUnknown,
    FieldInvalid,
    NotSupported,
    ServiceError,
    StoreUnavailable,
    UserForbidden,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.grpc_server.account_servicer import SERVICE
from exchange_service.model import Account, Capabilities, Credential, CredentialField, KeyRights
from exchange_service.observability.redaction import LIVE
from exchange_service.plugin_api import Balance, VenueCall, hookimpl
from tests.canary import bytes_of, installed_venues
from tests.harness import (
    PATIENCE,
    USER,
    Gate,
    Running,
    ScriptedPlugin,
    eventually,
    failure,
    holding,
    listing,
    registry_of,
    serving,
    streaming,
    totals,
)
from tests.identities import SECRET, web_token

ROOT = Path(__file__).parent.parent.parent
GOOD, OTHER, WRONG = "good-key-1", "good-key-2", "wrong-key"
FIELDS = (
    CredentialField("api_key", "Key"),
    CredentialField("passphrase", "Passphrase", required=False),
    CredentialField("account_id", "Account", required=False, secret=False),
)


class Venue(ScriptedPlugin):
    """A venue that takes keys which begin with "good", and holds as much as the key's last letter says."""

    def __init__(self, **changes: Any) -> None:
        wallet = CredentialField("wallet_address", "Wallet", secret=False)
        super().__init__(
            listing(credential_fields=FIELDS, **changes),
            listing("options_view", credential_fields=FIELDS, credential_of="fakex"),
            listing("wallets", credential_fields=(wallet,)),
            listing("shown_only", capabilities=Capabilities(balance=False), unsupported_reason="Nobody reads it yet."),
            answer=self._balance,
        )
        self.rights = KeyRights(trade=True, withdraw=False, notes=("Made last year.",))
        self.error: ServiceError | None = None
        self.rights_error: ServiceError | None = None
        self.gate: Gate | None = None

    async def _balance(self, call: VenueCall) -> Balance:
        if self.gate is not None:
            await self.gate(call)
        if self.error is not None:
            raise self.error
        key = call.credential.api_key.reveal() or call.credential.metadata.get("wallet_address", "")
        if key == WRONG:
            raise CredentialRejected("The venue does not know this key.")
        return holding(("BTC", f"{ord(key[-1]) - ord('0')}.5"), ("DUST", "0"))

    @hookimpl
    async def check_credential(self, call: VenueCall) -> KeyRights:
        if self.rights_error is not None:
            raise self.rights_error
        return self.rights


@asynccontextmanager
async def connecting(folder: Path, venue: Venue, **changes: Any) -> AsyncIterator[Running]:
    async with serving(folder, registry=registry_of(venue), **({"manage_accounts": True} | changes)) as running:
        yield running


async def total(running: Running, exchange_id: str = "fakex", **changes: Any) -> str:
    reply = await running.client.get_balance(USER, exchange_id, **changes)
    return totals(reply.balance)["BTC"]


class TestConnect:
    async def test_its_fields_are_looked_at_beside_the_loop(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, read_by = service.read_fields, list[threading.Thread]()

        def noted(*arguments: Any) -> Credential:
            read_by.append(threading.current_thread())
            return read(*arguments)

        monkeypatch.setattr(service, "read_fields", noted)
        async with connecting(tmp_path, Venue()) as running:
            await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
        assert read_by
        assert threading.main_thread() not in read_by

    async def test_a_credential_is_tried_and_stored_and_read_with_at_once(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue()) as running:
            with pytest.raises(CredentialMissing):
                await running.client.get_balance(USER, "fakex")
            reply = await running.client.connect_account(USER, "FakeX", {"api_key": f"  {GOOD} ", "passphrase": ""})
            assert (reply.account.exchange_id, reply.account.environment) == ("fakex", "production")
            assert reply.account.stored_time.seconds > 0
            assert not reply.replaced
            assert totals(reply.check.balance) == {"BTC": "1.5"}
            assert (reply.check.balance.user_id, reply.check.balance.account_type) == (USER, "all")
            assert (reply.check.rights.trade, reply.check.rights.withdraw) == (True, False)
            assert list(reply.check.rights.notes) == ["Made last year."]
            (warning,) = reply.check.warnings
            assert warning.startswith("The key may trade. This service only reads")
            assert await total(running) == "1.5"
            # The plugin was shown another user for the trial, and its session is gone.
            first, *_ = running.service.registry.plugins[0].hook.fetch_balance.get_hookimpls()
            assert first.plugin.calls[0].account.user_id.startswith("candidate ")

    async def test_the_trial_never_uses_the_session_of_the_stored_credential(self, tmp_path: Path) -> None:
        venue = Venue()
        async with connecting(tmp_path, venue) as running:
            await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            await total(running)
            stored = venue.calls[-1]
            await running.client.connect_account(USER, "fakex", {"api_key": OTHER})
            tried = venue.calls[-1]
            assert tried.account_state is not stored.account_state
            assert tried.credential.api_key.reveal() == OTHER
            with pytest.raises(CredentialRejected):
                await running.client.connect_account(USER, "fakex", {"api_key": WRONG})
            assert await total(running, max_age=0) == "2.5"

    async def test_a_refused_key_changes_nothing(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue()) as running:
            with pytest.raises(CredentialRejected):
                await running.client.connect_account(USER, "fakex", {"api_key": WRONG})
            assert not (await running.client.list_accounts(USER)).accounts
            await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            with pytest.raises(CredentialRejected):
                await running.client.connect_account(USER, "fakex", {"api_key": WRONG})
            assert await total(running, max_age=0) == "1.5"
            reply = await running.client.connect_account(USER, "fakex", {"api_key": OTHER})
            assert reply.replaced
            assert await total(running) == "2.5"

    @pytest.mark.threat("T72")
    async def test_every_wrong_field_is_named_at_once_and_no_value(self, tmp_path: Path) -> None:
        fields = {"api_key": "", "passphrase": "p" * 20_000, "account_id": "1\x002", "endpoint": "http://10.0.0.1/"}
        async with connecting(tmp_path, Venue()) as running:
            with pytest.raises(FieldInvalid) as refused:
                await running.client.connect_account(USER, "fakex", fields)
            assert [name for name, _ in refused.value.violations] == [
                "fields.passphrase",
                "fields.account_id",
                "fields.api_key",
                "fields",
            ]
            assert all(text not in refused.value.text for text in ("10.0.0.1", "endpoint", "pppp"))
            assert not (await running.client.list_accounts(USER)).accounts

    @pytest.mark.threat("T73")
    async def test_what_is_no_field_of_the_listing_is_never_stored(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue()) as running:
            for name in ("environment", "sandbox", "urls", "extra_metadata", "api_secret", "hostname"):
                with pytest.raises(FieldInvalid, match="does not ask for"):
                    await running.client.connect_account(USER, "fakex", {"api_key": GOOD, name: "x"}, skip_check=True)
            assert not (await running.client.list_accounts(USER)).accounts

    async def test_a_wallet_is_enough_where_a_venue_asks_for_no_key(self, tmp_path: Path) -> None:
        wallet = "0x" + "Ab" * 19 + "12"
        async with connecting(tmp_path, Venue()) as running:
            with pytest.raises(FieldInvalid, match=r"fields\.wallet_address"):
                await running.client.connect_account(USER, "wallets", {"wallet_address": "0x12"})
            await running.client.connect_account(USER, "wallets", {"wallet_address": wallet})
            assert await total(running, "wallets") == "2.5"

    async def test_an_alias_of_the_environment_names_the_same_account(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue()) as running:
            await running.store(environment="live", api_key=GOOD)
            reply = await running.client.connect_account(USER, "fakex", {"api_key": OTHER}, environment="LIVE")
            assert reply.replaced
            assert await running.service.store.accounts(USER) == [Account(USER, "fakex", "live")]
            assert await total(running) == "2.5"
            await running.client.remove_account(USER, "fakex")
            assert await running.service.store.accounts(USER) == []

    async def test_two_rows_for_one_account_are_told_and_not_guessed(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue()) as running:
            await running.store(environment="live")
            await running.store(environment="production")
            with pytest.raises(ServiceError, match="More than one credential"):
                await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            (account,) = (await running.client.list_accounts(USER)).accounts
            assert "More than one" in account.error.message
            await running.client.remove_account(USER, "fakex")
            await running.client.connect_account(USER, "fakex", {"api_key": GOOD})

    async def test_a_listing_that_uses_anothers_credential_may_have_its_own(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue()) as running:
            await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            assert await total(running, "options_view") == "1.5"
            await running.client.check_account(USER, "options_view")
            with pytest.raises(CredentialMissing):
                await running.client.remove_account(USER, "options_view")
            await running.client.connect_account(USER, "options_view", {"api_key": OTHER})
            assert await total(running, "options_view") == "2.5"
            await running.client.remove_account(USER, "options_view")
            assert await total(running, "options_view") == "1.5"
            await running.client.remove_account(USER, "fakex")
            with pytest.raises(CredentialMissing):
                await running.client.get_balance(USER, "options_view")

    async def test_what_cannot_be_connected_is_told(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue()) as running:
            with pytest.raises(NotSupported, match="Nobody reads it yet"):
                await running.client.connect_account(USER, "shown_only", {}, skip_check=True)
            with pytest.raises(ExchangeUnknown):
                await running.client.connect_account(USER, "nowhere", {"api_key": GOOD})
            with pytest.raises(NotSupported, match="sandbox"):
                await running.client.connect_account(USER, "fakex", {"api_key": GOOD}, environment="sandbox")
            with pytest.raises(FieldInvalid, match="environment"):
                await running.client.connect_account(USER, "fakex", {"api_key": GOOD}, environment="moon")
            with pytest.raises(FieldInvalid, match="user_id"):
                await running.client.connect_account(" ", "fakex", {"api_key": GOOD})

    async def test_while_the_venue_is_down_it_can_be_stored_untried(self, tmp_path: Path) -> None:
        venue = Venue()
        venue.error = VenueUnavailable("The venue is down.", retry_after=7.0)
        async with connecting(tmp_path, venue) as running:
            with pytest.raises(VenueUnavailable, match="Nothing was stored") as refused:
                await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            assert "skip_check" in refused.value.text
            reply = await running.client.connect_account(USER, "fakex", {"api_key": GOOD}, skip_check=True)
            assert not reply.HasField("check")
            assert [account.exchange_id for account in (await running.client.list_accounts(USER)).accounts] == ["fakex"]

    async def test_a_plugins_word_on_a_field_is_that_fields_fault(self, tmp_path: Path) -> None:
        venue = Venue()
        venue.error = CredentialInvalid("extra_metadata.account_id should be of type int.")
        async with connecting(tmp_path, venue) as running:
            with pytest.raises(FieldInvalid) as refused:
                await running.client.connect_account(USER, "fakex", {"api_key": GOOD, "account_id": "x"})
            assert refused.value.violations == (("fields.account_id", "it should be of type int."),)

    async def test_a_caller_who_leaves_during_the_trial_has_changed_nothing(self, tmp_path: Path) -> None:
        venue = Venue()
        venue.gate = Gate()
        async with connecting(tmp_path, venue) as running:
            call = asyncio.create_task(running.client.connect_account(USER, "fakex", {"api_key": GOOD}))
            await venue.gate.entered.wait()
            call.cancel()
            async with asyncio.timeout(PATIENCE):
                await venue.gate.cancelled.wait()
            assert await running.service.store.accounts(USER) == []

    async def test_a_caller_who_leaves_while_it_is_stored_leaves_it_stored_and_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with connecting(tmp_path, Venue()) as running:
            with pytest.raises(CredentialMissing):
                await running.client.get_balance(USER, "fakex")
            begun, go_on = asyncio.Event(), asyncio.Event()
            put = running.service.store.put

            async def slowly(*arguments: Any) -> bool:
                begun.set()
                await go_on.wait()
                return await put(*arguments)

            monkeypatch.setattr(running.service.store, "put", slowly)
            call = asyncio.create_task(running.client.connect_account(USER, "fakex", {"api_key": GOOD}))
            await begun.wait()
            call.cancel()
            await asyncio.wait({call})
            go_on.set()

            async def is_read() -> bool:
                try:
                    return await total(running) == "1.5"
                except CredentialMissing:
                    return False

            await eventually(is_read, "the credential works")

    async def test_a_store_that_is_down_has_changed_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with connecting(tmp_path, Venue()) as running:
            await running.client.connect_account(USER, "fakex", {"api_key": GOOD})

            async def fails(*_: Any) -> bool:
                raise StoreUnavailable("The database is down.")

            monkeypatch.setattr(running.service.store, "put", fails)
            with pytest.raises(StoreUnavailable):
                await running.client.connect_account(USER, "fakex", {"api_key": OTHER})
            monkeypatch.undo()
            assert await total(running, max_age=0) == "1.5"

    async def test_a_deadline_ends_a_trial_with_a_reason(self, tmp_path: Path) -> None:
        venue = Venue()
        venue.gate = Gate()
        async with connecting(tmp_path, venue) as running:
            stub: Any = account_service_pb2_grpc.AccountServiceStub(running.client.channel)  # type: ignore[no-untyped-call]
            request = messages.ConnectAccountRequest(user_id=USER, exchange_id="fakex", fields={"api_key": GOOD})
            told = await failure(stub.ConnectAccount(request, timeout=1.5))
            assert told.reason == "VENUE_TIMEOUT"
            told = await failure(stub.ConnectAccount(request, timeout=0.6))
            assert told.reason == "DEADLINE_PASSED"
            assert await running.service.store.accounts(USER) == []

    async def test_two_at_the_same_time_leave_one_of_the_two(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue()) as running:
            calls = (running.client.connect_account(USER, "fakex", {"api_key": key}) for key in (GOOD, OTHER))
            replies = await asyncio.gather(*calls)
            assert sorted(reply.replaced for reply in replies) == [False, True]
            assert await running.service.store.accounts(USER) == [Account(USER, "fakex")]
            assert await total(running, max_age=0) in ("1.5", "2.5")

    async def test_it_is_sealed_where_there_is_a_keyset(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue(), keyset=SecretStr(new_keyset().as_text())) as running:
            reply = await running.client.connect_account(USER, "fakex", {"api_key": GOOD, "account_id": "17"})
            assert reply.account.sealed
            assert await total(running) == "1.5"
        assert GOOD.encode() not in b"".join(bytes_of(tmp_path / "credentials.db"))

    async def test_a_trial_passes_the_gate_as_every_other_fetch(self, tmp_path: Path) -> None:
        venue = Venue()
        venue.error = VenueRateLimited("Too many requests.", retry_after=30.0)
        async with connecting(tmp_path, venue) as running:
            with pytest.raises(VenueRateLimited):
                await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            venue.error, seen = None, len(venue.calls)
            with pytest.raises(VenueRateLimited, match="Nothing was stored") as refused:
                await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            assert refused.value.retry_after is not None
            assert 20 < refused.value.retry_after <= 30
            assert len(venue.calls) == seen

    async def test_the_rights_that_cannot_be_read_are_a_warning(self, tmp_path: Path) -> None:
        venue = Venue()
        venue.rights_error = VenueUnavailable("The venue is down.")
        async with connecting(tmp_path, venue) as running:
            reply = await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            assert not reply.check.HasField("rights")
            assert list(reply.check.warnings) == ["The key's rights could not be read: The venue is down."]

    async def test_a_venue_that_leaves_no_time_for_the_rights_is_a_warning_too(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class SlowVenue(Venue):
            async def _balance(self, call: VenueCall) -> Balance:
                monkeypatch.setattr(trying, "_LEAST_TIME", 3600.0)
                return await super()._balance(call)

        async with connecting(tmp_path, SlowVenue()) as running:
            reply = await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            (warning,) = reply.check.warnings
            assert "rights could not be read: The call's deadline leaves too little time" in warning

    async def test_nothing_of_a_trial_is_left_behind(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue()) as running:
            with pytest.raises(CredentialRejected):
                await running.client.connect_account(USER, "fakex", {"api_key": WRONG})
            await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            sessions = running.service.venues._here
            assert not [account for account in sessions._sessions if account.user_id != USER]
            assert len(LIVE) == 0
            running.service.metrics.refresh()
            text = running.service.metrics.text().decode()
            assert 'method="ConnectAccount"' in text
            assert "candidate" not in text

    async def test_a_plugin_in_a_process_of_its_own_tries_it_too(self, tmp_path: Path) -> None:
        venue = installed_venues("oanda")["oanda"]
        await venue.start()
        row = venue.demo_credential("moving")
        assert row is not None
        options = {"venue_urls": {"oanda": venue.url}, "plugin_processes": {"oanda": "own-process"}}
        async with serving(tmp_path, manage_accounts=True, **options) as running:
            reply = await running.client.connect_account(USER, "oanda", {"api_key": row["api_key"]})
            assert reply.check.balance.venue_accounts
            with pytest.raises(CredentialRejected):
                await running.client.connect_account(USER, "oanda", {"api_key": "wrong" + row["api_key"]})
            assert (await running.client.get_balance(USER, "oanda", max_age=0)).balance.venue_accounts
        await venue.stop()


_EXAMPLE = re.compile(r"```python\n(?P<code>.*?)```\n\n```\n(?P<output>.*?)```", re.DOTALL)


async def test_the_examples_of_the_page_print_what_they_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = list(_EXAMPLE.finditer((ROOT / "docs" / "accounts.md").read_text()))
    assert len(examples) == 2
    venue = installed_venues("oanda")["oanda"]
    await venue.start()
    row = venue.demo_credential("moving")
    assert row is not None
    async with serving(tmp_path, manage_accounts=True, venue_urls={"oanda": venue.url}) as running:
        names = {"client": running.client, "token": row["api_key"]}
        for example in examples:
            capsys.readouterr()
            code = compile(example["code"], "accounts.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            await eval(code, names)
            shown = capsys.readouterr().out
            lines = [line for line in shown.splitlines() if "[info" not in line]
            assert _without_figures(lines) == _without_figures(example["output"].splitlines())
    await venue.stop()


def _without_figures(lines: list[str]) -> list[str]:
    return [re.sub(r"[\d.]+", "#", line).strip() for line in lines]


class TestCheck:
    async def test_a_stored_credential_is_tried_now(self, tmp_path: Path) -> None:
        venue = Venue()
        async with connecting(tmp_path, venue) as running:
            with pytest.raises(CredentialMissing):
                await running.client.check_account(USER, "wallets")
            await running.store(api_key=GOOD)
            await total(running)
            reply = await running.client.check_account(USER, "fakex")
            assert totals(reply.check.balance) == {"BTC": "1.5"}
            assert len(venue.calls) == 2
            venue.error = AccountUnknown("The venue knows no such account.")
            with pytest.raises(AccountUnknown):
                await running.client.check_account(USER, "fakex")
            (account,) = (await running.client.list_accounts(USER)).accounts
            assert account.error.message.startswith("The venue knows no such account.")

    async def test_an_account_that_is_read_again_is_not_called_refused_any_more(self, tmp_path: Path) -> None:
        venue = Venue()
        venue.error = CredentialRejected("The venue refuses this key.")
        async with connecting(tmp_path, venue) as running:
            await running.store(api_key=GOOD)
            with pytest.raises(CredentialRejected):
                await running.client.get_balance(USER, "fakex")
            venue.error = None
            with pytest.raises(CredentialRejected):
                await running.client.get_balance(USER, "fakex")
            await running.client.check_account(USER, "fakex")
            assert await total(running) == "1.5"


class TestList:
    async def test_accounts_are_shown_as_calls_name_them_with_what_is_known(self, tmp_path: Path) -> None:
        venue = Venue()
        async with connecting(tmp_path, venue, outgoing_address="192.0.2.7") as running:
            await running.store(api_key=GOOD, environment="LIVE")
            await running.store("gone", environment="beta")
            await running.store("wallets", metadata={"wallet_address": "0x12"}, api_key=WRONG)
            await total(running)
            with pytest.raises(CredentialRejected):
                await running.client.get_balance(USER, "wallets")
            reply = await running.client.list_accounts(USER)
            assert reply.user_id == USER
            assert reply.outgoing_address == "192.0.2.7"
            shown = {(entry.exchange_id, entry.environment): entry for entry in reply.accounts}
            assert list(shown) == [("fakex", "production"), ("gone", "beta"), ("wallets", "production")]
            assert shown["fakex", "production"].last_fetch_time.seconds > 0
            assert not shown["gone", "beta"].HasField("error")
            assert shown["wallets", "production"].error.message.startswith("The venue does not know this key.")
            await running.client.remove_account(USER, "gone", environment="beta")
            assert len((await running.client.list_accounts(USER)).accounts) == 2
            with pytest.raises(ExchangeUnknown):
                await running.client.remove_account(USER, "gone", environment="beta")

    async def test_what_another_program_stored_in_capitals_is_removed_by_its_name_and_nothing_else(
        self, tmp_path: Path
    ) -> None:
        async with connecting(tmp_path, Venue()) as running:
            await running.store(api_key=GOOD)
            with sqlite3.connect(tmp_path / "credentials.db") as database:
                database.execute(
                    "INSERT INTO bot_credentials (user_id, exchange, environment, api_key) "
                    "SELECT user_id, 'FakeX', environment, api_key FROM bot_credentials"
                )
            database.close()
            listed = [entry.exchange_id for entry in (await running.client.list_accounts(USER)).accounts]
            assert listed == ["FakeX", "fakex"]
            await running.client.remove_account(USER, "FakeX")
            assert await total(running) == "1.5"
            # As every call, it takes the name in capitals too.
            await running.client.remove_account(USER, "FakeX")
            assert not (await running.client.list_accounts(USER)).accounts

    async def test_a_streamed_account_says_how_its_changes_come(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue()) as running:
            await running.store(api_key=GOOD)
            async with streaming(running, "fakex") as stream:
                await stream.next_of("balance")
                (account,) = (await running.client.list_accounts(USER)).accounts
                assert account.HasField("delivery")

    async def test_no_user_means_the_callers_only_one(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue(), jwt_secret=SECRET) as running:
            token = web_token("alice", exchange_service_users={"users": ["alice"], "manage": True})
            async with ExchangeServiceClient(running.service.address, token=token) as client:
                assert (await client.list_accounts()).user_id == "alice"
            several = web_token("alice", exchange_service_users={"users": "*", "manage": True})
            async with ExchangeServiceClient(running.service.address, token=several) as client:
                with pytest.raises(FieldInvalid, match="user_id"):
                    await client.list_accounts()
            acting = web_token("desk", exchange_service_users={"users": "act-as", "manage": True})
            metadata = [("x-act-as", "bob")]
            async with ExchangeServiceClient(running.service.address, token=acting, metadata=metadata) as client:
                assert (await client.list_accounts()).user_id == "bob"


class TestRights:
    async def test_health_and_reflection_know_the_service(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue(), manage_accounts=False) as running:
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            reply = await health_pb2_grpc.HealthStub(running.client.channel).Check(request)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
            question = reflection_pb2.ServerReflectionRequest(list_services="")
            call = reflection_pb2_grpc.ServerReflectionStub(running.client.channel).ServerReflectionInfo(
                iter([question])
            )
            answer = await call.read()
            assert SERVICE in {service.name for service in answer.list_services_response.service}

    async def test_nobody_manages_accounts_unless_the_operator_allows_it(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue(), manage_accounts=False) as running:
            for call in calls_of(running.client):
                with pytest.raises(NotSupported, match="manage_accounts=true"):
                    await call

    @pytest.mark.threat("T69")
    @pytest.mark.parametrize(
        ("claim", "what"),
        [(["alice"], "not manage"), ("*", "not manage"), ({"users": ["bob"], "manage": True}, "outside")],
    )
    async def test_a_caller_needs_the_user_and_the_right(self, tmp_path: Path, claim: Any, what: str) -> None:
        async with connecting(tmp_path, Venue(), jwt_secret=SECRET) as running:
            await running.store(api_key=GOOD)
            token = web_token("carol", exchange_service_users=claim)
            with capture_logs() as lines:
                async with ExchangeServiceClient(running.service.address, token=token) as client:
                    for call in calls_of(client):
                        with pytest.raises(UserForbidden, match=what):
                            await call
            refused = [line["change"] for line in lines if line.get("outcome") == "USER_FORBIDDEN"]
            assert refused == ["connect", "check", "remove"]
            assert await running.service.store.accounts(USER) == [Account(USER, "fakex")]

    async def test_a_user_may_manage_their_own_accounts(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue(), jwt_secret=SECRET) as running:
            token = web_token("alice", exchange_service_users={"users": ["alice"], "manage": True})
            async with ExchangeServiceClient(running.service.address, token=token) as client:
                await client.connect_account("alice", "fakex", {"api_key": GOOD})
                await client.check_account("alice", "fakex")
                await client.remove_account("alice", "fakex")


def calls_of(client: ExchangeServiceClient) -> list[Any]:
    return [
        client.list_accounts(USER),
        client.connect_account(USER, "fakex", {"api_key": OTHER}),
        client.check_account(USER, "fakex"),
        client.remove_account(USER, "fakex"),
    ]


class TestLimits:
    @pytest.mark.threat("T71")
    async def test_after_some_wrong_keys_the_venue_is_left_alone(self, tmp_path: Path) -> None:
        venue = Venue()
        async with connecting(tmp_path, venue, failed_checks=3) as running:
            await running.client.connect_account(USER, "fakex", {"api_key": GOOD})
            for _ in range(3):
                with pytest.raises(CredentialRejected):
                    await running.client.connect_account(USER, "fakex", {"api_key": WRONG})
            seen = len(venue.calls)
            for call in (
                running.client.connect_account(USER, "fakex", {"api_key": WRONG}),
                running.client.connect_account(USER, "fakex", {"api_key": WRONG}, skip_check=True),
                running.client.check_account(USER, "fakex"),
            ):
                with pytest.raises(CallerRateLimited, match="3 refused attempts") as refused:
                    await call
                assert refused.value.retry_after is not None
                assert 0 < refused.value.retry_after <= 60
            assert len(venue.calls) == seen
            # Another account is another matter, and the stored one is read on.
            await running.client.connect_account("bob", "fakex", {"api_key": GOOD})
            assert await total(running) == "1.5"

    async def test_right_keys_use_nothing_up(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue(), failed_checks=2) as running:
            for key in (GOOD, OTHER) * 4:
                await running.client.connect_account(USER, "fakex", {"api_key": key})

    @pytest.mark.threat("T71")
    async def test_untried_keys_count_as_wrong_ones(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue(), failed_checks=2) as running:
            for _ in range(2):
                await running.client.connect_account(USER, "fakex", {"api_key": WRONG}, skip_check=True)
            with pytest.raises(CallerRateLimited):
                await running.client.connect_account(USER, "fakex", {"api_key": WRONG}, skip_check=True)

    async def test_changes_have_a_quota_of_their_own(self, tmp_path: Path) -> None:
        async with connecting(tmp_path, Venue(), jwt_secret=SECRET, user_changes=2) as running:
            token = web_token("alice", exchange_service_users={"users": ["alice"], "manage": True})
            async with ExchangeServiceClient(running.service.address, token=token) as client:
                await client.connect_account("alice", "fakex", {"api_key": GOOD})
                await client.check_account("alice", "fakex")
                with pytest.raises(CallerRateLimited, match="2 account changes a minute"):
                    await client.remove_account("alice", "fakex")
                await client.list_accounts()
                await client.get_balance("alice", "fakex")


class TestAudit:
    async def test_each_change_has_a_line_with_its_outcome_and_no_value(self, tmp_path: Path) -> None:
        with capture_logs() as lines:
            async with connecting(tmp_path, Venue(), jwt_secret=SECRET) as running:
                token = web_token("alice", exchange_service_users={"users": ["alice"], "manage": True})
                async with ExchangeServiceClient(running.service.address, token=token) as client:
                    await client.connect_account("alice", "fakex", {"api_key": GOOD})
                    await client.connect_account("alice", "fakex", {"api_key": OTHER})
                    with pytest.raises(CredentialRejected):
                        await client.connect_account("alice", "fakex", {"api_key": WRONG})
                    await client.check_account("alice", "fakex")
                    await client.remove_account("alice", "fakex")
        told = [line for line in lines if line["event"] == "account.managed"]
        assert [(line["change"], line["outcome"]) for line in told] == [
            ("connect", "stored"),
            ("connect", "replaced"),
            ("connect", "CREDENTIAL_REJECTED"),
            ("check", "works"),
            ("remove", "removed"),
        ]
        for line in told:
            assert (line["exchange"], line["environment"]) == ("fakex", "production")
            assert line["caller"] == f"user {line['user']}"
            assert all(text not in str(line) for text in ("alice", GOOD, OTHER, WRONG))
