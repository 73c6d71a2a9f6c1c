"""Helpers that three or more modules use: atomic writes, progress, ordered threads."""
