"""StreamBalances: one feed for each account, however many subscribe to it."""
