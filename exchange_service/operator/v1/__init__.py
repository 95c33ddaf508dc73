"""Generated from protos/exchange_service/operator/v1 by `make protos`; never edited."""
