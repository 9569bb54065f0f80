"""The galleries a process holds in memory: the most recently searched ones, within a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from service.gallery.followed import FollowedGallery


class GalleryCache:
    """Followed galleries by gallery id; the least recently used make room.

    A gallery that is dropped while somebody searches it stays alive until that search is done. The
    gallery asked for last is kept whatever its size.
    """

    def __init__(self, make: Callable[[str], FollowedGallery], *, max_bytes: int) -> None:
        self._make = make
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._galleries: OrderedDict[str, FollowedGallery] = OrderedDict()

    def get(self, gallery_id: str) -> FollowedGallery:
        """The gallery, new and empty (it follows at its first search) if it was not held."""
        with self._lock:
            gallery = self._galleries.get(gallery_id)
            if gallery is None:
                gallery = self._galleries[gallery_id] = self._make(gallery_id)
            self._galleries.move_to_end(gallery_id)
            self._make_room()
            return gallery

    def held(self, gallery_id: str) -> FollowedGallery | None:
        """The gallery if it is in memory; asking does not count as use."""
        with self._lock:
            return self._galleries.get(gallery_id)

    def drop(self, gallery_id: str) -> None:
        """Forget a gallery that was erased."""
        with self._lock:
            self._galleries.pop(gallery_id, None)

    def __len__(self) -> int:
        return len(self._galleries)

    def _make_room(self) -> None:
        held = sum(gallery.nbytes for gallery in self._galleries.values())
        while held > self._max_bytes and len(self._galleries) > 1:
            _, oldest = self._galleries.popitem(last=False)
            held -= oldest.nbytes
