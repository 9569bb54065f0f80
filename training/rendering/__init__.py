"""Walkers rendered from a body model and motion capture."""
