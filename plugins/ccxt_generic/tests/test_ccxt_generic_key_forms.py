"""Keys in lines as people have them, at every exchange that signs with one: each is read, or refused by what it is."""

from __future__ import annotations

import base64
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import ccxt.async_support as ccxt
import exchange_service_ccxt_generic as plugin
import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID
from exchange_service_ccxt_generic.key_forms import KEYS_IN_LINES

from exchange_service.plugin_api import CredentialInvalid, ExchangeMetadata, Secret, State, VenueCall, VenueError
from exchange_service.plugin_kit.credential_fields import stored_form
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing import RecordedRequest
from plugins.ccxt_generic.tests.every_exchange.venue import opened, read
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS

LISTINGS: Mapping[str, ExchangeMetadata] = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
SERVED = [listing.id for listing in LISTINGS.values() if listing.capabilities.balance]
Record = Callable[[str, object], None]


@cache
def key(kind: str) -> Any:
    """A made-up private key of this kind."""
    if kind == "rsa":
        return rsa.generate_private_key(65537, 2048)
    if kind == "ed25519":
        return Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256K1() if kind == "secp256k1" else ec.SECP256R1())


def pem(kind: str, form: PrivateFormat = PrivateFormat.PKCS8, password: bytes = b"") -> str:
    how = BestAvailableEncryption(password) if password else NoEncryption()
    text: bytes = key(kind).private_bytes(Encoding.PEM, form, how)
    return text.decode()


def public(kind: str, form: PublicFormat = PublicFormat.SubjectPublicKeyInfo) -> str:
    encoding = Encoding.OpenSSH if form is PublicFormat.OpenSSH else Encoding.PEM
    text: bytes = key(kind).public_key().public_bytes(encoding, form)
    return text.decode()


@cache
def certificate() -> str:
    from datetime import UTC, datetime, timedelta

    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "acme")]), datetime.now(UTC)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key("rsa").public_key())
    built = built.serial_number(7).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    return built.sign(key("rsa"), hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@cache
def certificate_request() -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "acme")])
    built = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key("rsa"), hashes.SHA256())
    return built.public_bytes(Encoding.PEM).decode()


def body(text: str) -> str:
    """The lines of a key without the first and the last."""
    return "\n".join(text.strip().splitlines()[1:-1])


# How such a key begins: its magic word, the cipher's name and the function that makes a key of a password.
OPENSSH_ENCRYPTED = """-----BEGIN OPENSSH PRIVATE KEY-----
{}
-----END OPENSSH PRIVATE KEY-----
""".format(base64.b64encode(b"openssh-key-v1\0\0\0\0\naes256-ctr\0\0\0\x06bcrypt" + bytes(60)).decode())


def good_forms(kind: str) -> Iterator[tuple[str, str]]:
    """A private key in every form that has one meaning only."""
    whole = pem(kind)
    lines = whole.strip().splitlines()
    yield "as it is", whole
    yield "without the last line end", whole.strip()
    yield "CRLF", whole.replace("\n", "\r\n")
    yield "\\n as two characters", whole.replace("\n", "\\n")
    yield "\\r\\n as four characters", whole.replace("\n", "\\r\\n")
    yield "quoted", f'"{whole.strip()}"'
    yield "quoted and escaped", "'" + whole.replace("\n", "\\n") + "'"
    yield "in typographic quotes", f"\u201c{whole.strip()}\u201d"
    yield "blanks and empty lines around", f"  \t\r\n\n{whole}\n\n  "
    yield "indented", "\n".join(f"    {line}" for line in lines)
    yield "blanks behind each line", "  \n".join(lines)
    yield "empty lines between", "\n\n".join(lines)
    yield "blanks in place of line ends", whole.replace("\n", " ")
    yield "in one line", "".join(lines)
    yield "with a mark of byte order", "\ufeff" + whole
    yield "with dashes in place of hyphens", whole.replace("--", "\u2014")
    yield "the header is missing", body(whole)
    yield "the header is missing, in one line", body(whole).replace("\n", "")
    yield "the header is missing, escaped", body(whole).replace("\n", "\\n")
    yield "only the first line is missing", "\n".join(lines[1:])
    yield "only the last line is missing", "\n".join(lines[:-1])
    yield "the public key beside it", public(kind) + whole
    yield "a certificate behind it", whole + certificate()
    yield "the label of another form", whole.replace("PRIVATE KEY", "RSA PRIVATE KEY")
    yield "in OpenSSH's own format", pem(kind, PrivateFormat.OpenSSH)
    if kind != "ed25519":
        older = pem(kind, PrivateFormat.TraditionalOpenSSL)
        yield "the older form", older
        yield "the older form without its header", body(older)
        yield "the older form, escaped", older.replace("\n", "\\n")
    if kind == "p256":
        parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        yield "behind its parameters", parameters + pem(kind, PrivateFormat.TraditionalOpenSSL)


def bad_forms(kinds: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    """What people have beside a key: its name, a word of the message that tells it, and the text."""
    for kind in kinds:
        whole = pem(kind)
        lines = whole.strip().splitlines()
        damaged = [lines[0], lines[1][:9] + "*" + lines[1][10:], *lines[2:]]
        yield "encrypted", "encrypted", pem(kind, password=b"password")
        yield "encrypted, escaped", "encrypted", pem(kind, password=b"password").replace("\n", "\\n")
        yield "encrypted, without its header", "encrypted", body(pem(kind, password=b"password"))
        yield "encrypted, in OpenSSH's own format", "encrypted", OPENSSH_ENCRYPTED
        if kind != "ed25519":
            older = pem(kind, PrivateFormat.TraditionalOpenSSL, b"password")
            yield "encrypted in the older form", "encrypted", older
            yield "encrypted in the older form, CRLF", "encrypted", older.replace("\n", "\r\n")
        yield "a public key", "public key", public(kind)
        yield "a public key, escaped", "public key", public(kind).replace("\n", "\\n")
        yield "a public key without its header", "public key", body(public(kind))
        yield "a public key of OpenSSH", "public key", public(kind, PublicFormat.OpenSSH)
        yield "cut off", "private key", whole[: len(whole) // 2]
        yield "cut off, but its last line", "cut off", "\n".join([lines[0], lines[1][:40], lines[-1]])
        yield "cut off, without its header", "cut off", body(whole)[: len(body(whole)) * 2 // 3]
        yield "the first line", "line of a private key", lines[0]
        yield "the last line", "line of a private key", lines[-1]
        yield "damaged", "damaged", "\n".join(damaged)
        beside = "secp256k1" if kind == "p256" else "p256"
        yield "two keys", "private keys", whole + pem(beside)
        yield "a JSON object", "JSON object", json.dumps({"name": "organizations/x", "privateKey": whole})
        yield "a JSON object in lines", "JSON object", json.dumps({"privateKey": whole}, indent=2)
    yield "a certificate", "certificate", certificate()
    yield "a certificate without its header", "certificate", body(certificate())
    yield "a request for a certificate", "request for a certificate", certificate_request()
    yield "a file's name", "name of a file", "/home/alice/key.pem"
    yield "PuTTY's format", "PuTTY", "PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none"
    yield "a PGP key", "PGP", "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQdGBF\n-----END PGP PRIVATE KEY BLOCK-----"
    for other in {"rsa", "ed25519", "p256", "secp256k1"} - set(kinds):
        yield f"a key of another kind, {other}", "key", pem(other)
        yield f"a key of another kind without its header, {other}", "key", body(pem(other))
    yield "two lines of text", "lines", "abcdef\nghijkl"


def is_signed(exchange_id: str, request: RecordedRequest, kind: str) -> bool:
    """Whether the key has signed the request as the exchange wants it. An invalid signature raises an error."""
    public_key, headers, query = key(kind).public_key(), request.headers, dict(request.query)
    if exchange_id == "coinbase":
        token = headers["Authorization"].removeprefix("Bearer ")
        algorithm = "EdDSA" if kind == "ed25519" else "ES256"
        claims = jwt.decode(token, public_key, [algorithm], options={"verify_aud": False})
        return bool(claims["sub"])
    if exchange_id == "lbank":
        given = dict(pair.split("=", 1) for pair in request.body.decode().split("&"))
        from urllib.parse import unquote

        signature = unquote(given.pop("sign"))
        given |= {name: headers[name] for name in ("echostr", "signature_method", "timestamp")}
        text = "&".join(f"{name}={given[name]}" for name in sorted(given))
        message = hashlib.md5(text.encode()).hexdigest().upper()
    elif exchange_id == "revolutx":
        signature = headers["X-Revx-Signature"]
        message = headers["X-Revx-Timestamp"] + request.method + request.path + urlencode(query)
    elif exchange_id.startswith("bybit"):
        signature = headers["X-BAPI-SIGN"]
        known = (headers["X-BAPI-TIMESTAMP"], headers["X-BAPI-API-KEY"], headers["X-BAPI-RECV-WINDOW"])
        message = "".join(known) + urlencode(query)
    else:
        signature = query.pop("signature")
        message = urlencode(query)
    if kind == "rsa":
        public_key.verify(base64.b64decode(signature), message.encode(), padding.PKCS1v15(), hashes.SHA256())
    else:
        public_key.verify(base64.b64decode(signature), message.encode())
    return True


def with_secret(call: VenueCall, secret: str) -> VenueCall:
    """The call of another account with this secret."""
    return replace(call, credential=replace(call.credential, api_secret=Secret(secret)), account_state=State())


def pieces(secret: str) -> set[str]:
    """Parts of a secret of ten characters that are no word."""
    texts = [text for text in secret.replace("\\n", "\n").split() if len(text) >= 10 and "-" not in text]
    return {text[start : start + 10] for text in texts for start in range(0, len(text) - 9, 5)}


def test_the_exchanges_that_take_keys_in_lines_are_those_whose_class_reads_one() -> None:
    def source(exchange_id: str) -> str:
        """The files of the exchange's class and of those that it inherits from; each class has one of its own."""
        own = (one for one in getattr(ccxt, exchange_id).__mro__ if one.__module__.startswith("ccxt.async_support."))
        return "".join(Path(inspect.getfile(one)).read_text() for one in own if one.__name__ != "Exchange")

    readers = ("self.rsa(", "self.eddsa(self.encode(message), self.privateKey", "startswith('-----BEGIN')")
    assert {name for name in SERVED if any(word in source(name) for word in readers)} == set(KEYS_IN_LINES)
    for exchange_id, kinds in KEYS_IN_LINES.items():
        assert ("rsa" in kinds) == ("self.rsa(" in source(exchange_id)), exchange_id
        assert ("ed25519" in kinds) == ("eddsa" in source(exchange_id).lower()), exchange_id
        assert ("p256" in kinds) == ("'ES256'" in source(exchange_id)), exchange_id


@pytest.mark.parametrize("exchange_id", KEYS_IN_LINES)
async def test_a_private_key_signs_in_every_form_that_people_have(exchange_id: str, record_property: Record) -> None:
    account, wrong, tried = ACCOUNTS[exchange_id], [], 0
    async with opened(LISTINGS[exchange_id], account.assets) as (venue, call):
        venue.tell(account, account.answer)
        for kind in KEYS_IN_LINES[exchange_id]:
            for form, text in good_forms(kind):
                tried += 1
                try:
                    await read(with_secret(call, text))
                    if not is_signed(exchange_id, venue.requests[-1], kind):
                        wrong.append((kind, form, "not signed"))
                except VenueError as error:
                    wrong.append((kind, form, error.text))
    record_property(SWEEP, ["keys in lines that are read", [exchange_id], tried, 0, len(wrong)])
    assert wrong == []


@pytest.mark.parametrize("exchange_id", KEYS_IN_LINES)
async def test_what_is_no_usable_key_is_told_by_what_it_is_and_sends_nothing(
    exchange_id: str, record_property: Record
) -> None:
    account, listing, wrong, tried = ACCOUNTS[exchange_id], LISTINGS[exchange_id], [], 0
    async with opened(listing, account.assets) as (venue, call):
        for form, word, text in bad_forms(KEYS_IN_LINES[exchange_id]):
            tried += 1
            changed = with_secret(call, text)
            told = []
            for what in (read(changed), None):
                try:
                    await what if what is not None else stored_form(listing, changed.credential)
                    told.append("")
                except CredentialInvalid as invalid:
                    told.append(invalid.text)
            # The message is the same when it is stored and when it is read.
            sentence = told[0]
            if word not in sentence or "api_secret" not in sentence or told[1] != sentence:
                wrong.append((form, told))
            elif any(piece in sentence for piece in pieces(text)):
                wrong.append((form, "a piece of the key"))
        assert venue.requests == []
    record_property(SWEEP, ["what is no usable key", [exchange_id], tried, 0, len(wrong)])
    assert wrong == []


@pytest.mark.parametrize("form", ["in lines", "escaped"])
async def test_a_private_key_in_another_field_is_never_sent(form: str, record_property: Record) -> None:
    secret = pem("p256") if form == "in lines" else pem("p256").replace("\n", "\\n")
    wrong, tried = [], 0
    for exchange_id in SERVED:
        account, listing = ACCOUNTS[exchange_id], LISTINGS[exchange_id]
        async with opened(listing, account.assets) as (venue, call):
            for field in listing.credential_fields:
                tried += 1
                if field.name in ("api_key", "api_secret", "passphrase"):
                    changed = replace(call.credential, **{field.name: Secret(secret)})
                else:
                    changed = replace(call.credential, metadata={**call.credential.metadata, field.name: secret})
                if exchange_id == "coinbase" and field.name == "api_secret":
                    continue
                for ask in ("store", "read"):
                    try:
                        if ask == "store" and field.name != "passphrase":
                            stored_form(listing, changed)
                        else:
                            await read(replace(call, credential=changed, account_state=State()))
                        wrong.append((exchange_id, field.name, ask))
                    except CredentialInvalid as invalid:
                        if field.name not in invalid.text or any(piece in invalid.text for piece in pieces(secret)):
                            wrong.append((exchange_id, field.name, invalid.text))
            assert venue.requests == []
    record_property(SWEEP, ["private keys in another field", SERVED, tried, 0, len(wrong)])
    assert wrong == []


@pytest.mark.parametrize("around", ['"{}"', "'{}'", "  {}\t", "{}\\n", "\ufeff{}\u200b", "{}\r\n"])
async def test_what_stands_around_a_plain_secret_is_not_part_of_it(around: str) -> None:
    account = ACCOUNTS["binance"]
    async with opened(LISTINGS["binance"], account.assets) as (venue, call):
        venue.tell(account, account.answer)
        api_key, plain = call.credential.api_key.reveal(), call.credential.api_secret.reveal()
        credential = replace(
            call.credential, api_key=Secret(around.format(api_key)), api_secret=Secret(around.format(plain))
        )
        await read(replace(call, credential=credential, account_state=State()))
        request = venue.requests[-1]
    query = dict(request.query)
    signature = query.pop("signature")
    assert request.headers["X-MBX-APIKEY"] == api_key
    import hmac

    assert signature == hmac.new(plain.encode(), urlencode(query).encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    ("exchange_id", "secret"), [("revolutx", "abcdef"), ("lbank", "a" * 40), ("coinbase", "QUJDREVGRw==")]
)
async def test_a_secret_that_ccxt_would_take_for_a_broken_key_is_refused(exchange_id: str, secret: str) -> None:
    async with opened(LISTINGS[exchange_id], {}) as (venue, call):
        with pytest.raises(CredentialInvalid, match="api_secret is not an"):
            await read(with_secret(call, secret))
    assert venue.requests == []
