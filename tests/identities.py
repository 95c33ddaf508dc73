"""What callers present in tests: JWTs with their issuer, service tokens, and certificates."""

from __future__ import annotations

import datetime
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import jwt
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from exchange_service.client import ExchangeServiceClient
from exchange_service.identity import Scope
from exchange_service.identity.token_store import TokenStore
from exchange_service.identity.tokens import StoredToken, new_token
from tests.harness import Running

SECRET = "a-shared-secret-for-the-tests-of-32-bytes-or-more"
AUDIENCE = "authenticated"


def web_token(subject: Any = "alice", *, secret: str = SECRET, lifetime: float = 600, **claims: Any) -> str:
    """A JWT as Supabase signs it with the shared secret; a claim that is None is left out."""
    plain: dict[str, Any] = {"sub": subject, "aud": AUDIENCE, "exp": int(time.time() + lifetime), "role": AUDIENCE}
    payload = {name: value for name, value in (plain | claims).items() if value is not None}
    return jwt.encode(payload, secret, algorithm="HS256")


@dataclass
class Issuer:
    """An issuer that signs JWTs with its keys, and publishes those that are valid now."""

    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)
    published: list[str] = field(default_factory=list)
    url: str = ""
    down: bool = False
    redirect: str = ""
    requests: int = 0

    def add_key(self, key_id: str) -> None:
        self.keys[key_id] = ec.generate_private_key(ec.SECP256R1())
        self.published.append(key_id)

    def sign(self, key_id: str, subject: str = "alice", *, named: bool = True, **claims: Any) -> str:
        """A token that this key signs; `named`: with the key's id in its header."""
        payload = {"sub": subject, "aud": AUDIENCE, "exp": int(time.time() + 600), **claims}
        return jwt.encode(payload, self.keys[key_id], algorithm="ES256", headers={"kid": key_id} if named else {})

    def document(self) -> dict[str, Any]:
        entries = []
        for key_id in self.published:
            public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.keys[key_id].public_key()))
            entries.append({**public, "kid": key_id, "alg": "ES256", "use": "sig"})
        return {"keys": entries}

    async def answer(self, _: web.Request) -> web.Response:
        self.requests += 1
        if self.redirect:
            raise web.HTTPFound(self.redirect)
        return web.json_response(self.document(), status=503 if self.down else 200)


@asynccontextmanager
async def issuing(*key_ids: str) -> AsyncIterator[Issuer]:
    """An issuer on loopback with these keys."""
    issuer = Issuer()
    for key_id in key_ids:
        issuer.add_key(key_id)
    application = web.Application()
    application.router.add_get("/keys", issuer.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    issuer.url = f"http://{host}:{port}/keys"
    try:
        yield issuer
    finally:
        await runner.cleanup()


@asynccontextmanager
async def token_store(url: str) -> AsyncIterator[TokenStore]:
    store = TokenStore(url)
    try:
        yield store
    finally:
        await store.close()


async def service_token(running: Running, scope: Scope, *, lifetime: float | None = None) -> tuple[str, StoredToken]:
    """A token of the running service, stored as `tokens create` does it."""
    text, stored = new_token("for the tests", scope, lifetime=lifetime)
    async with token_store(running.service.settings.database_url) as store:
        await store.add(stored)
    return text, stored


def bearer(token: str, act_as: str | None = None) -> list[tuple[str, str]]:
    """The metadata of a call."""
    metadata = [("authorization", f"Bearer {token}")]
    return metadata if act_as is None else [*metadata, ("x-act-as", act_as)]


@dataclass(slots=True)
class Authority:
    """A certificate authority; its files are in `folder`."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, folder: Path, name: str = "authority") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _make_certificate(_name(name), key, _name(name), key, authority=True)
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.pem").write_bytes(_pem(certificate))
        return cls(folder, key, certificate)

    @property
    def file(self) -> Path:
        (name,) = self.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        return self.folder / f"{name.value!s}.pem"

    def sign(self, name: str, *dns: str, lifetime: float = 86_400) -> tuple[Path, Path]:
        """A certificate for 127.0.0.1 and these DNS names, and its key, as files."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _make_certificate(
            _name(name), key, self.certificate.subject, self.key, dns=dns, lifetime=lifetime
        )
        files = self.folder / f"{name}.certificate.pem", self.folder / f"{name}.key.pem"
        files[0].write_bytes(_pem(certificate))
        files[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return files

    def channel_credentials(self, files: Sequence[Path] = ()) -> grpc.ChannelCredentials:
        """A client's TLS that trusts this authority, with a certificate of its own where `files` name one."""
        certificate, key = (file.read_bytes() for file in files) if files else (None, None)
        return grpc.ssl_channel_credentials(self.file.read_bytes(), key, certificate)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _make_certificate(
    name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    dns: Iterable[str] = (),
    authority: bool = False,
    lifetime: float = 86_400,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    names: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *map(x509.DNSName, dns)]
    return (
        x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(seconds=lifetime))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def client_of(running: Running, **options: Any) -> ExchangeServiceClient:
    """Another client of the service, by 127.0.0.1 whatever it listens on."""
    port = running.service.address.rpartition(":")[2]
    return ExchangeServiceClient(f"127.0.0.1:{port}", **options)
