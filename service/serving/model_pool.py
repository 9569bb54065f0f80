"""The models that a process has loaded: as many as galleries need, within a bound."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from models.card import ModelReference
from models.encoder.encoder import Encoder
from service.foundation.errors import ServiceError, Unavailable
from service.foundation.metrics import Metrics
from service.serving.batching import FrameBatcher
from service.serving.thresholds import ModelInUse

_log = logging.getLogger(__name__)


class ModelUnavailable(Unavailable):
    """A gallery's model cannot be loaded; it says which and what to do."""

    slug = "model-unavailable"


class LoadedModel:
    """A model in memory, which embeds for as long as a lease on it is held."""

    def __init__(self, model: ModelInUse, encoder: Encoder, batcher: FrameBatcher) -> None:
        self.model = model
        self.encoder = encoder
        self.batcher = batcher
        self.leases = 0
        self.retired = False

    @property
    def digest(self) -> str:
        """The checkpoint's."""
        return self.model.digest


class ModelPool:
    """Loaded models by digest; owned by an event loop, on which all methods are called.

    The model it was made with, the deployment's own, stays. Of the others the least recently used
    make room for a new one; a model that a request still uses goes when the request is done.
    """

    def __init__(
        self,
        open_model: Callable[[str], Encoder],
        batcher: Callable[[Encoder], FrameBatcher],
        own: ModelInUse,
        encoder: Encoder,
        metrics: Metrics,
        *,
        most: int,
        dropped: Callable[[LoadedModel], None],
    ) -> None:
        """Keep at most `most` models; `dropped` is told of each that is not held any more.

        `open_model` loads a model by its name; it raises `NotFound`, or `ValueError` for a folder
        that is not a checkpoint.
        """
        self._open = open_model
        self._batcher = batcher
        self._metrics = metrics
        self._most = most
        self._dropped = dropped
        self._loading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._models: OrderedDict[str, LoadedModel] = OrderedDict()
        self.own = LoadedModel(own, encoder, batcher(encoder))

    async def __aenter__(self) -> Self:
        await self.own.batcher.__aenter__()
        self._models[self.own.digest] = self.own
        self._count()
        return self

    async def __aexit__(self, *_: object) -> None:
        for loaded in self._models.values():
            await loaded.batcher.__aexit__(None, None, None)
        await asyncio.gather(*self._closing)

    async def get(self, model: ModelReference | None) -> LoadedModel:
        """The model, loaded if it was not; None is the deployment's own.

        Returns whatever has that name: its digest is another if the checkpoint was replaced on
        disk. Raises `ModelUnavailable`.
        """
        if model is None:
            return self.own
        async with self._loading:  # one at a time, and each once
            loaded = self._models.get(model.digest)
            if loaded is None:
                loaded = await self._load(model.name)
            self._models.move_to_end(loaded.digest)
            return loaded

    def held(self, digest: str) -> LoadedModel | None:
        """The model if it is loaded; asking does not count as use."""
        return self._models.get(digest)

    def digests(self) -> frozenset[str]:
        """Which models are loaded."""
        return frozenset(self._models)

    @property
    def has_room(self) -> bool:
        """Whether a model could be loaded without dropping another."""
        return len(self._models) < self._most

    @contextmanager
    def lease(self, loaded: LoadedModel) -> Iterator[LoadedModel]:
        """Keep a model usable until the block ends, also when it is dropped meanwhile."""
        loaded.leases += 1
        if loaded.digest in self._models:
            self._models.move_to_end(loaded.digest)
        try:
            yield loaded
        finally:
            loaded.leases -= 1
            if loaded.retired and not loaded.leases:
                self._close(loaded)

    def drop(self, digest: str) -> None:
        """Drop a model that no gallery needs; never the deployment's own."""
        loaded = self._models.get(digest)
        if loaded is None or loaded is self.own:
            return
        del self._models[digest]
        loaded.retired = True
        self._dropped(loaded)
        if not loaded.leases:
            self._close(loaded)
        self._count()

    async def _load(self, name: str) -> LoadedModel:
        try:
            encoder = await asyncio.to_thread(self._open, name)
        # RuntimeError: what torch raises where the device has no memory left for it.
        except (ServiceError, ValueError, OSError, RuntimeError) as error:
            _log.error("the model %r cannot be loaded: %s", name, error)
            raise ModelUnavailable(
                f"The model {name!r} cannot be loaded, the service's log says why. Restore it, or "
                "activate another one.",
                retry_after=30.0,
            ) from error
        known = self._models.get(encoder.digest)
        if known is not None:  # under another digest: it was replaced on disk
            return known
        model = ModelInUse(name, encoder.digest, encoder.card.threshold, encoder.card.metric)
        loaded = LoadedModel(model, encoder, self._batcher(encoder))
        await loaded.batcher.__aenter__()
        self._models[loaded.digest] = loaded
        self._make_room(loaded)
        self._count()
        _log.info("loaded the model %r", name)
        return loaded

    def _make_room(self, newest: LoadedModel) -> None:
        idle = [
            loaded.digest
            for loaded in self._models.values()
            if loaded not in (newest, self.own) and not loaded.leases
        ]
        for digest in idle[: max(0, len(self._models) - self._most)]:
            self.drop(digest)

    def _close(self, loaded: LoadedModel) -> None:
        closing = asyncio.ensure_future(loaded.batcher.__aexit__(None, None, None))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _count(self) -> None:
        self._metrics.models_loaded.set(len(self._models))
