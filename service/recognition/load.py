"""How long a new request would wait: the walks under way times what one of them takes.

A pipeline is as fast as its slowest stage, so a walk takes as long as it does there: decoding, of
which several are under way at once, or embedding, which is done in batches. Both are measured while
the service runs, smoothed over some twenty walks, so the bound follows the machine and its model.
"""

from __future__ import annotations

from typing import Final

_WEIGHT: Final = 0.1  # of the newest measurement
_LONGEST_S: Final = 10.0  # that one is believed: a machine may have slept


class Load:
    """Walks that are being decoded or embedded, and the time they take; for one thread."""

    def __init__(self, decoders: int, *, expected_s: float = 0.1) -> None:
        """`decoders` walks are decoded at once; `expected_s` is what one takes until it is known.

        The default is a small student's on one core.
        """
        self._decoders = decoders
        self._decode_s = expected_s
        self._embed_s = expected_s
        self.walks = 0

    @property
    def seconds(self) -> float:
        """The work that is under way."""
        return self.walks * max(self._decode_s / self._decoders, self._embed_s)

    def decoded(self, seconds: float) -> None:
        """Learn from one walk that was decoded."""
        self._decode_s = _smooth(self._decode_s, seconds)

    def embedded(self, seconds: float, walks: int) -> None:
        """Learn from a batch of walks that was embedded."""
        self._embed_s = _smooth(self._embed_s, seconds / walks)


def _smooth(known: float, measured: float) -> float:
    return known + _WEIGHT * (min(measured, _LONGEST_S) - known)
