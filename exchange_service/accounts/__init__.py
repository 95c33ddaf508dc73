"""Users' accounts: their credentials are stored, tried, listed and removed for callers."""
