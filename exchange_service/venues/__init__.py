"""Asking a plugin: which are installed, the session of each account, the HTTP that they are given."""
