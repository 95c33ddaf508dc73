"""What an operator sees: log lines, metrics, and the one place that redacts them."""
