"""Simulators of exchanges, as far as CCXT uses them. They share no code with the plugin and do not import CCXT."""

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
