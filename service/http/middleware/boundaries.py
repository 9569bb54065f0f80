"""A cheap check of a multipart body's boundaries, before the framework's parser.

That parser looks at single bytes, on the event loop, wherever a boundary might begin: a body full
of near-boundaries, or of blanks after one, blocks everybody. No client chooses a boundary that is
in its data, and none puts blanks after it.
"""

from __future__ import annotations

from typing import Final

_AFTER: Final = (b"\r\n", b"--")  # another part follows, or none


class Boundaries:
    """Checks a body piece by piece."""

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._rest = b"\r\n"  # the first boundary may begin the body
        self.closed = False  # whether the last boundary was there

    def follow(self, piece: bytes) -> bool:
        """Take in the next piece; returns whether every boundary so far is well formed."""
        window = self._rest + piece
        size = len(self._delimiter)
        at = window.find(self._delimiter)
        while 0 <= at <= len(window) - size - 2:
            after = window[at + size : at + size + 2]
            if after not in _AFTER:
                return False
            self.closed = self.closed or after == b"--"
            at = window.find(self._delimiter, at + size)
        self._rest = window[at:] if at >= 0 else window[1 - size :]
        return True
