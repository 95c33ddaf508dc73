"""What the commands for plugin authors do."""
