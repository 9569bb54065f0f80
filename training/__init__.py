"""Offline training and distillation."""
