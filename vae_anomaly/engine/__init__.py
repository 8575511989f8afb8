"""Compiled programs, one set for each architecture."""
