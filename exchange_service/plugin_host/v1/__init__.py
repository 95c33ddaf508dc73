"""Generated from protos/exchange_service/plugin_host/v1 by `make protos`; never edited."""
