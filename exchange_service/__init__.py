"""One gRPC service that lists exchanges and brokers, reads balances and streams them live."""

__version__ = "0.1.0"
