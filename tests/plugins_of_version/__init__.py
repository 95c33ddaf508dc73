"""Plugins that were written for each served version of the plugin page, and are never edited."""
