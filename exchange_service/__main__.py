"""`python -m exchange_service` is the `exchange-service` command."""

from exchange_service.cli import main

main()
