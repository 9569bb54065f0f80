"""Gait networks, silhouettes and checkpoints: everything an embedding needs to be meaningful."""

from collections.abc import Callable

Progress = Callable[[int], None]
"""Told again and again how many items are done so far."""
