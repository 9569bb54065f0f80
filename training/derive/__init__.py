"""Checkpoints made out of trained ones without gradients."""
