"""Silhouettes: decode, clean, normalise, judge."""
