"""Connecting users' accounts: storing a credential after it was tried, checking, listing and removing stored ones."""
