"""What venues really send for a balance, from the payload files, and which account types no public answer is known for.

A payload file is named after the account type, in a folder named after the id. `rows` has the right figures, by the
venue's own meaning of its members: a figure that the venue does not state, and that does not follow from the others, is
left out there, and so may be a row of zeros.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from exchange_service.plugin_api import AssetBalance, Balance, ExchangeMetadata
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[2] / "payloads"
FIGURES = ("total", "free", "used", "debt")


@dataclass(frozen=True, slots=True)
class TrueAnswer:
    """One answer of a venue: the request that it answers, and the figures that it means by asset."""

    name: str
    exchange_id: str
    account_type: str
    request: str
    rows: Mapping[str, Mapping[str, Decimal]]
    body: bytes
    # The requests before, which learn of the account what the balance needs, with the venue's answers.
    before: Mapping[str, Any]
    # The venue's names of assets, by CCXT's.
    assets: Mapping[str, str]
    # What the user stores beside the key, such as the kind of margin.
    metadata: Mapping[str, str]


@cache
def true_answers() -> tuple[TrueAnswer, ...]:
    """Every payload file of this plugin."""
    return tuple(_read(path) for path in sorted(PAYLOADS.glob("*/*.json")))


def true_answer(name: str) -> TrueAnswer:
    """The payload file of this name, such as "gate/spot"."""
    return next(answer for answer in true_answers() if answer.name == name)


def unproven_types(listings: Mapping[str, ExchangeMetadata]) -> tuple[tuple[str, str], ...]:
    """The ids and account types that are listed and have no answer of an account that holds something."""
    proven = {(answer.exchange_id, answer.account_type) for answer in true_answers() if answer.rows}
    listed = [
        (exchange_id, account_type)
        for exchange_id, listing in listings.items()
        if listing.capabilities.balance
        for account_type in listing.account_types
    ]
    return tuple(entry for entry in listed if entry not in proven)


def _read(path: Path) -> TrueAnswer:
    content = json.loads(path.read_bytes(), parse_float=str)
    rows = {
        asset: {figure: Decimal(amount) for figure, amount in figures.items()}
        for asset, figures in content["rows"].items()
    }
    return TrueAnswer(
        name=f"{path.parent.name}/{path.stem}",
        exchange_id=path.parent.name,
        account_type=content["account_type"],
        request=content["request"],
        rows=rows,
        body=read_payload(path),
        before=content.get("before", {}),
        # Where nothing is said, CCXT's names are the venue's.
        assets={name: name for name in (*rows, "BTC", "USDT")} | content.get("assets", {}),
        metadata=content.get("metadata", {}),
    )


def differences(answer: TrueAnswer, balance: Balance) -> tuple[str, ...]:
    """What the balance shows otherwise than the venue means it, one sentence for each figure."""
    shown: dict[str, list[AssetBalance]] = {}
    for _, row in balance.rows():
        shown.setdefault(row.asset, []).append(row)
    return (
        *(f"{asset}: several rows" for asset, rows in shown.items() if len(rows) > 1),
        *(f"{asset}: no row" for asset in answer.rows if asset not in shown and any(answer.rows[asset].values())),
        *(f"{asset}: a row that the venue does not send" for asset in shown if _is_extra(answer, shown[asset][0])),
        *(
            f"{asset}: {sentence}"
            for asset, figures in answer.rows.items()
            if asset in shown
            for sentence in _wrong_figures(figures, shown[asset][0])
        ),
    )


def _is_extra(answer: TrueAnswer, row: AssetBalance) -> bool:
    return row.asset not in answer.rows and any(getattr(row, figure) for figure in FIGURES)


def _wrong_figures(figures: Mapping[str, Decimal], row: AssetBalance) -> Iterator[str]:
    for figure in FIGURES:
        if figure in figures and getattr(row, figure) != figures[figure]:
            yield f"{figure} is {figures[figure]}, not {getattr(row, figure)}"
    # What the venue does not state is unknown, or what is left of the others.
    reckoned = [figure for figure in FIGURES[:3] if figure not in figures and getattr(row, figure) is not None]
    if reckoned and not _hangs_together(row):
        yield f"{', '.join(reckoned)} does not follow from the others"
    if "debt" not in figures and row.debt:
        yield f"debt is {row.debt}, of which the venue says nothing"


def _hangs_together(row: AssetBalance) -> bool:
    """Whether the total is what is free and what is used, and neither of these is negative."""
    if row.total is None or row.free is None or row.used is None:
        return False
    return row.total == row.free + row.used and row.free >= 0 and row.used >= 0
