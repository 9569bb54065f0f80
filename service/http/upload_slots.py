"""Slots for uploads: no caller has all of them, and slow uploads make room for others.

Uploads are spooled to disk while they arrive, so their number is limited. A caller is a key, or an
address if there is no key.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from time import monotonic

from service.foundation.errors import Unavailable

_SLOW = 256 * 2**10  # bytes a second; who sends faster is never cut off for a newcomer


class Upload:
    """A request that has a slot; `cut` once another request has taken it over."""

    def __init__(self, caller: str, began: float) -> None:
        self.caller = caller
        self.began = began
        self.arrived = 0  # bytes
        self.arriving = True  # until the body is complete
        self.cut = False
        self.waiting: asyncio.Timeout | None = None  # of the wait for more of the body

    def pace(self, now: float) -> float:
        """Return bytes a second since it began."""
        return self.arrived / max(now - self.began, 1e-3)

    def cut_off(self) -> None:
        """End its wait for more of its body."""
        self.cut = True
        if self.waiting is not None:
            self.waiting.reschedule(asyncio.get_running_loop().time())


class UploadSlots:
    """At most `most` uploads at once; one caller may have half of them, and always one."""

    def __init__(
        self, most: int, *, grace_s: float = 5.0, clock: Callable[[], float] = monotonic
    ) -> None:
        """No upload is called slow within `grace_s` of its beginning."""
        self._most = most
        self._grace_s = grace_s
        self._share = max(1, most // 2)
        self._clock = clock
        self._taken: set[Upload] = set()

    def take(self, caller: str) -> Upload:
        """Take a slot, to be given back when the request is answered.

        If none is free, the slowest upload of a caller who has more slots than this one loses its
        slot. Raises `Unavailable` if no upload is slow, and over the caller's share.
        """
        held = Counter(upload.caller for upload in self._taken)
        if held[caller] >= self._share:
            raise Unavailable(
                f"{held[caller]} of your uploads are under way, as many as one caller may have. "
                "Try again when one is done.",
                slug="overloaded",
                retry_after=1.0,
            )
        if len(self._taken) >= self._most:
            slowest = self._slowest(held, held[caller])
            if slowest is None:
                raise Unavailable(
                    "Too many uploads at once. Try again in a moment.",
                    slug="overloaded",
                    retry_after=1.0,
                )
            slowest.cut_off()
            self._taken.discard(slowest)
        upload = Upload(caller, self._clock())
        self._taken.add(upload)
        return upload

    def give_back(self, upload: Upload) -> None:
        """Free the slot, unless it was lost."""
        self._taken.discard(upload)

    def _slowest(self, held: Counter[str], own: int) -> Upload | None:
        now = self._clock()
        slow = [
            upload
            for upload in self._taken
            if upload.arriving
            and held[upload.caller] > own
            and now - upload.began >= self._grace_s
            and upload.pace(now) < _SLOW
        ]
        return min(
            slow, key=lambda one: (-held[one.caller], one.pace(now), one.began), default=None
        )
