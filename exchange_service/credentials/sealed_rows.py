"""Rows with sealed values: opening them to use them, and sealing them to store them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from exchange_service.credentials.audit import PLAIN, Audit
from exchange_service.credentials.key_providers import KeyProvider
from exchange_service.credentials.rows import SECRET_COLUMNS, TABLE, CredentialRow
from exchange_service.credentials.sealing import AssociatedData, is_sealed, key_id_of, seal, unseal
from exchange_service.errors import CredentialUnreadable

_METADATA = "extra_metadata"
# The purpose of opening a row to use it at a venue. The audit names every other purpose by its own word.
VENUE = "venue"


@dataclass(frozen=True, slots=True)
class Vault:
    """Opens and seals the rows of a store. Without `keys` nothing is sealed, and sealed values do not open.

    If `allow_plaintext` is false, a row that holds a plain value is refused: another program may have put it in place
    of a sealed one.
    """

    keys: KeyProvider | None
    audit: Audit
    allow_plaintext: bool = True

    async def open_row(self, row: CredentialRow, *, purpose: str = VENUE) -> CredentialRow:
        """The row with every value plain; the audit gets a line. CredentialUnreadable if a value does not open, or if
        a plain value is not allowed at a venue."""
        refusal: CredentialUnreadable | None = None
        try:
            plain = await self._open_values(row, purpose)
        except CredentialUnreadable as error:
            refusal = error
        if refusal is not None:
            self.audit.record_refusal(row, refusal, purpose)
            raise refusal
        self.audit.record_opening(row, keys_of(row), purpose)
        return plain

    async def can_open(self, row: CredentialRow, column: str, *, purpose: str) -> bool:
        """Whether one sealed value of the row opens; an opening is recorded in the audit too."""
        try:
            await self._open_value(row, column)
        except CredentialUnreadable:
            return False
        self.audit.record_opening(row, {key_id_of(getattr(row, column))}, purpose)
        return True

    async def _open_values(self, row: CredentialRow, purpose: str) -> CredentialRow:
        if purpose == VENUE and not self.allow_plaintext and plain_columns(row):
            raise CredentialUnreadable(
                f"The stored {row.exchange} credential holds plain text, which allow_plaintext=false refuses.",
                advice="Seal it with `exchange-service credentials seal`, or store it again.",
            )
        texts = {column: await self._open_value(row, column) for column in sealed_columns(row)}
        return replace(row, **texts)

    async def _open_value(self, row: CredentialRow, column: str) -> str:
        if self.keys is None:
            raise CredentialUnreadable(
                f"The {column} of the stored {row.exchange} credential is sealed, and there is no keyset."
            )
        return await unseal(getattr(row, column), _associated_data(row, column), self.keys)

    async def seal_columns(self, row: CredentialRow, columns: Sequence[str]) -> dict[str, str]:
        """The sealed texts to store in these columns, by column. The row's values are plain, and `keys` is not None."""
        assert self.keys is not None
        texts = {}
        for column in columns:
            text = await seal(getattr(row, column), _associated_data(row, column), self.keys)
            # A JSON column takes no other text, and a text column is then read the same way.
            texts[column] = json.dumps(text) if column == _METADATA else text
        return texts


def _associated_data(row: CredentialRow, column: str) -> AssociatedData:
    return AssociatedData(TABLE, column, row.user_id, row.exchange, row.environment)


def sealed_columns(row: CredentialRow) -> list[str]:
    """The columns whose value is sealed."""
    return [column for column in SECRET_COLUMNS if is_sealed(getattr(row, column))]


def plain_columns(row: CredentialRow) -> list[str]:
    """The columns that hold something in plain text."""
    return [column for column in SECRET_COLUMNS if row.holds(column) and not is_sealed(getattr(row, column))]


def keys_of(row: CredentialRow) -> set[str]:
    """The ids of the keys that sealed the row's values, and PLAIN if some are not sealed."""
    sealed = {key_id_of(getattr(row, column)) for column in sealed_columns(row)}
    return sealed | ({PLAIN} if plain_columns(row) else set())
