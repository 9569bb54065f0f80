"""Enrolled people: the store, which is the truth, and the index, which is a cache over it."""
