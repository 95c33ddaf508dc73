"""Kraken Futures's signatures, by the venue's own test vector, and the nonces."""

from __future__ import annotations

import base64
import time

import pytest
from exchange_service_krakenfutures.signing import Nonces, decode_secret, sign, signature

from exchange_service.plugin_api import CredentialInvalid

SECRET = "7zxMEF5p/Z8l2p2U7Ghv6x14Af+Fx+92tPgUdVQ748FOIrEoT9bgT+bTRfXc5pz8na+hL/QdrCVG7bh9KpT0eMTm"
# Test vectors that are signed with SECRET: (what is signed, what comes of it).
# witness: vendor: https://docs.kraken.com/api/docs/guides/futures-websockets
CHALLENGES = [
    (
        "c100b894-1729-464d-ace1-52dbce11db42",
        "4JEpF3ix66GA2B+ooK128Ift4XQVtc137N9yeg4Kqsn9PI0Kpzbysl9M1IeCEdjg0zl00wkVqcsnG4bmnlMb3A==",
    ),
]
OWNERS_SECRET = b"python-kraken-sdk unit-test secret value"
# Requests of the form (nonce, path, parameters, what comes of it), signed with the bytes of OWNERS_SECRET. The venue's
# own page has a request and no signature of it.
# witness: test data: btschwertfeger/python-kraken-sdk tests/futures/test_futures_base_api_unit.py
REQUESTS = [
    (
        "1616492376594",
        "/derivatives/api/v3/sendorder",
        "orderType=lmt&symbol=PI_XBTUSD",
        "Txi+gJVXe3EN1brXYQ46FuV6UVtEVSKhc6dYMhPb7a/HXZLGvO6m9UUg+KVKqhLxrbllOPI7qRkHYmPfJZZSGA==",
    ),
]


@pytest.mark.parametrize(("challenge", "signed"), CHALLENGES)
def test_a_challenge_is_signed_as_the_venue_does_it(challenge: str, signed: str) -> None:
    assert sign(decode_secret(SECRET), challenge) == signed


@pytest.mark.parametrize(("nonce", "path", "data", "signed"), REQUESTS)
def test_a_request_is_signed_without_the_first_part_of_its_path(nonce: str, path: str, data: str, signed: str) -> None:
    secret = decode_secret(base64.b64encode(OWNERS_SECRET).decode())
    assert signature(secret, nonce, path, data) == signed


def test_another_path_is_signed_whole() -> None:
    path = "/api/auth/v1/api-keys/v3/check"
    assert signature(b"secret", "1", path) == sign(b"secret", "1" + path)


@pytest.mark.parametrize("text", ["not base64!", "YWJj*", "YWJjZ"])
def test_a_secret_that_is_not_base64_is_the_users_to_correct(text: str) -> None:
    with pytest.raises(CredentialInvalid) as caught:
        decode_secret(text)
    assert text not in str(caught.value)


def test_each_nonce_is_greater_than_the_one_before_and_follows_the_clock() -> None:
    nonces, before = Nonces(), time.time_ns() // 1_000_000
    seen = [int(nonces.next()) for _ in range(100)]
    assert seen == sorted(set(seen))
    assert before <= seen[0] <= before + 10_000
