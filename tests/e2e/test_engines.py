"""What is the same on both engines, which the other tests of the service run on one of them only."""

from __future__ import annotations

from pathlib import Path

import pytest

from exchange_service.app import start_service
from exchange_service.startup_checks import UnsafeSettings
from tests.harness import ScriptedPlugin, balance_request, failure, registry_of, serving, settings_for, totals

ENGINES = pytest.mark.parametrize("engine", ["grpcio", "native"])


@ENGINES
async def test_both_engines_answer(tmp_path: Path, engine: str) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), engine=engine) as running:
        await running.store()
        assert totals((await running.stub.GetBalance(balance_request())).balance) == {"BTC": "1.50"}
        assert (await failure(running.stub.GetBalance(balance_request("nowhere")))).reason == "EXCHANGE_UNKNOWN"


class TestNativeIsRefused:
    @pytest.mark.parametrize("name", ["tls_certificate", "tls_client_ca"])
    async def test_with_tls(self, tmp_path: Path, name: str) -> None:
        file = tmp_path / "file.pem"
        file.touch()
        changes = {"tls_certificate": file, "tls_key": file} if name == "tls_certificate" else {name: file}
        with pytest.raises(UnsafeSettings, match=f"engine=native has no TLS, and {name} needs it"):
            await start_service(settings_for(tmp_path, engine="native", **changes))

    async def test_without_its_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("exchange_service.startup_checks.find_spec", lambda _: None)
        with pytest.raises(UnsafeSettings, match=r"install exchange-service\[native\]"):
            await start_service(settings_for(tmp_path, engine="native"))
