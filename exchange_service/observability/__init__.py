"""Log lines, metrics, and the one place that redacts log lines."""
