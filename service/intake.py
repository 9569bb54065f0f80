"""The front half of every request with sequences: decode, prepare, embed, within bounds.

Bounds: at most `max_pending` sequences are anywhere in here; `decode_workers` decode at once, so
decoded frames take at most `decode_workers` times the limit of one sequence; an upload's bytes are
read when its turn to be decoded comes, not before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from models.silhouettes.budget import DecodeLimits
from models.silhouettes.decode import decode
from models.silhouettes.errors import (
    MalformedSequence,
    PoorSequence,
    SequenceError,
    SequenceTooLarge,
    UnsupportedSequence,
)
from models.silhouettes.prepare import prepare
from service.batching import FrameBatcher
from service.errors import (
    Invalid,
    Malformed,
    Reason,
    ServiceError,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from service.gallery.records import Embedding, SequenceQuality, Silhouettes
from service.metrics import Metrics

_SHOWN_NAME = 80


@dataclass(frozen=True, slots=True)
class Walk:
    """An upload: what to call it in an error, and how to read it (called in a worker thread)."""

    name: str
    read: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class EmbeddedWalk:
    """A walk fit for use: silhouettes uint8 [s, 64, 64] and their embedding [p, c]."""

    silhouettes: Silhouettes
    quality: SequenceQuality
    embedding: Embedding


@dataclass(frozen=True, slots=True)
class _Prepared:
    silhouettes: Silhouettes
    quality: SequenceQuality


class Intake:
    """Turns uploads into embeddings; owned by the event loop it was made in."""

    def __init__(
        self,
        decoders: ThreadPoolExecutor,
        limits: DecodeLimits,
        metrics: Metrics,
        *,
        clean: bool,
        max_pending: int,
    ) -> None:
        self._decoders = decoders
        self._limits = limits
        self._metrics = metrics
        self._clean = clean
        self._max_pending = max_pending
        self._pending = 0

    async def embed(self, walks: Sequence[Walk], batcher: FrameBatcher) -> list[EmbeddedWalk]:
        """Decode, prepare and embed (in `batcher`) every walk, or raise for those that are no good.

        Raises the `ServiceError` of the first walk that is refused, with a reason for each one
        that is; `Unavailable` when too much is waiting already.
        """
        with self._admitted(len(walks)):
            prepared = await self._prepare(walks)
            tasks = [asyncio.ensure_future(batcher.submit(item.silhouettes)) for item in prepared]
            try:
                embeddings = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        return [
            EmbeddedWalk(item.silhouettes, item.quality, embedding)
            for item, embedding in zip(prepared, embeddings, strict=True)
        ]

    @contextmanager
    def _admitted(self, count: int) -> Iterator[None]:
        # A request larger than the bound is let in when it is alone.
        if self._pending and self._pending + count > self._max_pending:
            raise Unavailable(
                "The service is busy with other sequences. Try again in a moment.",
                slug="overloaded",
                retry_after=1.0,
            )
        self._pending += count
        self._metrics.pending.set(self._pending)
        try:
            yield
        finally:
            self._pending -= count
            self._metrics.pending.set(self._pending)

    async def _prepare(self, walks: Sequence[Walk]) -> list[_Prepared]:
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(self._decoders, self._prepare_one, walk) for walk in walks]
        try:
            outcomes = await asyncio.gather(*futures, return_exceptions=True)
        finally:
            for future in futures:  # a cancelled request's walks leave the queue
                future.cancel()
        prepared: list[_Prepared] = []
        refused: list[tuple[Walk, SequenceError]] = []
        for walk, outcome in zip(walks, outcomes, strict=True):
            if isinstance(outcome, _Prepared):
                prepared.append(outcome)
            elif isinstance(outcome, SequenceError):
                refused.append((walk, outcome))
            else:
                raise outcome
        if refused:
            raise refusal(refused)
        return prepared

    def _prepare_one(self, walk: Walk) -> _Prepared:
        started = perf_counter()
        frames = decode(walk.read(), self._limits)
        prepared = prepare(frames, clean=self._clean)
        self._metrics.decode_seconds.observe(perf_counter() - started)
        quality = prepared.quality
        return _Prepared(
            prepared.silhouettes,
            SequenceQuality(
                score=quality.score,
                issues=quality.issues,
                frames_in=quality.frames_in,
                dropped=quality.dropped,
            ),
        )


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
