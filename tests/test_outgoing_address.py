"""A user whose key does not allow the service's address is told which address to allow."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from exchange_service.credentials import CredentialReference
from exchange_service.errors import AddressNotAllowed, CredentialRejected, VenueError
from exchange_service.model import Account, Balance, VenueAccount
from exchange_service.plugin_host.client import PluginClients, ProcessSettings
from exchange_service.settings import Settings
from exchange_service.venues.egress import read_egress
from exchange_service.venues.fetching import Target
from exchange_service.venues.priority import Priority
from exchange_service.wire.balances import FetchedBalance, fetched_balance, read_fetched

ACCOUNT = Account("alice", "acme", "production")


@dataclass
class FakeSessions:
    """What the plugins of this process answer: a balance or an error."""

    result: FetchedBalance | VenueError

    async def fetch(self, *_: object) -> FetchedBalance:
        if isinstance(self.result, VenueError):
            raise self.result
        return self.result

    async def close(self) -> None:
        return None


@dataclass
class Nothing:
    """A registry without plugins, and a plugin of this process."""

    plugins: tuple[Any, ...] = ()
    listings: dict[str, Any] = field(default_factory=dict)
    own_process: bool = False

    @property
    def plugin(self) -> Nothing:
        return self


async def fetch(result: FetchedBalance | VenueError, address: str) -> FetchedBalance:
    async def no_credential(_: CredentialReference) -> Any:
        raise AssertionError

    settings = ProcessSettings(1.0, 1.0, {}, {}, {}, False, egress=read_egress({}, {}, address))
    nothing: Any = Nothing()
    sessions: Any = FakeSessions(result)
    venues = PluginClients(nothing, sessions, no_credential, settings, lambda *_: None)
    target = Target(ACCOUNT, nothing, CredentialReference(ACCOUNT, ACCOUNT, "1"))
    return await venues.fetch(target, asyncio.get_running_loop().time() + 5, Priority())


@pytest.mark.parametrize("advice", [None, "Add it to the IP allow-list of the key."])
async def test_a_refusal_names_the_address_that_the_operator_has_set(advice: str | None) -> None:
    with pytest.raises(AddressNotAllowed) as caught:
        await fetch(AddressNotAllowed("Acme refuses the address.", advice=advice), "198.51.100.7")
    assert caught.value.message == "Acme refuses the address."
    assert caught.value.advice == "Add it to the IP allow-list of the key. This service calls from 198.51.100.7."
    # What it comes from is kept with it, and must not lead to the call.
    assert caught.value.__context__ is None or caught.value.__context__.__traceback__ is None


async def test_an_address_that_the_venue_has_named_is_named_once() -> None:
    refusal = AddressNotAllowed("Acme refuses the address of this service, 198.51.100.7.", advice="Add it.")
    with pytest.raises(AddressNotAllowed) as caught:
        await fetch(refusal, "198.51.100.7")
    assert caught.value.text.count("198.51.100.7") == 1


async def test_the_refusal_of_one_of_several_accounts_names_it_too() -> None:
    refused = VenueAccount(type="margin", error=AddressNotAllowed("Acme refuses the address."))
    balance = fetched_balance(Balance((VenueAccount(type="spot"), refused)))
    accounts = read_fetched(await fetch(balance, "198.51.100.7")).venue_accounts
    assert accounts[0].error is None
    assert accounts[1].error is not None
    assert "198.51.100.7" in accounts[1].error.text


async def test_other_errors_and_an_unset_address_change_nothing() -> None:
    with pytest.raises(CredentialRejected) as caught:
        await fetch(CredentialRejected("Acme refuses the key."), "198.51.100.7")
    assert caught.value.text == "Acme refuses the key."
    with pytest.raises(AddressNotAllowed) as unset:
        await fetch(AddressNotAllowed("Acme refuses the address."), "")
    assert unset.value.text == "Acme refuses the address."
    balance = fetched_balance(Balance((VenueAccount(type="spot"),)))
    assert await fetch(balance, "198.51.100.7") == balance


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("198.51.100.7,2001:DB8::7", "198.51.100.7, 2001:db8::7"),
        ("198.51.100.0/28", "198.51.100.0/28"),
    ],
)
def test_the_setting_takes_addresses(given: str, kept: str) -> None:
    assert Settings(outgoing_address=given).outgoing_address == kept


@pytest.mark.parametrize("wrong", ["", "gateway.example.org", "198.51.100.7:443", ",".join(["1.1.1.1"] * 5)])
def test_the_setting_refuses_anything_else(wrong: str) -> None:
    with pytest.raises(ValueError, match="outgoing_address"):
        Settings(outgoing_address=wrong)
