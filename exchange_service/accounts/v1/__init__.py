"""Generated from protos/exchange_service/accounts/v1 by `make protos`; never edited."""
