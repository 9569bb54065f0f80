"""The live indexes that a process keeps in memory: the most recently used, within a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from service.gallery.ranking import GallerySearch


class GalleryCache:
    """Live indexes by gallery id and checkpoint digest; the least recently used make room.

    While a gallery's model changes, and as long as there is room afterwards, it has indexes of two
    checkpoints. An index that is dropped during a search stays alive until that search is done. The
    index asked for last is kept whatever its size.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._galleries: OrderedDict[tuple[str, str], GallerySearch] = OrderedDict()

    def get(self, gallery_id: str, digest: str, make: Callable[[], GallerySearch]) -> GallerySearch:
        """The index of a gallery under a checkpoint; if there is none, a new and empty one."""
        with self._lock:
            gallery = self._galleries.get((gallery_id, digest))
        # It reads the database, which must not keep others from their galleries.
        made = make() if gallery is None else gallery
        with self._lock:
            gallery = self._galleries.setdefault((gallery_id, digest), made)
            self._galleries.move_to_end((gallery_id, digest))
            self._make_room()
            return gallery

    def replace(self, gallery_id: str, digest: str, gallery: GallerySearch) -> None:
        """Keep this index from now on, in the place of the one that there is."""
        with self._lock:
            self._galleries[gallery_id, digest] = gallery
            self._galleries.move_to_end((gallery_id, digest))  # not what makes room for itself
            self._make_room()

    def held(self, gallery_id: str) -> dict[str, GallerySearch]:
        """A gallery's indexes by digest; asking does not count as use."""
        with self._lock:
            return {
                digest: gallery
                for (held_id, digest), gallery in self._galleries.items()
                if held_id == gallery_id
            }

    def has_room_for(self, galleries: Iterable[GallerySearch]) -> bool:
        """Whether as much as these take could be kept as well."""
        wanted = sum(gallery.nbytes for gallery in galleries)
        with self._lock:
            held = sum(gallery.nbytes for gallery in self._galleries.values())
        return held + wanted <= self._max_bytes

    def drop(self, gallery_id: str, digest: str | None = None) -> None:
        """Forget a gallery's indexes, or the one of a checkpoint."""
        with self._lock:
            for key in list(self._galleries):
                if key[0] == gallery_id and digest in (None, key[1]):
                    del self._galleries[key]

    def drop_model(self, digest: str) -> None:
        """Forget what a checkpoint made of any gallery."""
        with self._lock:
            for key in list(self._galleries):
                if key[1] == digest:
                    del self._galleries[key]

    def __len__(self) -> int:
        return len(self._galleries)

    def _make_room(self) -> None:
        held = sum(gallery.nbytes for gallery in self._galleries.values())
        while held > self._max_bytes and len(self._galleries) > 1:
            _, oldest = self._galleries.popitem(last=False)
            held -= oldest.nbytes
