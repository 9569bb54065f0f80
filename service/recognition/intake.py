"""Decode, prepare and embed the uploads of a request, within bounds.

At most `max_pending` sequences are in here at once. A request is refused if more than `max_wait`
seconds of work are ahead of it. The bytes of an upload are read when its turn to be decoded comes.
Only a few walks of one request wait to be embedded, so that a long request leaves room for others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from models.footage.upload import NoWalker, SeenTrack, SeveralPeople
from models.silhouettes.errors import (
    MalformedSequence,
    PoorSequence,
    SequenceError,
    SequenceTooLarge,
    UnsupportedSequence,
)
from service.foundation.errors import (
    Invalid,
    Malformed,
    Reason,
    ServiceError,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from service.foundation.metrics import Metrics
from service.foundation.tracing import span
from service.gallery.records import Walk
from service.recognition.decoder_pool import UNSAID, Asked, Decoded, DecoderPool, Read, Turn
from service.recognition.load import Load
from service.serving.batching import FrameBatcher

_SHOWN_NAME = 80
_AHEAD = 8  # walks of one request that are prepared and not yet embedded


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was sent: what to call it in an error, how to read it, what is asked of it."""

    name: str
    read: Read
    asked: Asked = UNSAID


class SeveralTracks(Invalid):
    """Several people walk in footage; `tracks` lists them for the next request."""

    slug, title = "several-people", "Several people walk in the footage"

    def __init__(self, detail: str, *reasons: Reason, tracks: Sequence[SeenTrack]) -> None:
        super().__init__(detail, *reasons)
        self.tracks = tracks

    def members(self) -> Mapping[str, Any]:
        """The tracks, ready for JSON."""
        return {"tracks": [asdict(track) for track in self.tracks]}


class Intake:
    """Turns uploads into embeddings; owned by the event loop it was made in."""

    def __init__(
        self,
        decoders: DecoderPool,
        load: Load,
        metrics: Metrics,
        *,
        max_pending: int,
        max_wait: float,
    ) -> None:
        self._decoders = decoders
        self._load = load
        self._metrics = metrics
        self._max_pending = max_pending
        self._max_wait = max_wait
        self._pending = 0

    async def embed(self, uploads: Sequence[Upload], batcher: FrameBatcher) -> list[Walk]:
        """Decode, prepare and embed (in `batcher`) every upload.

        Raises the `ServiceError` of the first upload that is refused, with a reason for each one
        that is; `Unavailable` when too much is waiting already.
        """
        refused: list[tuple[Upload, SequenceError]] = []
        embedding: list[asyncio.Task[Walk]] = []
        with self._admitted(len(uploads)):
            try:
                async with self._decoders.turn() as turn:
                    for upload in uploads:
                        await _room(embedding)
                        try:
                            decoded = await self._prepare(turn, upload)
                        except SequenceError as error:
                            refused.append((upload, error))
                            continue
                        if not refused:
                            work = self._embed(shown(upload.name), decoded, batcher)
                            embedding.append(asyncio.create_task(work))
                if refused:
                    raise refusal(refused)
                return await asyncio.gather(*embedding)
            finally:
                for task in embedding:
                    task.cancel()
                await asyncio.gather(*embedding, return_exceptions=True)

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        # A request larger than the bound is let in when it is alone.
        full = self._pending > 0 and self._pending + count > self._max_pending
        wait = self._load.seconds
        if full or wait > self._max_wait:
            raise Unavailable(
                "The service is busy with other sequences. Try again in a moment.",
                slug="overloaded",
                retry_after=max(1.0, wait),
            )
        self._pending += count
        self._metrics.pending.set(self._pending)
        try:
            yield
        finally:
            self._pending -= count
            self._metrics.pending.set(self._pending)

    async def _prepare(self, turn: Turn, upload: Upload) -> Decoded:
        with self._under_way(), span("decode"):
            decoded = await turn.prepare(upload.read, upload.asked)
        self._metrics.decode_seconds.observe(decoded.seconds)
        if not turn.is_slow and decoded.origin is None:
            self._load.decoded(decoded.seconds)
        return decoded

    async def _embed(self, name: str, decoded: Decoded, batcher: FrameBatcher) -> Walk:
        with self._under_way():
            embedding = await batcher.submit(decoded.prepared.silhouettes)
        return Walk(name, *decoded.prepared, embedding, decoded.origin)

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self._load.walks += 1
        try:
            yield
        finally:
            self._load.walks -= 1


async def _room(embedding: Sequence[asyncio.Task[Walk]]) -> None:
    """Wait until few enough walks wait to be embedded; raises what made one fail."""
    while True:
        waiting = {task for task in embedding if not task.done()}
        for task in embedding:
            if task.done():
                task.result()
        if len(waiting) < _AHEAD:
            return
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)


def refusal(refused: Sequence[tuple[Upload, SequenceError]]) -> ServiceError:
    """One error for all uploads that were refused: the first one's kind, every one's reasons."""
    reasons = [reason for upload, error in refused for reason in _reasons(upload, error)]
    upload, error = refused[0]
    detail = f"{shown(upload.name)}: {error}"
    if len(refused) > 1:
        detail += f" ({len(refused)} files were refused; see `errors`)"
    match error:
        case SeveralPeople():
            return SeveralTracks(detail, *reasons, tracks=error.tracks)
        case NoWalker():
            return Invalid(detail, *reasons, slug="no-walker")
        case PoorSequence():
            return Invalid(detail, *reasons, slug="poor-sequence")
        case SequenceTooLarge():
            return TooLarge(detail, *reasons, slug="sequence-too-large")
        case UnsupportedSequence():
            return UnsupportedMedia(detail, *reasons)
        case MalformedSequence():
            return Malformed(detail, *reasons, slug="malformed-sequence")
        case _:
            return Invalid(detail, *reasons)


def _reasons(upload: Upload, error: SequenceError) -> list[Reason]:
    name = shown(upload.name)
    if isinstance(error, PoorSequence):
        return [Reason(name, code) for code in error.reasons]
    if isinstance(error, SeveralPeople):
        return [Reason(name, "several_people")]
    if isinstance(error, NoWalker):
        return [Reason(name, "no_walker")]
    where = f"{name}: {shown(error.where)}" if error.where else name
    return [Reason(where, error.reason)]


def shown(name: str) -> str:
    """A name that a client chose, fit for an answer: printable and not too long."""
    printable = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name
    )
    return printable if len(printable) <= _SHOWN_NAME else printable[: _SHOWN_NAME - 1] + "…"
