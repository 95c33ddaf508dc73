"""The server's TLS identity: read again when its files change, and watched so that its end surprises nobody."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
import structlog

log = structlog.get_logger(__name__)


class UnusableCertificates(ValueError):
    """The files of the server's identity cannot be used; the text tells the operator which one."""


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

    def stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What changes when a file is replaced; None for one that cannot be found."""
        return tuple(_stamp(file) for file in (self.certificate, self.key, self.client_ca) if file is not None)

    def context(self) -> ssl.SSLContext:
        """The identity as Python's own servers take it, without client certificates. Raises UnusableCertificates."""
        self.configuration()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError):
            raise UnusableCertificates("tls_certificate: the file has just changed.") from None
        context.set_alpn_protocols(["http/1.1"])
        return context

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """The identity as gRPC takes it. Raises UnusableCertificates if the files do not fit together, or one is not
        whole."""
        certificate, key = _read("tls_certificate", self.certificate), _read("tls_key", self.key)
        roots = None if self.client_ca is None else _read("tls_client_ca", self.client_ca)
        # gRPC itself would take a pair that does not fit, and then refuse every connection. Without a password the
        # library would ask at the terminal for that of an encrypted key.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _check_whole("tls_certificate", certificate)
        try:
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError):
            # The library's text may name what is in the file.
            raise UnusableCertificates(
                "tls_key: it is not a PEM file with the key of the certificate in tls_certificate, without a password."
            ) from None
        if roots is not None:
            _check_whole("tls_client_ca", roots)
            try:
                # Between the certificates there may be any text, such as the name of an authority.
                context.load_verify_locations(cadata=roots.decode("ascii", "ignore"))
            except ssl.SSLError:
                raise UnusableCertificates("tls_client_ca: a certificate in the file is damaged.") from None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], roots)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _read(name: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnusableCertificates(f"{name}: the file cannot be read: {error.strerror}.") from None


def _check_whole(name: str, text: bytes) -> None:
    """Raise UnusableCertificates if there is no certificate in this text of PEM, or one is cut off."""
    begun, ended = text.count(b"-----BEGIN CERTIFICATE-----"), text.count(b"-----END CERTIFICATE-----")
    if begun != ended or not begun:
        raise UnusableCertificates(f"{name}: the file has no certificate in PEM, or one is cut off.")


_Identity = TypeVar("_Identity")


class _RenewedIdentity(Generic[_Identity]):
    """What `make` reads from the files, made again when they have changed."""

    def __init__(
        self,
        files: CertificateFiles,
        make: Callable[[CertificateFiles], _Identity],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises UnusableCertificates."""
        self._files = files
        self._make = make
        self._clock = clock
        self._stamp = files.stamp()
        self._looked_at = clock()
        self.first = make(files)
        self._trouble = ""

    def changed(self) -> _Identity | None:
        """The new identity if the files have changed; None for the one before, also while they are wrong."""
        now = self._clock()
        if now - self._looked_at < LOOK_EVERY:
            return None
        self._looked_at = now
        stamp = self._files.stamp()
        if stamp == self._stamp:
            return None
        try:
            renewed = self._make(self._files)
        except UnusableCertificates as error:
            # Perhaps one of two files is new already and the other one is not.
            if str(error) != self._trouble:
                log.warning("certificate.unusable", problem=str(error), effect="the one before is served")
            self._trouble = str(error)
            return None
        if self._files.stamp() != stamp:
            # They are being replaced at this moment: the next look takes them.
            return None
        self._stamp, self._trouble = stamp, ""
        log.info("certificate.renewed")
        return renewed


class RenewedCertificates(_RenewedIdentity[grpc.ServerCertificateConfiguration]):
    """Gives each new connection the certificate that is in the files now; while they are wrong, the last good one."""

    def __init__(self, files: CertificateFiles, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises UnusableCertificates."""
        super().__init__(files, CertificateFiles.configuration, clock)

    def credentials(self) -> grpc.ServerCredentials:
        """What the server listens with."""
        # None for an identity that has not changed is part of gRPC's contract, and its stubs lack it.
        fetch: Any = self.changed
        # gRPC calls it in threads of its own.
        return grpc.dynamic_ssl_server_credentials(
            self.first, fetch, require_client_authentication=self._files.client_ca is not None
        )


class RenewedContexts(_RenewedIdentity[ssl.SSLContext]):
    """The same for Python's own servers."""

    def __init__(self, files: CertificateFiles, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises UnusableCertificates."""
        super().__init__(files, CertificateFiles.context, clock)
        self._present = self.first

    def current(self) -> ssl.SSLContext:
        """The context for a new connection."""
        self._present = self.changed() or self._present
        return self._present


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
        when = f"ended on {end:%Y-%m-%d}" if days < 0 else f"ends on {end:%Y-%m-%d}, in {days:.0f} days"
        if days < WARN_DAYS and name == "tls_client_ca":
            return f"a certificate in {name} {when}; clients that it vouches for are then refused: renew or remove it."
        if days < WARN_DAYS:
            return f"the certificate in {name} {when}; clients then refuse it: renew it."
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
