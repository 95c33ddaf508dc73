"""Which settings of authentication a service starts with, and which it refuses."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from exchange_service.app import start_service
from exchange_service.identity.methods import who_may_call
from exchange_service.startup_checks import UnsafeSettings, check_settings
from tests.authenticated_service import (
    authenticated_service,
    make_plugin,
    tls_settings,
)
from tests.harness import (
    registry_of,
    serving,
    settings_for,
)
from tests.identities import SECRET, Authority, client_of


class TestStart:
    @pytest.fixture
    def authority(self, tmp_path: Path) -> Authority:
        return Authority.create(tmp_path / "authority")

    async def refusal(self, folder: Path, **changes: Any) -> str:
        try:
            service = await start_service(settings_for(folder, **changes), registry=registry_of(make_plugin()))
        except UnsafeSettings as refused:
            return str(refused)
        await service.stop()
        raise AssertionError("it should not start")

    @pytest.mark.needs_grpcio("The native engine has no TLS.")
    async def test_on_a_public_address_a_service_must_authenticate_callers(
        self, tmp_path: Path, authority: Authority
    ) -> None:
        text = await self.refusal(tmp_path, **tls_settings(authority))
        for name in ("service_tokens", "jwt_secret", "tls_client_ca", "open_to_all"):
            assert name in text
        async with serving(
            tmp_path, registry=registry_of(make_plugin()), **tls_settings(authority, service_tokens=True)
        ):
            pass

    @pytest.mark.needs_grpcio("The native engine has no TLS.")
    async def test_the_operator_may_choose_to_serve_every_caller(self, tmp_path: Path, authority: Authority) -> None:
        open_to_all = tls_settings(authority, open_to_all=True)
        async with serving(tmp_path, registry=registry_of(make_plugin()), **open_to_all) as running:
            async with client_of(running, credentials=authority.channel_credentials()) as client:
                assert (await client.list_exchanges()).stats.total == 2
            assert "ANYBODY" in who_may_call(running.service.settings)

    @pytest.mark.threat("T9")
    @pytest.mark.parametrize("insecure", [False, True])
    async def test_tokens_never_cross_a_network_in_the_clear(self, tmp_path: Path, insecure: bool) -> None:
        for method in (
            {"service_tokens": True},
            {"jwt_secret": SECRET},
            {"jwt_jwks_url": "https://issuer.example/keys"},
        ):
            text = await self.refusal(tmp_path, address="0.0.0.0:0", insecure=insecure, **method)
            assert "insecure" in text if insecure else "in the clear" in text

    @pytest.mark.needs_grpcio("The native engine has no TLS.")
    @pytest.mark.parametrize("combination", list(itertools.product([False, True], repeat=5)), ids=str)
    def test_every_combination_of_access_settings_starts_or_is_refused_with_a_sentence(
        self, tmp_path: Path, combination: tuple[bool, ...]
    ) -> None:
        loopback, tls, identity, insecure, open_to_all = combination
        file = tmp_path / "file.pem"
        file.touch()
        chosen = settings_for(
            tmp_path,
            address="127.0.0.1:0" if loopback else "0.0.0.0:0",
            tls_certificate=file if tls else None,
            tls_key=file if tls else None,
            service_tokens=identity,
            insecure=insecure,
            open_to_all=open_to_all,
        )
        # The rules, implemented again: the callers are defined once, and other machines are served only explicitly.
        contradicts = identity and (insecure or open_to_all)
        secured_or_told = (tls and (identity or open_to_all or insecure)) or (insecure and not identity)
        if not contradicts and (loopback or secured_or_told):
            check_settings(chosen)
            assert ("ANYBODY" in who_may_call(chosen)) == (not loopback and not identity)
            return
        with pytest.raises(UnsafeSettings) as refused:
            check_settings(chosen)
        text = str(refused.value)
        assert text.endswith(".")
        # It names what to change.
        assert any(name in text for name in ("tls_certificate", "insecure", "open_to_all"))

    @pytest.mark.needs_grpcio("The native engine has no TLS.")
    async def test_accounts_are_managed_by_known_callers_alone_where_others_can_reach_the_service(
        self, tmp_path: Path, authority: Authority
    ) -> None:
        for told in ({"open_to_all": True}, {"insecure": True, "tls_certificate": None, "tls_key": None}):
            text = await self.refusal(tmp_path, **tls_settings(authority, manage_accounts=True, **told))
            assert "replace and remove users' credentials" in text
        check_settings(settings_for(tmp_path, **tls_settings(authority, manage_accounts=True, service_tokens=True)))
        loopback = settings_for(tmp_path, manage_accounts=True)
        check_settings(loopback)
        assert who_may_call(loopback).endswith("which may also connect and remove accounts")

    @pytest.mark.needs_grpcio("The native engine has no TLS.")
    async def test_settings_that_contradict_each_other_are_named(self, tmp_path: Path, authority: Authority) -> None:
        tls = tls_settings(authority)
        certificates = {"client_certificates": {"billing": "*"}}
        file = authority.file
        for name, changes in {
            "open_to_all": tls | {"open_to_all": True, "service_tokens": True},
            "tls_client_ca needs TLS": {"tls_client_ca": file, **certificates},
            "needs tls_client_ca": tls | certificates,
            "add client_certificates": tls | {"tls_client_ca": file},
            "not both": {"jwt_jwks_url": "https://issuer.example/keys", "jwt_jwks_file": file},
            "'billing' no valid scope": tls | {"tls_client_ca": file, "client_certificates": {"billing": "everybody"}},
            "'desk' no valid scope": tls | {"tls_client_ca": file, "client_certificates": {"desk": []}},
        }.items():
            assert name in await self.refusal(tmp_path, **changes)

    async def test_the_log_names_at_the_start_the_callers_that_are_served(self, tmp_path: Path) -> None:
        with capture_logs() as lines:
            async with serving(tmp_path, registry=registry_of(make_plugin())):
                pass
            async with authenticated_service(tmp_path):
                pass
        first, second = (line["serving"] for line in lines if line["event"] == "service.listening")
        assert first == "to every program on this machine"
        assert "service tokens or JWTs" in second
        assert SECRET not in json.dumps(lines, default=str)
