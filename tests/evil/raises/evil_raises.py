"""Raises at import."""

raise RuntimeError("what this says is for nobody's eyes")
