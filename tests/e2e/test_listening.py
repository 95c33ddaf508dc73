"""How the service listens and stops: addresses, the operator's venue URLs, TLS, and the calls in progress."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount
from structlog.testing import capture_logs

from exchange_service.app import start_service
from exchange_service.client import ExchangeServiceClient, ServiceUnreachable
from exchange_service.errors import (
    DeadlinePassed,
)
from exchange_service.grpc_server.server import BindError
from exchange_service.grpc_server.servicer import SERVICE
from exchange_service.model import PluginInfo
from exchange_service.plugin_api import Balance, Environment, VenueCall
from exchange_service.startup_checks import UnsafeSettings
from exchange_service.testing import Fault
from exchange_service.venues.registry import PluginProblem, Registry
from tests.harness import (
    USER,
    Gate,
    Running,
    ScriptedPlugin,
    balance_request,
    failure,
    holding,
    listing,
    loaded,
    registry_of,
    serving,
    settings_for,
    totals,
    until,
)

OANDA_TOKEN = "a-token-for-tests"
OANDA_ACCOUNT = "101-004-7654321-001"


def _value(text: str) -> Callable[[], Awaitable[str]]:
    async def make() -> str:
        return text

    return make


class TestAddresses:
    async def test_a_second_service_on_the_same_port_fails_with_the_address(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            settings = settings_for(tmp_path, address=running.service.address)
            with pytest.raises(BindError, match=running.service.address):
                await start_service(settings, registry=registry_of(ScriptedPlugin()))
            # The first one still serves.
            assert (await running.client.list_exchanges()).stats.total == 1

    async def test_a_unix_socket_serves(self, tmp_path: Path) -> None:
        address = f"unix:{tmp_path / 'socket'}"
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), address=address) as running:
            assert running.service.address == address
            assert (await running.client.list_exchanges()).stats.total == 1

    async def test_a_unix_socket_that_cannot_be_made_ends_the_start(self, tmp_path: Path) -> None:
        settings = settings_for(tmp_path, address=f"unix:{tmp_path / 'missing' / 'socket'}")
        with pytest.raises(BindError, match="folder does not exist"):
            await start_service(settings, registry=registry_of(ScriptedPlugin()))

    async def test_a_port_is_free_again_after_the_stop(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            address = running.service.address
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), address=address) as running:
            assert (await running.client.list_exchanges()).stats.total == 1

    async def test_an_address_that_other_machines_reach_needs_tls(self, tmp_path: Path) -> None:
        with pytest.raises(UnsafeSettings, match="TLS"):
            await start_service(settings_for(tmp_path, address="0.0.0.0:0"), registry=registry_of(ScriptedPlugin()))

    async def test_the_operator_may_allow_plaintext(self, tmp_path: Path) -> None:
        async with serving(
            tmp_path, registry=registry_of(ScriptedPlugin()), address="0.0.0.0:0", insecure=True
        ) as running:
            port = running.service.address.rpartition(":")[2]
            async with ExchangeServiceClient(f"127.0.0.1:{port}") as client:
                assert (await client.list_exchanges()).stats.total == 1

    async def test_a_certificate_without_its_key_is_refused(self, tmp_path: Path) -> None:
        certificate, _ = _certificate(tmp_path)
        with pytest.raises(UnsafeSettings, match="both"):
            await start_service(
                settings_for(tmp_path, tls_certificate=certificate), registry=registry_of(ScriptedPlugin())
            )

    async def test_an_address_that_accepts_a_connection_and_never_answers_costs_the_deadline(
        self, silent_address: str
    ) -> None:
        async with ExchangeServiceClient(silent_address, timeout=0.3) as client:
            for call in (client.list_exchanges(), client.get_balance(USER, "fakex")):
                with pytest.raises(DeadlinePassed, match=f"{silent_address} did not answer in time"):
                    await call

    async def test_a_call_that_takes_longer_than_its_client_waits_passes_its_deadline(self, tmp_path: Path) -> None:
        async def slow(*_: Any) -> bytes:
            await asyncio.Event().wait()
            return b""

        server = grpc.aio.server()
        handlers: dict[str, Any] = {"ListExchanges": grpc.unary_unary_rpc_method_handler(slow)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with ExchangeServiceClient(f"127.0.0.1:{port}", timeout=0.3) as client:
            with pytest.raises(DeadlinePassed):
                await client.list_exchanges()
        await server.stop(0)

    async def test_an_address_without_a_service_is_named_by_the_client(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            address = running.service.address
        async with ExchangeServiceClient(address) as client:
            with pytest.raises(ServiceUnreachable, match=address):
                await client.list_exchanges()


WITH_SANDBOX = (
    Environment("production", {"api": "https://fakex.example"}, aliases=("live",)),
    Environment("sandbox", {"api": "https://test.fakex.example"}, aliases=("practice",)),
)
WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown exchange": ({"venue_urls": {"fakexe": "http://127.0.0.1:1"}}, "'fakexe'"),
    "an unknown exchange's sandbox": ({"venue_urls": {"fakexe.sandbox": "http://127.0.0.1:1"}}, "'fakexe.sandbox'"),
    "an unknown environment": ({"venue_urls": {"fakex.moon": "http://127.0.0.1:1"}}, "'fakex.moon'"),
    "an environment without a name": ({"venue_urls": {"fakex.": "http://127.0.0.1:1"}}, "'fakex.'"),
    "a distribution that is not installed": ({"exchange_plugins": {"fakex": "exchange-service-fakexe"}}, "-fakexe'"),
}


class TestOverrides:
    @pytest.fixture
    def plugin(self) -> ScriptedPlugin:
        return ScriptedPlugin(listing("fakex", environments=WITH_SANDBOX))

    @pytest.mark.parametrize("name", WRONG_SETTINGS)
    async def test_an_override_for_an_exchange_that_is_not_served_is_refused_by_its_name(
        self, tmp_path: Path, plugin: ScriptedPlugin, name: str
    ) -> None:
        settings, named = WRONG_SETTINGS[name]
        with pytest.raises(UnsafeSettings, match=named):
            await start_service(settings_for(tmp_path, **settings), registry=registry_of(plugin))

    async def test_an_override_for_an_exchange_of_a_plugin_that_is_not_loaded_is_a_warning_and_the_others_serve(
        self, tmp_path: Path, plugin: ScriptedPlugin
    ) -> None:
        served = loaded(plugin)
        problems = [
            PluginProblem(PluginInfo("acme", "1.0.0", "exchange-service-acme"), "The hook fetch_balances is unknown."),
            PluginProblem(served.info, "The catalogue is older than the library."),
        ]
        registry = Registry([served], problems)
        with capture_logs() as lines:
            async with serving(tmp_path, registry=registry, venue_urls={"acme": "http://127.0.0.1:1"}) as running:
                assert [entry.id for entry in (await running.client.list_exchanges()).exchanges] == ["fakex"]
        (line,) = [line for line in lines if line["event"] == "settings.unused"]
        assert line["reason"].endswith("The plugin acme was not loaded: The hook fetch_balances is unknown.")

    @pytest.mark.parametrize("name", ["fakex.sandbox", "fakex.practice", "fakex.PRACTICE"])
    async def test_an_alias_stands_for_its_environment_and_for_no_other(
        self, tmp_path: Path, plugin: ScriptedPlugin, name: str
    ) -> None:
        async with serving(tmp_path, registry=registry_of(plugin), venue_urls={name: "http://127.0.0.1:1"}) as running:
            await running.store(environment="sandbox")
            await running.store()
            await running.client.get_balance(USER, "fakex", environment="practice")
            await running.client.get_balance(USER, "fakex")
        assert [(call.environment.name, call.override) for call in plugin.calls] == [
            ("sandbox", "http://127.0.0.1:1"),
            ("production", ""),
        ]

    async def test_the_venues_own_name_of_its_sandbox_is_accepted(self, tmp_path: Path) -> None:
        async with (
            OandaSimulator() as practice,
            serving(tmp_path, venue_urls={"oanda.practice": practice.url, "oanda": "http://127.0.0.1:1"}) as running,
        ):
            practice.add_token(OANDA_TOKEN, SimulatedAccount(OANDA_ACCOUNT))
            await running.store("oanda", environment="sandbox", api_key=OANDA_TOKEN)
            reply = await running.client.get_balance(USER, "oanda", environment="practice")
        assert reply.balance.environment == "sandbox"
        assert totals(reply.balance) == {"EUR": "25310.4426"}

    async def test_a_distribution_that_is_installed_may_be_chosen(self, tmp_path: Path, plugin: ScriptedPlugin) -> None:
        chosen = {"fakex": "exchange-service-fakex"}
        async with serving(tmp_path, registry=registry_of(plugin), exchange_plugins=chosen) as running:
            assert (await running.client.list_exchanges()).stats.total == 1


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1 and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "exchange-service")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@pytest.mark.needs_grpcio("The native engine has no TLS.")
class TestTls:
    async def test_a_client_that_trusts_the_certificate_is_served(self, tmp_path: Path) -> None:
        certificate, key = _certificate(tmp_path)
        async with serving(
            tmp_path,
            registry=registry_of(ScriptedPlugin()),
            address="0.0.0.0:0",
            tls_certificate=certificate,
            tls_key=key,
            open_to_all=True,
        ) as running:
            port = running.service.address.rpartition(":")[2]
            trust = grpc.ssl_channel_credentials(certificate.read_bytes())
            async with ExchangeServiceClient(f"127.0.0.1:{port}", credentials=trust) as client:
                assert (await client.list_exchanges()).stats.total == 1
            async with ExchangeServiceClient(f"127.0.0.1:{port}", timeout=2) as client:
                with pytest.raises(ServiceUnreachable):
                    await client.list_exchanges()


class TestStop:
    async def test_a_call_in_progress_is_answered_before_the_stop(self, tmp_path: Path) -> None:
        gate = Gate()
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=gate)), shutdown_grace=5) as running:
            await running.store()
            call = asyncio.ensure_future(running.client.get_balance(USER, "fakex"))
            await gate.entered.wait()
            stopping = asyncio.ensure_future(running.service.server.stop(5))
            await until(lambda: not stopping.done())
            gate.opened.set()
            assert (await call).balance.venue_accounts
            await stopping

    async def test_a_call_that_waits_for_a_silent_venue_fails_within_the_grace(self, tmp_path: Path) -> None:
        async with OandaSimulator() as venue:
            venue.add_token(OANDA_TOKEN, SimulatedAccount(OANDA_ACCOUNT))
            venue.fail(Fault(silent=True))
            settings = settings_for(tmp_path, venue_urls={"oanda": venue.url}, shutdown_grace=1.0)
            service = await start_service(settings)
            async with ExchangeServiceClient(service.address) as client:
                running = Running(service, client)
                await running.store("oanda", api_key=OANDA_TOKEN)
                call = asyncio.ensure_future(failure(running.stub.GetBalance(balance_request("oanda"))))
                await until(lambda: venue.requests, "the request to the venue")
                began = time.monotonic()
                stopping = asyncio.ensure_future(service.stop())
                failed = await call
                failed_after = time.monotonic() - began
                await stopping
                stopped_after = time.monotonic() - began
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert failed.retry_delay is not None
        # Not at once, because the venue may still answer.
        assert 0.5 < failed_after < 1.0
        assert stopped_after < 3.0

    async def test_a_plugins_close_that_hangs_does_not_delay_the_stop(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.plugin_kit.state._CLOSE_TIMEOUT", 0.3)
        closing: list[str] = []

        async def answer(call: VenueCall) -> Balance:
            async def hang(value: str) -> None:
                closing.append(value)
                await asyncio.Event().wait()

            await call.account_state.get("client", _value("the account's"), close=hang)
            await call.plugin_state.get("markets", _value("the plugin's"), close=hang)
            return holding(("BTC", "1.50"))

        service = await start_service(
            settings_for(tmp_path, shutdown_grace=1.0), registry=registry_of(ScriptedPlugin(answer=answer))
        )
        async with ExchangeServiceClient(service.address) as client:
            running = Running(service, client)
            for user in ("alice", "bob", "carol"):
                await running.store(user=user)
                await client.get_balance(user, "fakex")
        async with asyncio.timeout(5):
            await service.stop()
        assert sorted(closing) == ["the account's"] * 3 + ["the plugin's"]
