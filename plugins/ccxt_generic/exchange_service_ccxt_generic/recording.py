"""Recording the answers of one call, and CCXT's exceptions in it as the service's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from exchange_service.plugin_api import CredentialInvalid, RequestRefused, VenueError, VenueMalformed
from exchange_service_ccxt_generic.answers import RECORD, Record
from exchange_service_ccxt_generic.failures import refused_before_sending, translate
from exchange_service_ccxt_generic.kinds import has_code


class Recorder:
    """For one exchange, whose name the messages contain."""

    def __init__(self, exchange_id: str, venue: str) -> None:
        self._id = exchange_id
        self._venue = venue

    @contextmanager
    def record(self, ccxt: Any) -> Iterator[Record]:
        """Record the answers of the CCXT calls inside. Raises a VenueError for what CCXT raises there."""
        record = Record()
        token = RECORD.set(record)
        try:
            yield record
        except VenueMalformed as malformed:
            raise self.with_venue(malformed) from None
        except ccxt.BaseError as error:
            raise self._translate(ccxt, error, record) from None
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
            if not record.answers and isinstance(error, ValueError):
                # Before any request CCXT reads only what the user has stored.
                raise CredentialInvalid(
                    f"CCXT cannot use the stored key for {self._venue}.", advice="Check that it was copied whole."
                ) from None
            if not record.answers:
                raise
            # CCXT's classes fail with these if an answer has another shape than they expect.
            raise VenueMalformed(f"{self._venue} answered in a shape that cannot be read.") from None
        finally:
            RECORD.reset(token)

    def raise_swallowed(self, ccxt: Any, record: Record, plain_code: str = "") -> None:
        """Raise the first recorded error that a class has caught, because it may then have read another wallet.

        Some classes take any error for the plain kind of account. The venue's code `plain_code` really says so.
        """
        for answer in record.answers:
            if answer.error is None or has_code(answer.body, plain_code):
                continue
            error = self._translate(ccxt, answer.error, record)
            raise self.unknown_kind() if isinstance(error, RequestRefused) else error from None

    def unknown_kind(self) -> VenueMalformed:
        """The error for an account whose kind is not known."""
        return VenueMalformed(f"{self._venue} does not say which kind of account it is.")

    def with_venue(self, malformed: VenueMalformed) -> VenueMalformed:
        """The same error with the venue's name in its message."""
        if malformed.message.startswith(self._venue):
            return malformed
        return VenueMalformed(f"{self._venue}: {malformed.message}")

    def _translate(self, ccxt: Any, error: Exception, record: Record) -> VenueError:
        if isinstance(error, VenueError):
            return error
        if not record.answers and isinstance(error, ccxt.BaseError) and self._is_of_credential(ccxt, error):
            return refused_before_sending(error, self._venue)
        refused = isinstance(error, ccxt.ExchangeError) and not isinstance(
            error, (ccxt.AuthenticationError, ccxt.NotSupported)
        )
        if refused and record.arose_in_reading(error):
            return VenueMalformed(f"{self._venue} answered with something that is not a balance.")
        if isinstance(error, ccxt.BaseError):
            return translate(error, record.of(error), self._id, self._venue)
        return VenueMalformed(f"{self._venue} answered in a shape that cannot be read.")

    @staticmethod
    def _is_of_credential(ccxt: Any, error: Exception) -> bool:
        """Whether CCXT's refusal is of what the user stored, if no request has been sent."""
        return isinstance(error, (ccxt.AuthenticationError, ccxt.ArgumentsRequired, ccxt.BadRequest))
