"""Distillation terms: one file per method, all pure functions."""
