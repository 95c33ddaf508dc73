"""What callers send: requests, tokens and certificates."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import hmac
import json
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.duration_pb2 import Duration
from jwt.algorithms import ECAlgorithm

from exchange_service.accounts.fields import read_fields
from exchange_service.accounts.v1 import account_service_pb2 as accounts
from exchange_service.catalogue import Catalogue
from exchange_service.grpc_server.account_servicer import read_connect
from exchange_service.grpc_server.authentication import read_credentials
from exchange_service.grpc_server.requests import RequestReader, read_stream_balances
from exchange_service.http_server.codecs import from_json, to_json
from exchange_service.identity import ANYBODY, Caller, PresentedCredentials, Scope
from exchange_service.identity.certificates import ClientCertificates
from exchange_service.identity.key_sets import KeySet
from exchange_service.identity.tokens import ServiceTokens, StoredToken, new_token
from exchange_service.identity.web_tokens import JsonWebTokens
from exchange_service.model import CredentialField
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.fuzz.fakex import LISTING, registry
from tests.fuzz.targets import target

CALLER = Caller(ANYBODY, PresentedCredentials())
SECRET = "a secret of at least 32 characters"
T = TypeVar("T")

_registry = registry()
_catalogue = Catalogue(_registry)


def page_token() -> str:
    """The token of a second page."""
    query, _ = RequestReader(_registry).read_list_exchanges(messages.ListExchangesRequest().SerializeToString())
    return base64.urlsafe_b64encode(json.dumps([query.filters_digest(), "fakex", "fakex"]).encode()).decode()


@target(
    "request-list",
    [
        messages.ListExchangesRequest(asset_class="Crypto", source="EXCHANGE_SOURCE_CUSTOM").SerializeToString(),
        messages.ListExchangesRequest(search="fake", page_size=3, etag="etag").SerializeToString(),
        messages.ListExchangesRequest(page_token=page_token()).SerializeToString(),
    ],
)
def read_list(data: bytes) -> object:
    return _catalogue.answer(*RequestReader(_registry).read_list_exchanges(data))


_FORM = replace(
    LISTING,
    credential_fields=(
        CredentialField("api_key", "Key", private_keys=("rsa", "ed25519")),
        CredentialField("passphrase", "Passphrase", required=False),
        CredentialField("wallet_address", "Wallet", secret=False, required=False),
    ),
)


@target(
    "request-connect",
    [
        accounts.ConnectAccountRequest(
            user_id="alice",
            exchange_id="fakex",
            environment="live",
            fields={"api_key": "a-key-for-tests", "passphrase": " word ", "wallet_address": "0x" + "1" * 40},
        ).SerializeToString(),
        accounts.ConnectAccountRequest(
            user_id="alice", exchange_id="fakex", fields={"api_key": "-----BEGIN PRIVATE KEY-----", "x": "y"}
        ).SerializeToString(),
    ],
)
def read_connecting(data: bytes) -> object:
    query = read_connect(data)
    credential = read_fields(_FORM, query.fields)
    assert credential.metadata.keys() <= {"wallet_address"}
    return query


@target("page-token", [base64.urlsafe_b64decode(page_token())])
def read_page_token(data: bytes) -> object:
    """A page token that holds the input."""
    request = messages.ListExchangesRequest(page_token=base64.urlsafe_b64encode(data).decode()).SerializeToString()
    return _catalogue.answer(*RequestReader(_registry).read_list_exchanges(request))


@target(
    "request-balance",
    [
        messages.GetBalanceRequest(user_id="alice", exchange_id="fakex").SerializeToString(),
        messages.GetBalanceRequest(
            user_id="alice", exchange_id="FAKEX", environment="live", account_type="spot", max_age=Duration(nanos=5)
        ).SerializeToString(),
    ],
)
def read_balance(data: bytes) -> object:
    query, _ = RequestReader(_registry).read_get_balance(data, CALLER)
    assert query.max_age is None or query.max_age >= 0
    return query


@target(
    "request-stream",
    [
        messages.StreamBalancesRequest(
            user_id="alice",
            accounts=[messages.AccountSelector(exchange_id="fakex", environment="production", known_version=7)] * 2,
            known=[messages.AccountSelector(exchange_id="fakex", account_type="spot")],
            min_interval=Duration(seconds=1),
        ).SerializeToString(),
    ],
)
def read_stream(data: bytes) -> object:
    return read_stream_balances(data, CALLER)


@target(
    "request-json",
    [
        b'{"userId":"alice","accounts":[{"exchangeId":"fakex","knownVersion":"7"}],"minInterval":"1.5s"}',
        b'{"user_id":"alice","known":[{"exchangeId":"fakex","unconfirmed":true}],"accounts":[]}',
    ],
)
def read_json(data: bytes) -> object:
    """A stream's request as it comes over HTTP."""
    request = from_json(messages.StreamBalancesRequest, data)
    assert from_json(messages.StreamBalancesRequest, to_json(messages.StreamBalancesRequest, request)) == request
    return read_stream_balances(request, CALLER)


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise AssertionError("it waits for something")


TOKEN, STORED = new_token("for tests", Scope(everybody=True))


async def find(token_id: str) -> StoredToken | None:
    return STORED if token_id == STORED.id else None


async def close() -> None:
    """There is nothing to close."""


class Call:
    """What a call brings beside its request."""

    def __init__(self, header: str) -> None:
        self._metadata = [tuple(line.partition(": ")[::2]) for line in header.split("\n")]

    def invocation_metadata(self) -> list[Any]:
        return self._metadata

    def auth_context(self) -> dict[str, Any]:
        return {}


@target(
    "token-header", [f"authorization: Bearer {TOKEN}\nx-act-as: alice".encode(), f"authorization: {TOKEN}".encode()]
)
def read_header(data: bytes) -> object:
    presented = read_credentials(Call(data.decode("utf-8", "replace")))  # type: ignore[arg-type]
    return finished(ServiceTokens(find, close).authenticate(presented))


def signed(claims: bytes, header: bytes = b'{"alg":"HS256","typ":"JWT"}') -> str:
    """A JWT with these bytes as its claims, signed with our secret."""
    text = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, claims))
    mac = hmac.digest(SECRET.encode(), text, hashlib.sha256)
    return (text + b"." + base64.urlsafe_b64encode(mac).rstrip(b"=")).decode()


CLAIMS = json.dumps(
    {
        "sub": "alice",
        "exp": int(time.time()) + 3600,
        "aud": "authenticated",
        "nbf": 1,
        "iat": 1,
        "exchange_service_users": ["bob", "carol"],
    }
).encode()
_tokens = JsonWebTokens(secret=SECRET)


@target("jwt", [signed(CLAIMS).encode(), signed(CLAIMS, b'{"alg":"ES256","kid":"1"}').encode()])
def read_jwt(data: bytes) -> object:
    return finished(_tokens.authenticate(PresentedCredentials(token=data.decode("latin-1"))))


@target("jwt-claims", [CLAIMS, b'{"sub": "a", "exp": 99999999999, "aud": ["x", "authenticated"]}'])
def read_claims(data: bytes) -> object:
    verified = finished(_tokens.authenticate(PresentedCredentials(token=signed(data))))
    if verified is not None and verified.identity.expires is not None:
        verified.identity.may_read("alice")
    return verified


@target("jwt-header", [b'{"alg":"HS256","typ":"JWT"}', b'{"alg":"HS256","kid":"1","crit":["b64"],"b64":false}'])
def read_jwt_header(data: bytes) -> object:
    return finished(_tokens.authenticate(PresentedCredentials(token=signed(CLAIMS, data))))


PRIVATE = ec.derive_private_key(7, ec.SECP256R1())
_PUBLIC = {"kid": "1", "alg": "ES256", "use": "sig"} | json.loads(ECAlgorithm.to_jwk(PRIVATE.public_key()))
_RSA = {"kty": "RSA", "kid": "2", "alg": "RS256", "n": "AQAB" * 86, "e": "AQAB"}
_OTHER = {"kty": "OKP", "crv": "Ed25519", "kid": "3", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}


@target("jwt-keys", [json.dumps({"keys": [key]}).encode() for key in (_PUBLIC, _RSA, _OTHER)])
def read_keys(data: bytes) -> object:
    async def read() -> bytes:
        return data

    async def look() -> object:
        return await KeySet(read).key("1", "ES256")

    return asyncio.run(look())


def certificate() -> bytes:
    """A certificate in PEM."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "dashboard")])
    day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, PRIVATE.public_key(), 1, day, day.replace(year=2036))
    return builder.sign(PRIVATE, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


_certificates = ClientCertificates({"dashboard": Scope(everybody=True)})


def _in_lines(der: bytes) -> bytes:
    body = base64.encodebytes(der)
    return b"-----BEGIN CERTIFICATE-----\n" + body + b"-----END CERTIFICATE-----\n"


DER = x509.load_pem_x509_certificate(certificate()).public_bytes(serialization.Encoding.DER)
# Its version is one that X.509 does not have.
OTHER_VERSION = DER.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020103"), 1)


@target("certificate", [certificate(), DER, OTHER_VERSION])
def read_certificate(data: bytes) -> object:
    """A certificate in PEM, or one whose DER is the input."""
    pem = data if data.startswith(b"-----") else _in_lines(data)
    presented = PresentedCredentials(certificate=pem, certificate_names=("dashboard",))
    return finished(_certificates.authenticate(presented))
