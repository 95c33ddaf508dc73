"""References of credentials cached in front of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from exchange_service.credentials import CredentialReference
from exchange_service.credentials.references import CachedReferences
from exchange_service.errors import CredentialInvalid, ServiceError, StoreUnavailable
from exchange_service.model import Account, Credential
from tests.credential_tables import FULL, OANDA
from tests.harness import until


class FakeStore:
    """A store that counts its requests, waits while its gate is closed, and raises its error."""

    def __init__(self) -> None:
        self.requests = 0
        self.version: str | None = "1"
        self.error: ServiceError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def find(
        self, account: Account, *, aliases: Sequence[str] = (), credential_of: str = ""
    ) -> CredentialReference | None:
        self.requests += 1
        version, error = self.version, self.error
        await self.gate.wait()
        if error is not None:
            raise error
        return None if version is None else CredentialReference(account, account, version)

    async def accounts(self, user_id: str) -> list[Account]:
        self.requests += 1
        version, error = self.version, self.error
        await self.gate.wait()
        if error is not None:
            raise error
        return [] if version is None else [OANDA]

    async def open(self, reference: CredentialReference) -> Credential:
        return FULL


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def fake() -> FakeStore:
    return FakeStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def references(fake: FakeStore, clock: Clock) -> CachedReferences:
    return CachedReferences(fake, clock=clock, max_accounts=3)  # type: ignore[arg-type]


async def version_of(references: CachedReferences) -> str | None:
    reference = await references.find(OANDA)
    return reference.version if reference else None


class TestReferences:
    async def test_the_store_is_queried_once_in_thirty_seconds(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        for _ in range(5):
            assert await version_of(references) == "1"
        fake.version = "2"
        clock.now += 29.9
        assert await version_of(references) == "1"
        assert fake.requests == 1
        clock.now += 0.1
        assert await version_of(references) == "2"

    async def test_a_credential_that_is_added_works_within_two_seconds(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        fake.version = None
        assert [await version_of(references) for _ in range(3)] == [None] * 3
        assert fake.requests == 1
        fake.version = "1"
        clock.now += 2
        assert await version_of(references) == "1"

    async def test_callers_at_the_same_time_share_one_query(
        self, references: CachedReferences, fake: FakeStore
    ) -> None:
        fake.gate.clear()
        callers = [asyncio.create_task(version_of(references)) for _ in range(50)]
        await asyncio.sleep(0)
        callers[0].cancel()
        await asyncio.sleep(0)
        fake.gate.set()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert answers[1:] == ["1"] * 49
        assert isinstance(answers[0], asyncio.CancelledError)
        assert fake.requests == 1

    async def test_forced_callers_at_the_same_time_share_one_query_that_has_not_begun(
        self, references: CachedReferences, fake: FakeStore
    ) -> None:
        fake.gate.clear()
        callers = [asyncio.ensure_future(references.find(OANDA, now=True)) for _ in range(50)]
        await until(lambda: fake.requests > 0)
        # What has begun may have missed a change.
        callers.append(asyncio.ensure_future(references.find(OANDA, now=True)))
        await until(lambda: fake.requests > 1)
        fake.gate.set()
        await asyncio.gather(*callers)
        assert fake.requests == 2

    async def test_the_accounts_of_a_user_outlive_the_store_for_five_minutes(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        assert await references.accounts("alice") == [OANDA]
        fake.error = StoreUnavailable("down")
        clock.now += 299
        assert await references.accounts("alice") == [OANDA]
        with pytest.raises(StoreUnavailable):
            await references.accounts("bob")
        clock.now += 2
        with pytest.raises(StoreUnavailable):
            await references.accounts("alice")

    async def test_a_forced_read_does_not_lose_the_accounts_that_serve_while_the_store_is_away(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        await references.find(OANDA)
        assert await references.accounts("alice") == [OANDA]
        fake.error = StoreUnavailable("down")
        await references.find(OANDA, now=True)
        assert await references.accounts("alice") == [OANDA]

    async def test_a_forgotten_account_is_queried_again(self, references: CachedReferences, fake: FakeStore) -> None:
        await version_of(references)
        fake.version = "2"
        references.forget(OANDA)
        assert await version_of(references) == "2"

    async def test_an_answer_from_before_the_change_is_not_cached(
        self, references: CachedReferences, fake: FakeStore
    ) -> None:
        fake.gate.clear()
        early = asyncio.create_task(version_of(references))
        await until(lambda: fake.requests == 1, "the request")
        fake.version = "2"
        references.forget(OANDA)
        fake.gate.set()
        assert await early == "1"
        assert await version_of(references) == "2"

    async def test_a_known_reference_outlives_the_store_for_five_minutes(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        await version_of(references)
        fake.error = StoreUnavailable("down")
        clock.now += 30
        for _ in range(10):
            assert await version_of(references) == "1"
        # One try, and then not again for some seconds: each try may take its whole time limit.
        assert fake.requests == 2
        clock.now += 269.9
        assert await version_of(references) == "1"
        clock.now += 0.2
        with pytest.raises(StoreUnavailable):
            await version_of(references)

    async def test_the_store_is_used_again_soon_after_it_is_back(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        await version_of(references)
        fake.error = StoreUnavailable("down")
        clock.now += 30
        await version_of(references)
        fake.error, fake.version = None, "2"
        clock.now += 5
        assert await version_of(references) == "2"

    async def test_an_unknown_account_is_unavailable_while_the_store_is(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        fake.version = None
        await version_of(references)
        fake.error = StoreUnavailable("down")
        clock.now += 2
        with pytest.raises(StoreUnavailable):
            await version_of(references)

    async def test_an_ambiguous_credential_ends_the_known_one(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        await version_of(references)
        clock.now += 30
        fake.error = CredentialInvalid("more than one")
        with pytest.raises(CredentialInvalid):
            await version_of(references)
        fake.error = StoreUnavailable("down")
        with pytest.raises(StoreUnavailable):
            await version_of(references)

    async def test_it_remembers_a_bounded_number_of_accounts(
        self, references: CachedReferences, fake: FakeStore
    ) -> None:
        for number in range(10):
            await references.find(Account(str(number), "oanda"))
        await references.find(Account("9", "oanda"))
        assert fake.requests == 10
        await references.find(Account("0", "oanda"))
        assert fake.requests == 11

    async def test_opening_goes_to_the_store(self, references: CachedReferences) -> None:
        reference = await references.find(OANDA)
        assert reference is not None
        assert await references.open(reference) == FULL
