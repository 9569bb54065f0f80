"""From the pictures of a clip to the walks of everybody in it, each as it ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from models.footage.background import Background
from models.footage.pictures import Picture
from models.footage.segmentation import Segmenter
from models.footage.tracking import Track, Tracker
from models.footage.walks import LONGEST_S, FoundWalk, Outcome, cut_walks

_NOBODY = Outcome()
_LEARN_S = 0.1  # from one picture to the next that the background is learned from


class WalkFinder:
    """Finds walks in one clip, in memory that its length has no part in.

    Attributes:
        outcome: what became of everybody's frames so far.
        people: how many were in full view, each time they came.
    """

    def __init__(
        self, segmenter: Segmenter, outcome: Outcome = _NOBODY, people: int = 0, tracks: int = 0
    ) -> None:
        """`outcome`, `people` and `tracks` are those of the clip before the first picture."""
        self.outcome = outcome
        self.people = people
        self._tracker = Tracker(segmenter, tracks)
        self._background = Background() if segmenter.uses_background else None
        self._learnt_s = -_LEARN_S
        self._scale = 1.0

    def find(self, pictures: Iterable[Picture]) -> Iterator[FoundWalk]:
        """The walks of a clip, each as soon as it has ended."""
        for picture in pictures:
            yield from self.see(picture)
        yield from self.finish()

    def see(self, picture: Picture) -> list[FoundWalk]:
        """Look at the next picture; returns the walks that ended."""
        self._scale = picture.scale
        ended = self._tracker.see(picture)
        if self._background is not None and picture.seconds - self._learnt_s >= _LEARN_S:
            self._learnt_s = picture.seconds
            self._background.see(picture.image, (track.box for track in self._tracker.tracks))
        found = [walk for track in ended for walk in self._cut(track, over=True)]
        for track in self._tracker.tracks:
            seen = track.observations
            if seen and picture.seconds - seen[0].seconds > LONGEST_S:
                found += self._cut(track, over=False)
        return found

    @property
    def tracks(self) -> int:
        """How many tracks have begun."""
        return self._tracker.numbers

    @property
    def follows(self) -> bool:
        """Whether anybody is followed now."""
        return bool(self._tracker.tracks)

    def finish(self) -> list[FoundWalk]:
        """The walks that are under way end here, and the tracks; the clip may go on."""
        return [walk for track in self._tracker.finish() for walk in self._cut(track, over=True)]

    def _cut(self, track: Track, *, over: bool) -> list[FoundWalk]:
        self.people += over and track.whole
        walks, outcome = cut_walks(track, self._background, self._scale)
        self.outcome += outcome
        track.observations = []
        return walks
