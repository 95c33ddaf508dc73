"""Certificates for the loopback venue: a good one, and those that no client may accept."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

KINDS = ("good", "expired", "other-name", "unknown-authority")
# What replicas trust, in the folder of the venue: for the variable SSL_CERT_FILE.
AUTHORITY = "authority.pem"
_DAY = datetime.timedelta(days=1)

Key = ec.EllipticCurvePrivateKey


def server_contexts(folder: Path) -> dict[str, ssl.SSLContext]:
    """The TLS context of a server for each of KINDS. Writes the files into `folder`, AUTHORITY among them."""
    authority = ec.generate_private_key(ec.SECP256R1())
    (folder / AUTHORITY).write_bytes(_pem(_authority(authority)))
    return {kind: _context(folder / f"{kind}.pem", kind, authority) for kind in KINDS}


def _context(file: Path, kind: str, authority: Key) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    signer = ec.generate_private_key(ec.SECP256R1()) if kind == "unknown-authority" else authority
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file.write_bytes(private + _pem(_leaf(kind, key, signer)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def _leaf(kind: str, key: Key, signer: Key) -> x509.Certificate:
    address = "127.0.0.2" if kind == "other-name" else "127.0.0.1"
    builder = _builder("venue", key, -1 if kind == "expired" else 1)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    return builder.add_extension(alternative, critical=False).sign(signer, hashes.SHA256())


def _authority(key: Key) -> x509.Certificate:
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    return _builder("authority", key, 1).add_extension(constraints, critical=True).sign(key, hashes.SHA256())


def _builder(name: str, key: Key, days: int) -> x509.CertificateBuilder:
    """A certificate of the authority that ends in so many days."""
    now = datetime.datetime.now(datetime.UTC)
    subject, issuer = _name(name), _name("authority")
    builder = x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
    return builder.not_valid_before(now - 3 * _DAY).not_valid_after(now + days * _DAY)


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"chaos {name}")])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
