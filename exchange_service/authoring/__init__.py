"""What the commands for plugin authors do: they work on one plugin, in its folder or as it is installed."""
