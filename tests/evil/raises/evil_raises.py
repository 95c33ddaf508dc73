"""Raises at import."""

raise RuntimeError("this text must not be shown")
