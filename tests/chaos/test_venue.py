"""The loopback venue: what it answers is in the history, with true times, and it misbehaves as it is told."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.chaos.accounts import read_amount, secret_of, user_name
from tests.chaos.certificates import KINDS
from tests.chaos.faults import all_faults
from tests.chaos.faults.venues import MODE_OF
from tests.chaos.history import VenueAnswer
from tests.chaos.venue import Venue
from tests.chaos.venue_forms import oanda_account
from tests.chaos.venue_modes import MODES
from tests.chaos.venue_server import SECURE
from tests.harness import until


@pytest.fixture
async def venue(tmp_path: Path) -> AsyncIterator[Venue]:
    async with Venue(tmp_path) as venue:
        yield venue


async def ask(venue: Venue, user: int, name: str = "oanda", **options: Any) -> tuple[int, Any]:
    """The status and the payload of a user's account."""
    url = f"{venue.addresses[name]}/v3/accounts/{oanda_account(user)}/summary"
    headers = {"Authorization": f"Bearer {secret_of(user)}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers, **options) as response:
        return response.status, await response.json(content_type=None)


async def newest(venue: Venue, kind: str) -> VenueAnswer:
    """The newest answer of the history once it is of this kind: it is written when the client has it already."""
    await until(lambda: venue.answers and venue.answers[-1].kind == kind, f"an answer of the kind {kind}")
    return venue.answers[-1]


async def test_amounts_say_whose_they_are_and_the_history_says_when_and_what_was_not_the_truth(venue: Venue) -> None:
    before = time.monotonic()
    for seq in range(1, 6):
        _, payload = await ask(venue, 7)
        assert read_amount(payload["account"]["balance"]) == (7, seq)
    await until(lambda: len(venue.answers) == 5)
    first, *_, last = venue.answers
    assert (first.user, first.account, first.seq, first.kind) == (user_name(7), "oanda", 1, "ok")
    assert before <= first.begin <= first.made <= first.sent <= last.begin <= last.sent <= time.monotonic()
    await venue.set_mode("back")
    high, less = [read_amount((await ask(venue, 7))[1]["account"]["balance"]) for _ in range(2)]
    assert high > less > (7, 5)
    await venue.set_mode("foreign")
    _, payload = await ask(venue, 7)
    assert payload["account"]["id"] == oanda_account(8)
    assert read_amount(payload["account"]["balance"])[0] == 8
    # It is not an answer that somebody may be shown.
    assert (await newest(venue, "foreign")).seq == 0
    await venue.set_mode("broken", users=[7])
    assert [(await ask(venue, user))[0] for user in (7, 8)] == [500, 200]
    assert await venue.met("broken") == 1
    with pytest.raises(RuntimeError, match="no mode"):
        await venue.set_mode("brokken")


async def test_it_refuses_connections_shows_bad_certificates_and_is_back_at_the_same_addresses(venue: Venue) -> None:
    trust = ssl.create_default_context(cafile=venue.authority)
    assert (await ask(venue, 7, SECURE, ssl=trust))[0] == 200
    await venue.set_mode("refuse")
    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(venue, 7)
    for kind in KINDS[1:]:
        await venue.set_mode(kind)
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ask(venue, 7, SECURE, ssl=trust)
    await venue.set_mode("well")
    assert (await ask(venue, 7, SECURE, ssl=trust))[0] == 200
    assert (await ask(venue, 7))[0] == 200


def test_every_mode_is_part_of_a_fault() -> None:
    faults = all_faults()
    assert set(MODE_OF) <= faults.keys()
    in_others = {"well", "partial", "redirect"}
    assert {mode for mode, _ in MODE_OF.values()} | in_others == MODES.keys()
