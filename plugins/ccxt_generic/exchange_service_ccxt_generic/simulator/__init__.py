"""Exchanges on loopback, as far as CCXT asks for them. They use nothing of the plugin's client, so that no mistake
hides in both, and do not import CCXT."""

from __future__ import annotations

from exchange_service_ccxt_generic.simulator.apex import ApexSimulator, SimulatedOmniAccount
from exchange_service_ccxt_generic.simulator.binance import BinanceSimulator, SimulatedWallet
from exchange_service_ccxt_generic.simulator.coinbase import CoinbaseSimulator, SimulatedProfile

__all__ = [
    "ApexSimulator",
    "BinanceSimulator",
    "CoinbaseSimulator",
    "SimulatedOmniAccount",
    "SimulatedProfile",
    "SimulatedWallet",
]
