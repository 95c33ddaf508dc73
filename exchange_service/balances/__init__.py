"""GetBalance: how fresh a balance has to be, and the road of a fetch to its venue."""
