"""Generated from protos/exchange_service/v1 by `make protos`; never edited."""
