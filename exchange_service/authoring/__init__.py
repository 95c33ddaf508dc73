"""What the commands for plugin authors do: `exchange-service plugins new`, and those that follow it."""
