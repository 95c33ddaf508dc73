"""The part of the contract about safety: hostile venues, secrets, cancellation and resources."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from exchange_service.plugin_api import VenueMalformed
from exchange_service.testing.calling_contract import GRACE, CallingContract
from exchange_service.testing.certificates import untrusted_certificate
from exchange_service.testing.venue import Fault, LoopbackVenue
from exchange_service.venues.blocking import BLOCKS
from exchange_service.venues.failures import place_in


class SafetyContract(CallingContract):
    """That the plugin sends a credential to nobody else, shows it nowhere, and neither blocks nor leaks."""

    @pytest.mark.asyncio
    async def test_a_certificate_that_nobody_trusts_ends_the_call_before_anything_is_sent(self, tmp_path: Path) -> None:
        venue = type(self).simulator()
        await venue.start(tls=untrusted_certificate(tmp_path))
        try:
            row = self.credential(venue)
            error = await self._fetch_error(venue, row, "a certificate that nobody trusts")
            sent = len(venue.requests)
            # A client that does not check the certificate gets an answer, so it was the certificate.
            async with ClientSession() as session, session.get(venue.url, ssl=False) as response:
                await response.read()
        finally:
            await venue.stop()
        assert error.transient, f"a certificate that nobody trusts became {type(error).__name__}"
        assert not sent, "a request was sent to a venue without a trusted certificate"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    async def test_a_redirect_is_not_followed_to_another_host(self, status: int) -> None:
        async with _OtherHost() as other, self._open_venue() as (venue, row):
            venue.fail(Fault(status=status, headers={"Location": f"{other.url}/v1/balance"}))
            await self._fetch_error(venue, row, f"a redirect (HTTP {status})")
            assert not other.requests, "the request was sent to the other host, with its credential"

    @pytest.mark.asyncio
    async def test_a_body_without_end_is_cut(self) -> None:
        # Larger than the limit for public market data.
        huge = b'{"padding": "' + b"0" * (65 * 1024 * 1024) + b'"}'
        error, _ = await self._error_from(Fault(body=huge), "65 MiB")
        assert isinstance(error, VenueMalformed), f"65 MiB became {type(error).__name__}"

    @pytest.mark.asyncio
    async def test_a_compressed_bomb_is_cut(self) -> None:
        error, _ = await self._error_from(Fault.gzip_bomb(80 * 1024 * 1024), "80 MiB of zeros in gzip")
        assert isinstance(error, VenueMalformed), f"a bomb became {type(error).__name__}"

    @pytest.mark.asyncio
    async def test_the_call_does_not_show_the_credential(self) -> None:
        async with self._open_venue() as (venue, row), self._open_call(venue, row) as call:
            await self._fetch(call)
            shown = "\n".join((repr(call), str(call), repr(call.credential), repr(call.account_state)))
            self._assert_no_secret(shown, "the call")

    @pytest.mark.asyncio
    async def test_a_cancelled_call_ends_at_once(self) -> None:
        async with self._open_venue() as (venue, row), self._open_call(venue, row) as call:
            venue.fail(Fault(silent=True))
            task = asyncio.create_task(self._fetch(call))
            await _wait_until(lambda: bool(venue.requests), "no request was sent")
            task.cancel()
            done, _ = await asyncio.wait({task}, timeout=GRACE)
            assert done, "the plugin does not end when it is cancelled"
            assert task.cancelled(), f"a cancelled call ended with {task.exception()!r}"

    @pytest.mark.asyncio
    async def test_nothing_is_left_open(self) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with self._open_venue() as (venue, row):
                await self._fetch_good(venue, row)
                venue.fail(Fault(reset=True))
                await self._fetch_outcome(venue, row)
            gc.collect()
        left = [str(warning.message) for warning in caught if issubclass(warning.category, ResourceWarning)]
        assert not left, f"left open: {left}"

    @pytest.mark.asyncio
    async def test_it_never_blocks_the_event_loop(self) -> None:
        blockbuster = pytest.importorskip("blockbuster", reason="blockbuster is not installed: pip install blockbuster")
        async with self._open_venue() as (venue, row), self._open_call(venue, row) as call:
            with blockbuster.blockbuster_ctx([self.plugin]):
                try:
                    await self._fetch(call)
                except blockbuster.BlockingError as error:
                    place = place_in(error, self.plugin.__name__)
                    raise AssertionError(f"{BLOCKS}; {error} in {place or 'a library'}") from error


class _OtherHost(LoopbackVenue):
    """A host that the plugin has no reason to call."""

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        return web.json_response({})


async def _wait_until(condition: Callable[[], bool], otherwise: str) -> None:
    for _ in range(300):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(otherwise)
