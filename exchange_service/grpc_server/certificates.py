"""The server's TLS identity: read again when its files change, and watched so that its end surprises nobody."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import structlog

log = structlog.get_logger(__name__)

# Seconds between two looks at the files; a new connection is a reason to look.
LOOK_EVERY = 5.0
# Seconds between two looks at the end of the certificates, and between two warnings of the same.
_WATCH_EVERY = 300.0
_WARN_EVERY = 6 * 3600.0
# Days before its end from which a certificate is warned of. Those that renew themselves do so earlier.
WARN_DAYS = 14.0


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """The PEM files of the server's identity, and of the authority of client certificates if there is one."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """What changes when a file is replaced. Raises OSError if one is missing."""
        files = (self.certificate, self.key, self.client_ca)
        stats = [file.stat() for file in files if file is not None]
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The identity as gRPC takes it. Raises OSError or ValueError if the files do not fit together, or one is not
        whole."""
        # gRPC itself would take a pair that does not fit, and then refuse every connection. Without a password the
        # library would ask at the terminal for that of an encrypted key.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key, password="")
        pair = (self.key.read_bytes(), _whole(self.certificate.read_bytes()))
        roots = None if self.client_ca is None else _whole(self.client_ca.read_bytes())
        if roots is not None:
            context.load_verify_locations(cadata=roots.decode("ascii", "replace"))
        return grpc.ssl_server_certificate_configuration([pair], roots)


def _whole(text: bytes) -> bytes:
    """The text of PEM, if no certificate in it is cut off; ValueError if one is, or if there is none."""
    begun, ended = text.count(b"-----BEGIN CERTIFICATE-----"), text.count(b"-----END CERTIFICATE-----")
    if begun != ended or not begun:
        raise ValueError("a certificate is cut off")
    return text


class RenewedCertificates:
    """Gives each new connection the certificate that is in the files now; while they are wrong, the last good one."""

    def __init__(self, files: CertificateFiles, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises OSError or ssl.SSLError if the files cannot be used."""
        self._files = files
        self._clock = clock
        self._stamp = files.stamp()
        self._looked_at = clock()
        self.first = files.configuration()
        self._troubled = False

    def credentials(self) -> grpc.ServerCredentials:
        """What the server listens with."""
        # None for an identity that has not changed is part of gRPC's contract, and its stubs lack it.
        fetch: Any = self.changed
        return grpc.dynamic_ssl_server_credentials(
            self.first, fetch, require_client_authentication=self._files.client_ca is not None
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new identity if the files have changed; None for the one before. gRPC calls it in threads of its own."""
        now = self._clock()
        if now - self._looked_at < LOOK_EVERY:
            return None
        self._looked_at = now
        try:
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return None
            renewed = self._files.configuration()
            if self._files.stamp() != stamp:
                # They are being replaced at this moment: the next look takes them.
                return None
        except (OSError, ValueError) as error:
            # Perhaps one of two files is new already and the other one is not.
            if not self._troubled:
                log.warning("certificate.unusable", error=type(error).__name__, effect="the one before is served")
            self._troubled = True
            return None
        self._stamp, self._troubled = stamp, False
        log.info("certificate.renewed")
        return renewed


def ends(files: CertificateFiles) -> dict[str, datetime]:
    """When the first certificate of each file ends, by the file's setting. Raises OSError or ValueError for a file that
    cannot be read."""
    from cryptography import x509

    named = (("tls_certificate", files.certificate), ("tls_client_ca", files.client_ca))
    return {
        name: min(one.not_valid_after_utc for one in x509.load_pem_x509_certificates(path.read_bytes()))
        for name, path in named
        if path is not None
    }


def ending(files: CertificateFiles, now: datetime | None = None) -> str:
    """A sentence about the first certificate of the files that ends soon or has ended; empty if none does."""
    now = now or datetime.now(UTC)
    for name, end in ends(files).items():
        days = (end - now).total_seconds() / 86400
        if days < 0:
            return f"the certificate in {name} ended on {end:%Y-%m-%d}, and clients refuse it: renew it."
        if days < WARN_DAYS:
            return f"the certificate in {name} ends on {end:%Y-%m-%d}, in {days:.0f} days: renew it."
    return ""


async def watch_ends(files: CertificateFiles, tell: Callable[[dict[str, float]], None] = lambda _: None) -> None:
    """Write a line into the log, at the start and several times a day, while a certificate ends soon; `tell` takes the
    ends, in seconds since the epoch, by the file's setting."""
    warned, warned_at = "", 0.0
    while True:
        try:
            tell({name: end.timestamp() for name, end in ends(files).items()})
            text = ending(files)
        except (OSError, ValueError) as error:
            log.warning("certificate.unreadable", error=type(error).__name__)
        else:
            if text and (text != warned or time.monotonic() - warned_at >= _WARN_EVERY):
                log.warning("certificate.ends_soon", problem=text)
                warned, warned_at = text, time.monotonic()
        await asyncio.sleep(_WATCH_EVERY)
