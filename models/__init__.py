"""Gait networks, silhouettes and checkpoints: everything an embedding needs to be meaningful."""
