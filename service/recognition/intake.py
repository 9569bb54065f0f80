"""The front half of every request with sequences: decode, prepare, embed, within bounds.

Bounds: at most `max_pending` sequences are anywhere in here, and nobody is let in behind more than
`max_wait` seconds of work; an upload's bytes are read when its turn to be decoded comes, not
before; and of one request's walks only a few wait to be embedded, so that a long one leaves room.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from models.silhouettes.errors import (
    MalformedSequence,
    PoorSequence,
    SequenceError,
    SequenceTooLarge,
    UnsupportedSequence,
)
from models.silhouettes.quality import Quality
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
from service.gallery.records import Embedding, Silhouettes
from service.recognition.decoder_pool import DecoderPool, PreparedWalk, Read, Turn
from service.recognition.load import Load
from service.serving.batching import FrameBatcher

_SHOWN_NAME = 80
_AHEAD = 8  # walks of one request that are prepared and not yet embedded


@dataclass(frozen=True, slots=True)
class Walk:
    """An upload: what to call it in an error, and how to read it."""

    name: str
    read: Read


@dataclass(frozen=True, slots=True)
class EmbeddedWalk:
    """A walk fit for use: silhouettes uint8 [s, 64, 64] and their embedding [p, c]."""

    silhouettes: Silhouettes
    quality: Quality
    embedding: Embedding


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

    async def embed(self, walks: Sequence[Walk], batcher: FrameBatcher) -> list[EmbeddedWalk]:
        """Decode, prepare and embed (in `batcher`) every walk, or raise for those that are no good.

        Raises the `ServiceError` of the first walk that is refused, with a reason for each one
        that is; `Unavailable` when too much is waiting already.
        """
        refused: list[tuple[Walk, SequenceError]] = []
        embedding: list[asyncio.Task[EmbeddedWalk]] = []
        with self._admitted(len(walks)):
            try:
                async with self._decoders.turn() as turn:
                    for walk in walks:
                        await _room(embedding)
                        try:
                            prepared = await self._prepare(turn, walk)
                        except SequenceError as error:
                            refused.append((walk, error))
                            continue
                        if not refused:
                            embedding.append(asyncio.create_task(self._embed(prepared, batcher)))
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

    async def _prepare(self, turn: Turn, walk: Walk) -> PreparedWalk:
        with self._under_way():
            prepared = await turn.prepare(walk.read)
        self._metrics.decode_seconds.observe(prepared.seconds)
        if not turn.is_slow:
            self._load.decoded(prepared.seconds)
        return prepared

    async def _embed(self, walk: PreparedWalk, batcher: FrameBatcher) -> EmbeddedWalk:
        with self._under_way():
            embedding = await batcher.submit(walk.silhouettes)
        return EmbeddedWalk(walk.silhouettes, walk.quality, embedding)

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self._load.walks += 1
        try:
            yield
        finally:
            self._load.walks -= 1


async def _room(embedding: Sequence[asyncio.Task[EmbeddedWalk]]) -> None:
    """Wait until few enough walks wait to be embedded; raises what made one fail."""
    while True:
        waiting = {task for task in embedding if not task.done()}
        for task in embedding:
            if task.done():
                task.result()
        if len(waiting) < _AHEAD:
            return
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)


def refusal(refused: Sequence[tuple[Walk, SequenceError]]) -> ServiceError:
    """One error for all walks that were refused: the first one's kind, every one's reasons."""
    reasons = [reason for walk, error in refused for reason in _reasons(walk, error)]
    walk, error = refused[0]
    detail = f"{shown(walk.name)}: {error}"
    if len(refused) > 1:
        detail += f" ({len(refused)} files were refused; see `errors`)"
    match error:
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


def _reasons(walk: Walk, error: SequenceError) -> list[Reason]:
    name = shown(walk.name)
    if isinstance(error, PoorSequence):
        return [Reason(name, code) for code in error.reasons]
    where = f"{name}: {shown(error.where)}" if error.where else name
    return [Reason(where, error.reason)]


def shown(name: str) -> str:
    """A name from a stranger, fit for an answer: printable and not too long."""
    printable = "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name
    )
    return printable if len(printable) <= _SHOWN_NAME else printable[: _SHOWN_NAME - 1] + "…"
