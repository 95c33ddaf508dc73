"""The two signatures that Aster accepts. Pure functions; hexadecimal texts are in lower case.

The libraries are imported at their first use, so that a service that only lists the exchange does not load them.
`load` imports them in advance, because the import takes longer than the event loop may be blocked.
"""

from __future__ import annotations

import hashlib
import hmac

# EIP-712: the hashes of "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)" and of
# "Message(string msg)".
_DOMAIN_TYPE = bytes.fromhex("8b73c3c69bb8fe3d512ecc4cf759cc79239f7b179b0ffacaa9a75d522b39400f")
_MESSAGE_TYPE = bytes.fromhex("c4cfb57eea370ef2a92403a7e865b2de262d7ca272333665b54ad7e6a602ef68")
_DOMAIN_NAME = b"AsterSignTransaction"
_DOMAIN_VERSION = b"1"
_NO_CONTRACT = bytes(32)
# Ethereum adds this to the recovery id of a signature.
_RECOVERY_OFFSET = 27
# A key for the signature that `load` makes. Any key would do.
_ANY_KEY = bytes(31) + b"\x01"


def load() -> None:
    """Import and initialise the libraries for an agent's signature. The first call takes some tenths of a second."""
    sign(_ANY_KEY, "", chain_id=1)


def hmac_sha256(secret: str, text: str) -> str:
    """The signature of V1: 64 hexadecimal digits."""
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def keccak256(data: bytes) -> bytes:
    """Keccak-256 as Ethereum uses it, from before it became SHA-3: 32 bytes."""
    from Crypto.Hash import keccak

    return keccak.new(digest_bits=256, data=data).digest()


def domain_separator(chain_id: int) -> bytes:
    """The EIP-712 hash of Aster's domain on a chain: 32 bytes."""
    name, version = keccak256(_DOMAIN_NAME), keccak256(_DOMAIN_VERSION)
    return keccak256(_DOMAIN_TYPE + name + version + chain_id.to_bytes(32, "big") + _NO_CONTRACT)


def struct_hash(message: str) -> bytes:
    """The EIP-712 hash of a message: 32 bytes."""
    return keccak256(_MESSAGE_TYPE + keccak256(message.encode()))


def digest(message: str, chain_id: int) -> bytes:
    """The hash that an agent signs for a message: 32 bytes."""
    return keccak256(b"\x19\x01" + domain_separator(chain_id) + struct_hash(message))


def sign(private_key: bytes, message: str, chain_id: int) -> str:
    """The signature of V3: 0x and 130 hexadecimal digits, r and s in full length and v as 27 or 28."""
    from coincurve import PrivateKey

    signature = PrivateKey(private_key).sign_recoverable(digest(message, chain_id), hasher=None)
    return "0x" + signature[:64].hex() + f"{signature[64] + _RECOVERY_OFFSET:02x}"


def address_of(private_key: bytes) -> str:
    """The Ethereum address of a private key of 32 bytes: 0x and 40 digits. Raises ValueError if it is not a key."""
    from coincurve import PrivateKey

    # Without the first byte, which marks the uncompressed form.
    point = PrivateKey(private_key).public_key.format(compressed=False)[1:]
    return "0x" + keccak256(point)[-20:].hex()
