"""The simulator refuses what Aster would refuse. It is asked here without the plugin."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from exchange_service_aster import simulator
from exchange_service_aster.simulator import AsterSimulator, SimulatedAgent, address_of

from exchange_service.testing.venue import SITUATIONS, TROUBLES

coincurve = pytest.importorskip("coincurve", reason="agents cannot sign here")

KEY = "4fd0a42218f3eae43a6ce26d22544e986139a01e5b34a62db53757ffca81bae1"
SIGNER = "0x21cF8Ae13Bb72632562c6Fff438652Ba1a151bb0"
USER = "0x63DD5aCC6b1aa0f563956C0e534DD30B6dcF7C4e"
MESSAGE = f"nonce=1748310859508867&user={USER}&signer={SIGNER}"
LIVE_SIGNATURE = (
    "0x79f8910c6a2d14796480f5bc09492b9cf00e247bc53b2cc9b47e3b59dfe698b9"
    "2e9e9a6853c210ae67ffa351b09d84a14a0585122f2fba2c90b2998e3e96e3b81b"
)
TEST_SIGNATURE = (
    "0xd085b7104b474be9b87fc06bf155eff586165f3c6f48475546a615cc84087bba"
    "5e5ec4a34174ce7313067b75f516fd7a607514d6396ef96b01ae977f7c80d6b41b"
)


def now() -> int:
    return time.time_ns() // 1000


def query(*, nonce: int | None = None, signer: str = SIGNER, key: str = KEY) -> str:
    """A query as an agent sends it."""
    message = f"nonce={now() if nonce is None else nonce}&user={USER}&signer={signer}"
    digest = simulator.typed_data_hash(message, 1666)
    signed = coincurve.PrivateKey(bytes.fromhex(key)).sign_recoverable(digest, hasher=None)
    return f"{message}&signature=0x{signed[:64].hex()}{signed[64] + 27:x}"


def hmac_query(parameters: str, secret: str = "a-secret") -> str:
    return f"{parameters}&signature={hmac.digest(secret.encode(), parameters.encode(), hashlib.sha256).hex()}"


async def ask(venue: AsterSimulator, address: str, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """The status, and Aster's own code or 0."""
    async with aiohttp.ClientSession() as session, session.get(venue.url + address, headers=headers) as response:
        body = await response.json()
        return response.status, body.get("code", 0) if isinstance(body, dict) else 0


@pytest.fixture
async def venue() -> Any:
    async with AsterSimulator() as venue:
        venue.add_wallet(USER)
        venue.add_agent(USER, KEY)
        venue.add_key("a-key", "a-secret")
        yield venue


def test_it_finds_the_signer_of_signatures_that_were_made_elsewhere() -> None:
    assert address_of(KEY) == SIGNER.lower()
    assert simulator.signer_of(MESSAGE, LIVE_SIGNATURE, 1666) == SIGNER.lower()
    assert simulator.signer_of(MESSAGE, TEST_SIGNATURE, 714) == SIGNER.lower()


def test_a_signature_for_the_other_chain_or_text_is_another_signers() -> None:
    assert simulator.signer_of(MESSAGE, TEST_SIGNATURE, 1666) != SIGNER.lower()
    assert simulator.signer_of(MESSAGE + "0", LIVE_SIGNATURE, 1666) != SIGNER.lower()


@pytest.mark.parametrize("signature", ["", "0x", "0x" + "00" * 65, LIVE_SIGNATURE[:-2] + "1d", "0x" + "ff" * 64 + "1b"])
def test_an_invalid_signature_has_no_signer(signature: str) -> None:
    assert simulator.signer_of(MESSAGE, signature, 1666) == ""


async def test_an_agent_that_signs_rightly_is_answered(venue: AsterSimulator) -> None:
    for path in ("/fapi/v3/accountWithJoinMargin", "/api/v3/account", "/fapi/v3/agent"):
        assert await ask(venue, f"{path}?{query()}") == (200, 0)


async def test_an_agent_that_signs_wrongly_is_refused(venue: AsterSimulator) -> None:
    assert await ask(venue, f"/api/v3/account?{query(key='11' * 32)}") == (400, -1000)
    assert await ask(venue, f"/api/v3/account?{query(signer=address_of('11' * 32), key='11' * 32)}") == (400, -1000)
    assert await ask(venue, f"/api/v3/account?{query()}&more=1") == (400, -1000)
    assert await ask(venue, "/api/v3/account?nonce=1") == (400, -1102)


async def test_an_agents_own_state_counts(venue: AsterSimulator) -> None:
    agent: SimulatedAgent = venue.wallets[USER.lower()].agents[SIGNER.lower()]
    agent.can_read = False
    assert await ask(venue, f"/api/v3/account?{query()}") == (401, -2015)
    agent.elsewhere = True
    assert await ask(venue, f"/api/v3/account?{query()}") == (401, -1011)
    agent.expired = now() // 1000 - 1
    assert await ask(venue, f"/api/v3/account?{query()}") == (400, -1000)


async def test_a_nonce_is_taken_once_and_within_ten_seconds(venue: AsterSimulator) -> None:
    once = query()
    assert await ask(venue, f"/api/v3/account?{once}") == (200, 0)
    assert await ask(venue, f"/api/v3/account?{once}") == (400, -4225)
    for offset in (-15_000_000, 15_000_000):
        assert await ask(venue, f"/api/v3/account?{query(nonce=now() + offset)}") == (400, -4225)
    for offset in (-5_000_000, 5_000_000):
        assert await ask(venue, f"/api/v3/account?{query(nonce=now() + offset)}") == (200, 0)


async def test_a_nonce_below_a_hundred_others_is_refused(venue: AsterSimulator) -> None:
    late = now()
    venue.wallets[USER.lower()].nonces = [late + number for number in range(1, 101)]
    assert await ask(venue, f"/api/v3/account?{query(nonce=late)}") == (400, -4225)
    assert await ask(venue, f"/api/v3/account?{query(nonce=late + 101)}") == (200, 0)
    assert len(venue.wallets[USER.lower()].nonces) == 100


async def test_an_hmac_key_is_checked_with_its_signature_and_time(venue: AsterSimulator) -> None:
    headers, milliseconds = {"X-MBX-APIKEY": "a-key"}, now() // 1000
    path = "/fapi/v4/account"
    good = hmac_query(f"timestamp={milliseconds}")
    assert await ask(venue, f"{path}?{good}", headers) == (200, 0)
    assert await ask(venue, f"{path}?{good}") == (401, -2015)
    assert await ask(venue, f"{path}?{hmac_query(f'timestamp={milliseconds}', 'other')}", headers) == (400, -1022)
    assert await ask(venue, f"{path}?{hmac_query('recvWindow=5000')}", headers) == (400, -1102)
    for offset, outcome in ((-4000, 200), (-9000, 400), (500, 200), (3000, 400)):
        late = hmac_query(f"timestamp={now() // 1000 + offset}")
        assert (await ask(venue, f"{path}?{late}", headers))[0] == outcome
    wide = hmac_query(f"recvWindow=20000&timestamp={milliseconds - 9000}")
    assert await ask(venue, f"{path}?{wide}", headers) == (200, 0)


async def test_beyond_the_weight_of_a_minute_all_is_refused(venue: AsterSimulator) -> None:
    venue.used_weight = 2401
    assert await ask(venue, f"/api/v3/account?{query()}") == (429, -1003)


def test_all_situations_and_troubles_live_in_one_simulator() -> None:
    venue = AsterSimulator()
    rows = [venue.demo_credential(word) for word in SITUATIONS]
    rows += [venue.troubled_credential(word) for word in TROUBLES if word != "unknown account"]
    assert all(rows)
    assert len({str(row) for row in rows}) == len(rows)


def test_only_the_moving_wallet_moves() -> None:
    venue = AsterSimulator()
    for situation in ("moving", "slow"):
        venue.demo_credential(situation)
    for _ in range(5):
        venue.move()
    profits = {wallet.moving: wallet.assets[0].unrealized for wallet in venue.wallets.values()}
    assert profits[False] == Decimal("84.20")
    assert profits[True] != Decimal("84.20")
