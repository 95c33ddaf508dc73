"""API keys, secrets and private keys as people have them: pasted, quoted, escaped, in one line, without their header.

What has one meaning only is read; anything else is a CredentialInvalid that names the field and what it holds. No
message holds a part of the text.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from exchange_service.errors import CredentialInvalid

RSA = "rsa"
ED25519 = "ed25519"
P256 = "p256"
# The kinds of private key that a field may take, and how messages call them.
KEY_KINDS = {RSA: "an RSA key", ED25519: "an Ed25519 key", P256: "an EC key on the curve P-256"}

_AGAIN = "Copy it again, and nothing around it."
# What no key holds at its ends, though it is not seen: zero-width characters and the mark of byte order.
_UNSEEN = "\ufeff\u200b\u200c\u200d\u2060\u00a0"
_QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u201e": "\u201c", "\u2018": "\u2019", "\u00ab": "\u00bb"}
# A mark of PEM. Some editors turn its hyphens into dashes.
_MARK = re.compile(
    r"[-\u2010-\u2015\u2212]*\s*\b(BEGIN|END)\s+"
    r"((?:[A-Z0-9]+\s)*(?:PRIVATE\sKEY|PUBLIC\sKEY|CERTIFICATE|PARAMETERS|REQUEST)(?:\sBLOCK)?)\s*"
    r"[-\u2010-\u2015\u2212]*"
)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}\Z")
_SSH_PUBLIC = re.compile(r"(?:ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-\S+|sk-\S+@openssh\.com)\s+AAAA")
_FILE = re.compile(r"(?:~|\.{0,2}/|[A-Za-z]:\\|file:).*\.(?:pem|key|json|txt|der|p8)\Z", re.IGNORECASE)
_LINE = 64
# How a key in OpenSSH's own format begins that is not encrypted: the name of its cipher is "none".
_OPENSSH_PLAIN = b"openssh-key-v1\x00\x00\x00\x00\x04none"
# A shorter text in base64 shows too little to be known as a private key.
_SHORTEST = 16


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A private key: its kind, one of KEY_KINDS, and the key in lines."""

    # rsa, ed25519 or p256.
    kind: str
    # The lines, as `cryptography` reads them: a secret.
    pem: str

    def __repr__(self) -> str:
        return f"PrivateKey({self.kind!r}, ***)"

    def raw(self) -> bytes:
        """The 32 bytes of an Ed25519 key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = load_pem_private_key(self.pem.encode(), None)
        assert isinstance(key, Ed25519PrivateKey)
        return key.private_bytes_raw()

    def pkcs8_body(self) -> str:
        """The key in PKCS #8 as one line of base64, without its marks."""
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            load_pem_private_key,
        )

        key = load_pem_private_key(self.pem.encode(), None)
        return base64.b64encode(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())).decode()


@dataclass(frozen=True, slots=True)
class _Block:
    """What stands between two marks of PEM."""

    label: str
    text: str


def clean_text(text: str, field: str) -> str:
    """An API key or secret in one line, without blanks, unseen characters, quotes and an escaped line end around it.

    Raises CredentialInvalid if it holds what no key holds, or is a key in lines.
    """
    meant = _unwrapped(text)
    if find_private_key(meant, field) is not None:
        _refuse(field, "a private key in lines, where an API key or a secret of one line belongs", "")
    while meant.endswith(("\\n", "\\r")):
        meant = _unwrapped(meant[:-2])
    if "\n" in meant or "\r" in meant:
        _refuse(field, "several lines, where one is expected", _AGAIN)
    if not (meant.isascii() and meant.isprintable()):
        _refuse(field, "other than plain characters", _AGAIN)
    if " " in meant:
        _refuse(field, "a blank in its middle", _AGAIN)
    return meant


def private_key(text: str, field: str, kinds: Sequence[str]) -> PrivateKey | None:
    """The private key that `text` is, as one of `kinds`; None if it is not one. Raises CredentialInvalid for others."""
    key = find_private_key(text, field)
    if key is not None and key.kind not in kinds:
        wanted = " or ".join(KEY_KINDS[kind] for kind in kinds)
        what = KEY_KINDS.get(key.kind, "a private key of another kind")
        _refuse(field, what, f"Store {wanted}." if wanted else "The exchange gives a text of one line; store that.")
    return key


def stored_text(text: str, field: str, kinds: Sequence[str]) -> str:
    """`text` as it is best stored: a private key of one of `kinds` in its lines, or else one line without what stands
    around it. Raises CredentialInvalid if it is neither."""
    if not text.strip():
        return ""
    key = private_key(text, field, kinds)
    return clean_text(text, field) if key is None else key.pem


def find_private_key(text: str, field: str) -> PrivateKey | None:
    """The private key that `text` certainly is; None if it does not look like a key in lines.

    Raises CredentialInvalid if it is another thing that people have beside a key, or a key that cannot be read.
    """
    text = _unwrapped(text)
    _refuse_other_things(text, field)
    unescaped = text.replace("\\r", "\r").replace("\\n", "\n").replace("\\/", "/")
    if _MARK.search(unescaped):
        return _read_block(_chosen_block(_blocks(unescaped), field), field)
    return _read_without_marks(unescaped, field)


def is_unfinished(text: str) -> bool:
    """Whether `text`, which came from a terminal, is the beginning of a key whose other lines are still to come."""
    text = _unwrapped(text)
    marks = list(_MARK.finditer(text.replace("\\r", "\r").replace("\\n", "\n")))
    if marks:
        last = marks[-1]
        return last[1] == "BEGIN" or last[2].split()[-1] == "PARAMETERS"
    if text.startswith("{"):
        return not _is_json(text)
    compact = "".join(text.split())
    if len(compact) < _SHORTEST or not _BASE64.match(compact):
        return False
    data = _decode(compact[: len(compact) // 4 * 4])
    return data is not None and _is_key_start(data) and len(data) < _stated_length(data)


def _refuse(field: str, what: str, advice: str) -> NoReturn:
    raise CredentialInvalid(f"{field} holds {what}.", advice=advice)


def _refuse_other_things(text: str, field: str) -> None:
    if text.startswith("{") and (_is_json(text) or "\n" in text):
        _refuse(field, "a whole JSON object", "Store its key's name as api_key, and its private key as api_secret.")
    if text.startswith("PuTTY-User-Key-File"):
        _refuse(field, "a private key in PuTTY's format", "Export it as OpenSSH or PEM, and store that.")
    if _SSH_PUBLIC.match(text):
        _refuse(field, "a public key", "Store the private key that belongs to it.")
    if _FILE.match(text) and "\n" not in text:
        _refuse(field, "the name of a file", "Store what the file holds.")


def _unwrapped(text: str) -> str:
    """The text without blanks, unseen characters and pairs of quotes around it."""
    while True:
        text = text.strip().strip(_UNSEEN).strip()
        if len(text) < 2 or _QUOTES.get(text[0]) != text[-1]:
            return text
        text = text[1:-1]


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text, strict=False), dict)
    except ValueError:
        return False


def _blocks(text: str) -> list[_Block]:
    """What stands between the marks. One whose first mark is missing has the label of its last, and the reverse."""
    blocks, label, start = [], "", 0
    for mark in _MARK.finditer(text):
        here = " ".join(mark[2].split())
        if mark[1] == "BEGIN":
            if label:
                blocks.append(_Block(label, text[start : mark.start()]))
            label = here
        else:
            blocks.append(_Block(label or here, text[start : mark.start()]))
            label = ""
        start = mark.end()
    if label:
        blocks.append(_Block(label, text[start:]))
    return blocks


def _chosen_block(blocks: Sequence[_Block], field: str) -> _Block:
    """The private key among the blocks: its public key or certificate may stand beside it."""
    private = list(dict.fromkeys(block for block in blocks if "PRIVATE" in block.label))
    if len(private) > 1:
        _refuse(field, f"{len(private)} private keys", "Store one of them.")
    if private:
        return private[0]
    labels = [block.label for block in blocks]
    if any("PUBLIC" in label for label in labels):
        _refuse(field, "a public key", "Store the private key that belongs to it.")
    if any("REQUEST" in label for label in labels):
        _refuse(field, "a request for a certificate", "Store the private key that belongs to it.")
    if any("CERTIFICATE" in label for label in labels):
        _refuse(field, "a certificate", "Store the private key that belongs to it.")
    _refuse(field, "parameters without a key", "Store the whole file of the private key.")


def _read_block(block: _Block, field: str) -> PrivateKey:
    if block.label.startswith("PGP"):
        _refuse(field, "a PGP key", "Store the private key that you made for the exchange.")
    if block.label.startswith("ENCRYPTED") or "ENCRYPTED" in block.text:
        _refuse_encrypted(field)
    lines = (line.strip(" \t\"',\\" + _UNSEEN) for line in block.text.splitlines())
    compact = "".join("".join(line.split()) for line in lines if ":" not in line)
    if not compact:
        _refuse(field, "only the first or the last line of a private key", "Store all its lines.")
    if not _BASE64.match(compact):
        _refuse(field, "a damaged private key: some characters do not belong into it", _AGAIN)
    data = _decode(compact.rstrip("="))
    if block.label.startswith("OPENSSH"):
        return _read_openssh(compact, field)
    if data is None or not data.startswith(b"\x30"):
        _refuse(field, "a damaged private key: its beginning is missing", "Store all its lines.")
    if len(data) < _stated_length(data):
        _refuse(field, "a private key that is cut off: its end is missing", "Store all its lines.")
    return _loaded(data, field)


def _read_without_marks(text: str, field: str) -> PrivateKey | None:
    compact = "".join(text.split())
    if len(compact) < _SHORTEST or not _BASE64.match(compact):
        return None
    data = _decode(compact.rstrip("="))
    if data is None or not data.startswith(b"\x30"):
        return None
    whole = len(data) == _stated_length(data)
    if _is_key_start(data):
        if not whole:
            _refuse(field, "a private key that is cut off, and without its first and last line", "Store all its lines.")
        return _loaded(data, field)
    if whole:
        _refuse_other_data(data, field)
    return None


def _decode(compact: str) -> bytes | None:
    """The bytes of a text in base64, however it is padded; None if it is not base64."""
    if len(compact) % 4 == 1:
        compact = compact[:-1]
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except binascii.Error:
        return None


def _stated_length(data: bytes) -> int:
    """The length in bytes that an ASN.1 sequence says it has, with its header; 0 if it says none."""
    if len(data) < 2 or data[0] != 0x30:
        return 0
    if data[1] < 0x80:
        return 2 + data[1]
    count = data[1] & 0x7F
    return 2 + count + int.from_bytes(data[2 : 2 + count], "big") if 0 < count <= 3 else 0


def _content(data: bytes) -> bytes:
    """The content of an ASN.1 sequence."""
    return data[2:] if data[1] < 0x80 else data[2 + (data[1] & 0x7F) :]


# How the content of a private key begins: PKCS #8 (also a later version), PKCS #1, and SEC 1.
_STARTS = (b"\x02\x01\x00\x30", b"\x02\x01\x01\x30", b"\x02\x01\x00\x02", b"\x02\x01\x01\x04")


def _is_key_start(data: bytes) -> bool:
    return len(data) > 8 and data[0] == 0x30 and _content(data).startswith(_STARTS)


def _label(data: bytes) -> str:
    content = _content(data)
    if content.startswith(b"\x02\x01\x00\x02"):
        return "RSA PRIVATE KEY"
    return "EC PRIVATE KEY" if content.startswith(b"\x02\x01\x01\x04") else "PRIVATE KEY"


def _loaded(data: bytes, field: str) -> PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    try:
        key = load_der_private_key(data, None)
    except TypeError:
        _refuse_encrypted(field)
    except (ValueError, UnsupportedAlgorithm):
        _refuse_other_data(data, field)
        _refuse(field, "a damaged private key", _AGAIN)
    return PrivateKey(_kind(key), in_lines(data, _label(data)))


def _refuse_other_data(data: bytes, field: str) -> None:
    """Refuse what is no private key, by what it is."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key

    try:
        load_der_private_key(data, None)
    except TypeError:
        _refuse_encrypted(field)
    except (ValueError, UnsupportedAlgorithm):
        pass
    for what, load in (("a public key", load_der_public_key), ("a certificate", x509.load_der_x509_certificate)):
        try:
            load(data)
        except (ValueError, UnsupportedAlgorithm):
            continue
        _refuse(field, what, "Store the private key that belongs to it.")


def _refuse_encrypted(field: str) -> NoReturn:
    advice = "Decrypt a copy with `openssl pkey -in FILE`, or make a key without a password, and store that."
    _refuse(field, "a private key that is encrypted with a password", advice)


def _kind(key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, rsa.RSAPrivateKey):
        return RSA
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return ED25519
    return P256 if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1) else ""


def _read_openssh(compact: str, field: str) -> PrivateKey:
    """A key in OpenSSH's own format, in the lines that other programs read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_ssh_private_key,
    )

    if not (_decode(compact.rstrip("=")) or b"").startswith(_OPENSSH_PLAIN):
        _refuse_encrypted(field)
    try:
        key = load_ssh_private_key(in_lines_of(compact, "OPENSSH PRIVATE KEY").encode(), None)
        data = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    except (ValueError, UnsupportedAlgorithm):
        _refuse(field, "a private key of OpenSSH that is cut off or damaged", "Store all its lines.")
    return PrivateKey(_kind(key), in_lines(data, "PRIVATE KEY"))


def in_lines(data: bytes, label: str) -> str:
    """A key's bytes as PEM, without a line end behind the last line."""
    return in_lines_of(base64.b64encode(data).decode(), label)


def in_lines_of(compact: str, label: str) -> str:
    """A key in base64 as PEM, without a line end behind the last line."""
    body = (compact[start : start + _LINE] for start in range(0, len(compact), _LINE))
    return "\n".join([f"-----BEGIN {label}-----", *body, f"-----END {label}-----"])
