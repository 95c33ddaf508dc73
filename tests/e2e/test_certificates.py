"""TLS over time: a renewed certificate is served, one that ends is warned of, and health checks work with TLS on."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import os
import re
import ssl
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from exchange_service.app import start_service
from exchange_service.client import ExchangeServiceClient, ServiceUnreachable
from exchange_service.grpc_server import certificates
from exchange_service.grpc_server.server import BindError
from tests.commands import run_command
from tests.harness import ScriptedPlugin, eventually, registry_of, serving, settings_for, until

pytestmark = pytest.mark.needs_grpcio("The native engine has no TLS.")

ROOT = Path(__file__).parent.parent.parent


def write(folder: Path, name: str, days: float = 90.0) -> tuple[Path, Path]:
    """A self-signed certificate of this name for 127.0.0.1, which ends in `days`, and its key, as PEM files."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=100))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(private)
    return files


async def served(address: str) -> str:
    """The name in the certificate that a new connection is shown."""
    port = int(address.rpartition(":")[2])
    text = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=5)
    return x509.load_pem_x509_certificate(text.encode()).subject.rfc4514_string().removeprefix("CN=")


def tls(files: tuple[Path, Path], **more: Any) -> dict[str, Any]:
    return {"address": "0.0.0.0:0", "tls_certificate": files[0], "tls_key": files[1], "open_to_all": True, **more}


async def test_a_renewed_certificate_is_served_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert certificates.LOOK_EVERY <= 60
    monkeypatch.setattr(certificates, "LOOK_EVERY", 0.1)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **tls(write(tmp_path, "old"))) as running:
        address = running.service.address
        assert await served(address) == "old"
        write(tmp_path, "new")

        async def renewed() -> bool:
            return await served(address) == "new"

        await eventually(renewed)
        # Half a renewal: the last pair that fitted goes on.
        with structlog.testing.capture_logs() as lines:
            (tmp_path / "key.pem").write_bytes(b"not a key")

            async def noticed() -> bool:
                assert await served(address) == "new"
                return any(line["event"] == "certificate.unusable" for line in lines)

            await eventually(noticed)
        write(tmp_path, "newest")

        async def whole() -> bool:
            return await served(address) == "newest"

        await eventually(whole)


@pytest.mark.parametrize(("days", "told"), [(5, "in 5 days"), (-1, "ended on"), (90, "")])
async def test_a_certificate_that_ends_soon_is_in_the_log_and_in_doctor(tmp_path: Path, days: int, told: str) -> None:
    files = write(tmp_path, "exchange-service", days + 0.1)
    with structlog.testing.capture_logs() as lines:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **tls(files)):
            if told:
                await until(lambda: any(line["event"] == "certificate.ends_soon" for line in lines))
    problems = [line["problem"] for line in lines if line["event"] == "certificate.ends_soon"]
    assert all(told in problem for problem in problems)
    assert bool(problems) == bool(told)
    done = await asyncio.to_thread(command, tmp_path, files, "doctor", "-o", "json")
    (finding,) = [entry for entry in json.loads(done.stdout) if entry["subject"] == "TLS"]
    assert finding["severity"] == {5: "warning", -1: "error", 90: "ok"}[days]
    assert told in finding["text"]


@pytest.mark.parametrize("client_certificates", [False, True], ids=["TLS", "with client certificates"])
async def test_the_images_health_check_works_with_tls_on(tmp_path: Path, client_certificates: bool) -> None:
    files = write(tmp_path, "exchange-service")
    more: dict[str, Any] = {"tls_client_ca": files[0]} if client_certificates else {}
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    match = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", text, re.MULTILINE)
    assert match
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **tls(files, **more)) as running:
        port = running.service.address.rpartition(":")[2]
        check = [part.replace("50051", port) for part in json.loads(match[1])]
        assert check[0] == "exchange-service"
        done = await asyncio.to_thread(command, tmp_path, files, *check[1:])
        assert (done.returncode, done.stdout.strip()) == (0, "SERVING"), done.stderr
        await running.service.server.set_serving(False)
        done = await asyncio.to_thread(command, tmp_path, files, *check[1:])
        assert (done.returncode, done.stdout.strip()) == (5, "NOT_SERVING")
    done = await asyncio.to_thread(command, tmp_path, files, *check[1:])
    assert done.returncode == 5
    assert "did not answer" in done.stderr


def command(home: Path, files: tuple[Path, Path], *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """A command with the settings of a service with TLS, as the container's variables give them."""
    variables = {
        **{f"EXCHANGE_SERVICE_{name}": value for name, value in more.items()},
        "EXCHANGE_SERVICE_TLS_CERTIFICATE": str(files[0]),
        "EXCHANGE_SERVICE_TLS_KEY": str(files[1]),
        "EXCHANGE_SERVICE_DATABASE_URL": f"sqlite:///{home / 'service.db'}",
    }
    return run_command(arguments, {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **variables})


async def test_client_authorities_are_read_again_and_half_a_file_keeps_the_ones_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "LOOK_EVERY", 0.05)
    server = write(tmp_path, "server")
    old, new = (write(folder, folder.name) for folder in (tmp_path / "old", tmp_path / "new") if not folder.mkdir())
    authority = tmp_path / "authority.pem"
    authority.write_bytes(old[0].read_bytes())
    settings = tls(server, tls_client_ca=authority)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **settings) as running:
        address = f"127.0.0.1:{running.service.address.rpartition(':')[2]}"

        async def accepts(identity: tuple[Path, Path]) -> bool:
            ours = grpc.ssl_channel_credentials(
                server[0].read_bytes(), identity[1].read_bytes(), identity[0].read_bytes()
            )
            async with ExchangeServiceClient(address, credentials=ours, timeout=3) as client:
                try:
                    await client.list_exchanges(page_size=1)
                except ServiceUnreachable:
                    return False
                return True

        assert (await accepts(old), await accepts(new)) == (True, False)
        whole = new[0].read_bytes()
        for half in (whole[: len(whole) // 2], old[0].read_bytes() + whole[: len(whole) // 2], b""):
            authority.write_bytes(half)
            await asyncio.sleep(0.1)
            assert (await accepts(old), await accepts(new)) == (True, False)
        authority.write_bytes(whole)

        async def moved() -> bool:
            return (await accepts(old), await accepts(new)) == (False, True)

        await eventually(moved)


async def test_the_days_that_are_left_are_a_metric(tmp_path: Path) -> None:
    files = write(tmp_path, "exchange-service", 30.5)
    settings = tls(files, tls_client_ca=files[0])
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **settings) as running:
        metrics = running.service.metrics
        name = "exchange_service_certificate_days_left"
        await until(lambda: f'{name}{{file="tls_certificate"}} 30.' in metrics.text().decode())
        assert f'{name}{{file="tls_client_ca"}} 30.' in metrics.text().decode()


def bound(tmp_path: Path, what: str) -> certificates.CertificateFiles:
    """The files of a server and of its clients' authority, of which one is wrong in this way."""
    pair, authority = write(tmp_path, "server"), tmp_path / "authority.pem"
    authority.write_bytes(pair[0].read_bytes())
    match what:
        case "another key":
            (tmp_path / "other").mkdir()
            pair[1].write_bytes(write(tmp_path / "other", "other")[1].read_bytes())
        case "no key":
            pair[1].unlink()
        case "half a certificate":
            pair[0].write_bytes(pair[0].read_bytes()[:200])
        case "no authority":
            authority.unlink()
        case "a damaged authority":
            authority.write_bytes(pair[0].read_bytes().replace(b"MII", b"AAA", 1))
        case "an authority's name":
            # As in lists of authorities: a name that is not in ASCII before each.
            authority.write_bytes("# F\u0151tan\u00fas\u00edtv\u00e1ny\n".encode() + pair[0].read_bytes())
    return certificates.CertificateFiles(*pair, authority)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("another key", "tls_key: it is not a PEM file with the key of the certificate in tls_certificate"),
        ("no key", "tls_key: the file cannot be read: No such file or directory."),
        ("half a certificate", "tls_certificate: the file has no certificate in PEM, or one is cut off."),
        ("no authority", "tls_client_ca: the file cannot be read: No such file or directory."),
        ("a damaged authority", "tls_client_ca: a certificate in the file is damaged."),
        ("an authority's name", ""),
    ],
)
async def test_the_file_that_is_wrong_is_named_at_the_start_in_the_log_and_in_doctor(
    tmp_path: Path, what: str, told: str
) -> None:
    files = bound(tmp_path, what)
    settings = tls((files.certificate, files.key), tls_client_ca=files.client_ca)
    if not told:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **settings):
            assert certificates.ends(files)
        return
    # The settings themselves refuse a file that is missing at the start.
    if all(file.exists() for file in (files.certificate, files.key, files.client_ca) if file):
        with pytest.raises(BindError, match=re.escape(told)):
            await start_service(settings_for(tmp_path, **settings), registry=registry_of(ScriptedPlugin()))
        pair = files.certificate, files.key
        done = await asyncio.to_thread(
            command, tmp_path, pair, "doctor", "-o", "json", TLS_CLIENT_CA=str(files.client_ca)
        )
        (finding,) = [entry for entry in json.loads(done.stdout) if entry["subject"] == "TLS"]
        assert (finding["severity"], told in finding["text"]) == ("error", True)
    # And of files that become so while the service runs.
    (tmp_path / "well").mkdir()
    well = bound(tmp_path / "well", "")
    renewed = certificates.RenewedCertificates(well, clock=iter(range(0, 1000, 10)).__next__)
    for file in ("certificate", "key", "client_ca"):
        wrong = getattr(files, file)
        if wrong.exists():
            getattr(well, file).write_bytes(wrong.read_bytes())
        else:
            getattr(well, file).unlink()
    with structlog.testing.capture_logs() as lines:
        assert renewed.changed() is None
        assert renewed.changed() is None
    assert [told in line["problem"] for line in lines] == [True]


async def test_of_two_authorities_the_one_that_has_not_ended_lets_its_clients_in(tmp_path: Path) -> None:
    server = write(tmp_path, "server")
    old, new = (
        write(folder, folder.name, days)
        for folder, days in ((tmp_path / "old", -1.0), (tmp_path / "new", 90.0))
        if not folder.mkdir()
    )
    authority = tmp_path / "authority.pem"
    authority.write_bytes(old[0].read_bytes() + new[0].read_bytes())
    settings = tls(server, tls_client_ca=authority)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **settings) as running:
        address = f"127.0.0.1:{running.service.address.rpartition(':')[2]}"
        for identity, accepted in ((old, False), (new, True)):
            ours = grpc.ssl_channel_credentials(
                server[0].read_bytes(), identity[1].read_bytes(), identity[0].read_bytes()
            )
            async with ExchangeServiceClient(address, credentials=ours, timeout=3) as client:
                if accepted:
                    assert (await client.list_exchanges(page_size=1)).stats.total
                else:
                    with pytest.raises(ServiceUnreachable):
                        await client.list_exchanges(page_size=1)
    # Nobody refuses the service for it: what to do is another thing than with its own certificate.
    text = certificates.ending(certificates.CertificateFiles(*server, authority))
    assert re.match(r"a certificate in tls_client_ca ended on .*; clients that it vouches for are then refused", text)
