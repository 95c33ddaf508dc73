"""Rows with sealed values: opening them to read, sealing them to store, sealing them again with a newer key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from exchange_service.credentials.audit import PLAIN, Audit
from exchange_service.credentials.keysets import KeyProvider
from exchange_service.credentials.rows import SECRET_COLUMNS, TABLE, Row
from exchange_service.credentials.sealing import Place, is_sealed, key_id_of, open_sealed, seal
from exchange_service.errors import CredentialUnreadable

_METADATA = "extra_metadata"
# What a row is opened for: to be used at a venue. Every other purpose stands in the audit by its own word.
VENUE = "venue"


@dataclass(frozen=True, slots=True)
class Vault:
    """How the rows of a store are opened and sealed. Without `keys` nothing is sealed, and what is does not open.

    `allow_plaintext` false refuses rows that hold a plain value: one that somebody put in the place of a sealed one.
    """

    keys: KeyProvider | None
    audit: Audit
    allow_plaintext: bool = True

    async def opened(self, row: Row, *, purpose: str = VENUE) -> Row:
        """The row with every value plain, and a line in the audit. CredentialUnreadable where one does not open, or
        where plain ones are not allowed at a venue."""
        refusal: CredentialUnreadable | None = None
        try:
            plain = await self._opened(row, purpose)
        except CredentialUnreadable as error:
            refusal = error
        if refusal is not None:
            self.audit.refused(row, refusal, purpose)
            raise refusal
        self.audit.opened(row, keys_of(row), purpose)
        return plain

    async def opens(self, row: Row, column: str, *, purpose: str) -> bool:
        """Whether one sealed value of the row opens; that it did is in the audit too."""
        try:
            await self._opened_text(row, column)
        except CredentialUnreadable:
            return False
        self.audit.opened(row, {key_id_of(getattr(row, column))}, purpose)
        return True

    async def _opened(self, row: Row, purpose: str) -> Row:
        if purpose == VENUE and not self.allow_plaintext and plain_columns(row):
            raise CredentialUnreadable(
                f"The stored {row.exchange} credential holds plain text, which allow_plaintext=false refuses.",
                advice="Seal it with `exchange-service credentials seal`, or store it again.",
            )
        texts = {column: await self._opened_text(row, column) for column in sealed_columns(row)}
        return replace(row, **texts)

    async def _opened_text(self, row: Row, column: str) -> str:
        if self.keys is None:
            raise CredentialUnreadable(
                f"The {column} of the stored {row.exchange} credential is sealed, and there is no keyset."
            )
        return await open_sealed(getattr(row, column), place(row, column), self.keys)

    async def sealed(self, row: Row, columns: Sequence[str]) -> dict[str, str]:
        """What to store in these columns of a row whose values are plain, by column. There have to be keys."""
        assert self.keys is not None
        texts = {}
        for column in columns:
            text = await seal(getattr(row, column), place(row, column), self.keys)
            # A JSON column takes no other text, and a text column is then read the same way.
            texts[column] = json.dumps(text) if column == _METADATA else text
        return texts


def place(row: Row, column: str) -> Place:
    """Where a value of the row stands."""
    return Place(TABLE, column, row.user_id, row.exchange, row.environment)


def sealed_columns(row: Row) -> list[str]:
    """The columns whose value is sealed."""
    return [column for column in SECRET_COLUMNS if is_sealed(getattr(row, column))]


def plain_columns(row: Row) -> list[str]:
    """The columns that hold something in plain text."""
    return [column for column in SECRET_COLUMNS if row.holds(column) and not is_sealed(getattr(row, column))]


def keys_of(row: Row) -> set[str]:
    """The ids of the keys that the row's values are sealed with, and PLAIN where some are not sealed."""
    sealed = {key_id_of(getattr(row, column)) for column in sealed_columns(row)}
    return sealed | ({PLAIN} if plain_columns(row) else set())
