"""Plumbing of the tiny examples."""
