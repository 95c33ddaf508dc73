"""Aster's two signatures, against values that were reckoned elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest
from exchange_service_aster import signing

pytest.importorskip("coincurve", reason="agents cannot sign here")

KEY = bytes.fromhex("4fd0a42218f3eae43a6ce26d22544e986139a01e5b34a62db53757ffca81bae1")
USER = "0x63DD5aCC6b1aa0f563956C0e534DD30B6dcF7C4e"
SIGNER = "0x21cF8Ae13Bb72632562c6Fff438652Ba1a151bb0"
MESSAGE = f"nonce=1748310859508867&user={USER}&signer={SIGNER}"
WITHOUT_USER = f"nonce=1748310859508867&signer={SIGNER}"
OTHER_ORDER = f"user={USER}&signer={SIGNER}&nonce=1748310859508867"
ELEVENS = bytes.fromhex("11" * 32)
ELEVENS_ADDRESS = "0x19e7e376e7c213b7e7e7e46cc70a5dd086daff2a"
OF_ELEVENS = f"nonce=1700000000000000&user={ELEVENS_ADDRESS}&signer={ELEVENS_ADDRESS}"
COUNTED = bytes.fromhex("0123456789012345678901234567890123456789012345678901234567890123")
COUNTED_ADDRESS = "0x14791697260e4c9a71f18484c9f997b308e59325"
OF_COUNTED = f"asterChain=Mainnet&user=0x{'1' * 40}&signer={COUNTED_ADDRESS}&nonce=170000000000000"
LIVE, TEST = 1666, 714


# By a name: the secret, the text and the signature.
HMAC_EXAMPLES: dict[str, tuple[str, str, str]] = {
    # witness: unproven: reckoned once with another program
    "the time alone": (
        "aster-test-secret-0001",
        "timestamp=1700000000000",
        "9659547e68a99d9c71956696da16dab29e44ee5645cd6cf1c3b16fb74382f515",
    ),
    "the window first": (
        "aster-test-secret-0001",
        "recvWindow=5000&timestamp=1700000000000",
        "e5373f2e42a8c584c0bbcd38096dc00a7c46e45e19bafaf7789f5533e57d1cb8",
    ),
    "the time first": (
        "aster-test-secret-0001",
        "timestamp=1700000000000&recvWindow=5000",
        "3ed5b91fe81e4d7748fe9093b948cc4a2582b5620fe804b36a9822e9d3972b72",
    ),
    # witness: vendor: asterdex/api-docs V1(Legacy)/EN/aster-finance-futures-api.md
    "the venue's own example": (
        "2b5eb11e18796d12d88f13dc27dbbd02c2cc51ff7059765ed9821957d82bb4d9",
        "symbol=BTCUSDT&side=BUY&type=LIMIT&quantity=1&price=9000&timeInForce=GTC"
        "&recvWindow=5000&timestamp=1591702613943",
        "3c661234138461fcc7a7d8746c6558c9842d4e10870d2ecbedf7777cad694af9",
    ),
}


@pytest.mark.parametrize(("secret", "text", "signature"), HMAC_EXAMPLES.values(), ids=HMAC_EXAMPLES)
def test_the_older_scheme_signs_as_the_venue_does(secret: str, text: str, signature: str) -> None:
    assert signing.hmac_sha256(secret, text) == signature


def test_keccak_is_the_one_from_before_sha3() -> None:
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert signing.keccak256(b"").hex() == empty


def test_the_hash_of_a_message_is_the_venues() -> None:
    expected = "940834f64766178db2aafa54302b7386d484fcdcbdde64b3b9f465c09c638f1e"
    assert signing.struct_hash(MESSAGE).hex() == expected


@pytest.mark.parametrize(
    ("chain_id", "domain", "digest"),
    [
        (
            LIVE,
            "a95d0a7a6f3f17fcebb0c2336645385ce79cde7523f71ab147fdb7f15e9f37f9",
            "f614a915ce064febf6fd86a96eac30fad2d7519e0a486b4552fa949cb635d2a8",
        ),
        (
            TEST,
            "fad01b07bed5729a04dbb977fd86da612eba71d668660bf12cf10b3d65b74d94",
            "bccae7ec13ba96b494c4868929eb03506a2a9fe2139d691cfcd2094e35442dff",
        ),
    ],
    ids=["live", "test"],
)
def test_the_domain_and_the_digest_are_the_venues_on_both_chains(chain_id: int, domain: str, digest: str) -> None:
    assert signing.domain_separator(chain_id).hex() == domain
    assert signing.digest(MESSAGE, chain_id).hex() == digest


# By a name: the private key, the message, the chain and the signature.
SIGNATURES: dict[str, tuple[bytes, str, int, str]] = {
    # witness: unproven: reckoned once with other libraries by the venue's description; its page prints no signature
    "live": (
        KEY,
        MESSAGE,
        LIVE,
        "0x79f8910c6a2d14796480f5bc09492b9cf00e247bc53b2cc9b47e3b59dfe698b9"
        "2e9e9a6853c210ae67ffa351b09d84a14a0585122f2fba2c90b2998e3e96e3b81b",
    ),
    "test": (
        KEY,
        MESSAGE,
        TEST,
        "0xd085b7104b474be9b87fc06bf155eff586165f3c6f48475546a615cc84087bba"
        "5e5ec4a34174ce7313067b75f516fd7a607514d6396ef96b01ae977f7c80d6b41b",
    ),
    "in another order": (
        KEY,
        OTHER_ORDER,
        LIVE,
        "0xc8edcc2c1c5736639df981a731e340d20f47369b20061e52f6146b2f86703f1a"
        "67fbcc6b6d97943b4dae2b3f44d3db59ddfecb137ba672b1d5e3d0672ad016be1c",
    ),
    "s begins with a zero": (
        KEY,
        WITHOUT_USER,
        TEST,
        "0x2579c8dbfb5b908736407164cbb6bc270af2fcde07b5253c8908656c0720537f"
        "0dca80577799f22fd3fc9696787154a76c1bcacf215cb12ce9413396185ba1661b",
    ),
    "without the user": (
        KEY,
        WITHOUT_USER,
        LIVE,
        "0xcd0ea4d53d67b3aa39bb62a85fbd4b819f83f745a6eb30c6dfd31991b7b9f00a"
        "359d9be3656c8c0860e71e2416f0c06b89d7f64e291f0d7ebe71f7fb76a144c11b",
    ),
    "another key": (
        ELEVENS,
        OF_ELEVENS,
        LIVE,
        "0x8aba8b681afc647da8a0d2fcbd285e1702e453d3ed15a7653d8199582601fda9"
        "6ac4385fb24070308d199f3467adba12179371d326174ae08b0d20b8a63f3ca61b",
    ),
    # witness: unproven: the same signatures stand in a public test in Go, seen in an index that names no repository
    "a nonce of another project": (
        COUNTED,
        f"{OF_COUNTED}0",
        LIVE,
        "0x8d917a8df3f14719a783abe95559d75a20c70dd8c4d53aee6f7771f59b020108"
        "5ed5dd17ebd47b08e66de9ddc3cf59109ba96a21fcefab653aebbd4fecd991771b",
    ),
    "the next nonce of another project": (
        COUNTED,
        f"{OF_COUNTED}1",
        LIVE,
        "0x5ec8a67a6c6fb3b863d7c202405440b0bfa0fcd7560d16edaf3e24a459f0bea4"
        "06e75501e1218ebce552a1bd4cd448bbe1b86a11c3225a0f43a78fcc61f74e1d1b",
    ),
}


@pytest.mark.parametrize(("key", "message", "chain_id", "signature"), SIGNATURES.values(), ids=SIGNATURES)
def test_an_agent_signs_as_the_venue_expects(key: bytes, message: str, chain_id: int, signature: str) -> None:
    assert signing.sign(key, message, chain_id) == signature


# By a name: the private key and its address.
ADDRESSES: dict[str, tuple[bytes, str]] = {
    # witness: vendor: asterdex/api-docs V3(Recommended)/EN/aster-finance-futures-api-testnet.md
    "the venue's example": (KEY, SIGNER),
    # witness: report: https://docs.ethers.org/v3/api-wallet.html
    "another library's example": (COUNTED, COUNTED_ADDRESS),
    "elevens": (ELEVENS, ELEVENS_ADDRESS),  # witness: unproven: reckoned once with other libraries
}


@pytest.mark.parametrize(("key", "address"), ADDRESSES.values(), ids=ADDRESSES)
def test_the_address_follows_from_the_key(key: bytes, address: str) -> None:
    assert signing.address_of(key) == address.lower()


@pytest.mark.parametrize("key", [bytes(32), b"\xff" * 32], ids=["zero", "beyond the curve's order"])
def test_bytes_that_are_not_a_key_have_no_address(key: bytes) -> None:
    with pytest.raises(ValueError, match="scalar"):
        signing.address_of(key)


def test_importing_the_plugin_does_not_import_the_libraries_for_signing() -> None:
    script = "import sys, exchange_service_aster; print('coincurve' in sys.modules, 'Crypto' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
