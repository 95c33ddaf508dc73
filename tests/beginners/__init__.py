"""Mistakes that a beginner makes in a plugin: a small right plugin, and each mistake as a change of it."""
