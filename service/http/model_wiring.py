"""What is made for each model that is loaded: batching, indexes, re-embedding."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TYPE_CHECKING

import faiss
import numpy as np
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from models.card import Metric
from models.encoder.encoder import Encoder
from service.foundation.errors import Unavailable
from service.foundation.metrics import Metrics
from service.foundation.settings import Settings
from service.gallery.faiss_index import FaissIndex
from service.gallery.growing_index import GrowingIndex
from service.gallery.index import GalleryIndex
from service.gallery.live_index import LiveIndex, stored_embeddings
from service.gallery.memory_index import MemoryIndex
from service.gallery.ranking import GallerySearch
from service.gallery.records import Silhouettes
from service.gallery.roster import Roster
from service.gallery.scenes import Scene, compared, scene_in
from service.gallery.snapshots import Snapshots
from service.gallery.store import GalleryStore
from service.gallery.tables import GalleryRow
from service.recognition.load import Load
from service.serving.batching import FrameBatcher
from service.serving.model_pool import LoadedModel
from service.serving.reembedding import Reembedding

if TYPE_CHECKING:  # what comes with an extra
    from service.gallery.index_collections import IndexCollections


class ShuttingDown(Unavailable):
    """The service is shutting down and embeds nothing more."""

    def __init__(self) -> None:
        super().__init__("The service is shutting down.", retry_after=5.0)


@dataclass(frozen=True, slots=True)
class ModelWiring:
    """Makes what each loaded model needs.

    Attributes:
        embedding: one thread for all models, because they share the device.
        stopping: set when the service shuts down; from then on re-embedding raises `ShuttingDown`.
        collections: of the vector database, if galleries are searched there.
    """

    settings: Settings
    store: GalleryStore
    metrics: Metrics
    load: Load
    embedding: ThreadPoolExecutor
    stopping: Event
    collections: IndexCollections | None = None

    def batcher(self, encoder: Encoder) -> FrameBatcher:
        """Make the queue of walks that requests wait to have embedded."""
        settings = self.settings
        return FrameBatcher(
            encoder.encode,
            self.embedding,
            max_frames=settings.batch_frames,
            max_wait=settings.batch_wait_ms / 1000,
            max_pending=max(settings.max_pending, settings.max_sequences_per_request),
            under_way=lambda: self.load.walks,
            observe_queue=self.metrics.queue_seconds.observe,
            observe_run=self._observe_run,
        )

    def reembedding(self, loaded: LoadedModel) -> Reembedding:
        """Make what embeds stored walks with a model."""

        def encode(walks: Sequence[Silhouettes]) -> NDArray[np.float32]:
            self._go_on()
            return loaded.encoder.encode(walks)

        return Reembedding(self.store, encode, loaded.digest)

    def index(self, gallery_id: str, loaded: LoadedModel) -> GallerySearch:
        """Make the index of a gallery under a model and its scene transform, still empty.

        Raises what `scene_in` raises.
        """
        with Session(self.store.engine) as session:
            scene = scene_in(session, gallery_id, loaded.digest)
            gallery = session.get(GalleryRow, gallery_id)
            epoch = 0 if gallery is None else gallery.index_epoch
        card = loaded.encoder.card
        as_kept = np.zeros((1, card.parts, card.channels), np.float32)
        seen, metric = compared(as_kept, card.metric, scene)
        shape = (seen.shape[1], seen.shape[2])
        if self.collections is not None:
            from service.gallery.index_collections import Serves
            from service.gallery.shared_index import SharedIndex

            scene_version = None if scene is None else scene.version
            return SharedIndex(
                Serves(gallery_id, loaded.digest, scene_version, epoch),
                shape,
                metric,
                self.store,
                self.collections,
                self.reembedding(loaded).some,
                scene=scene,
                shortlist=self.settings.shortlist,
                longest_tail=self.settings.exact_below,
                go_on=self._go_on,
            )
        roster = Roster()
        return LiveIndex(
            gallery_id,
            loaded.digest,
            self._index(loaded.encoder, shape, metric, scene, roster),
            self.store,
            self.reembedding(loaded).some,
            scene=scene,
            roster=roster,
            snapshots=Snapshots(self.store.engine, self.settings.indexes_dir),
        )

    def _index(
        self,
        encoder: Encoder,
        shape: tuple[int, int],
        metric: Metric,
        scene: Scene | None,
        roster: Roster,
    ) -> GalleryIndex:
        parts, channels = shape
        shortlist = self.settings.shortlist
        if self.settings.index == "memory":
            return MemoryIndex(parts, channels, metric)
        if encoder.device.type == "cuda" and faiss.get_num_gpus() > 0:
            return FaissIndex(parts, channels, metric, shortlist=shortlist, gpu=True)
        return GrowingIndex(
            parts,
            channels,
            metric,
            partial(
                stored_embeddings,
                self.store,
                encoder.digest,
                (encoder.card.parts, encoder.card.channels),
                scene,
                roster,
            ),
            shortlist=shortlist,
            exact_below=self.settings.exact_below,
            # What the database has encrypted is written nowhere in plain.
            folder=None if self.store.encrypted else self.settings.data_dir,
        )

    def _go_on(self) -> None:
        if self.stopping.is_set():
            raise ShuttingDown

    def _observe_run(self, seconds: float, walks: int) -> None:
        self.metrics.embed_seconds.observe(seconds)
        self.load.embedded(seconds, walks)
