"""The use cases of a gallery's export and import."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from tempfile import TemporaryFile
from typing import IO

from service.foundation.errors import NotFound, Unavailable
from service.foundation.settings import Settings
from service.gallery.store import GalleryStore, gallery_exists
from service.serving.registry import ModelRegistry
from service.storage.writers import Writers
from service.transfer.export import stream_gallery
from service.transfer.export_file import EmbeddingShape, ExportFile
from service.transfer.importing import GalleryImport, Imported, Spool

_IN_MEMORY = 2**20  # of a body that arrives, before it goes to the disk


class Portability:
    """Exports galleries, and imports one at a time."""

    def __init__(
        self, settings: Settings, store: GalleryStore, writers: Writers, registry: ModelRegistry
    ) -> None:
        self._settings = settings
        self._store = store
        self._writers = writers
        self._registry = registry
        self._importing = False

    def export(self, gallery: str, *, embeddings: bool) -> Iterator[bytes]:
        """The export in pieces, see `stream_gallery`; raises `NotFound`."""
        return stream_gallery(self._store.engine, gallery, embeddings=embeddings)

    async def put(self, gallery: str, body: AsyncIterator[bytes]) -> Imported:
        """Make a gallery of the export that arrives as `body`.

        The file is kept in the data folder while it is read, under no name: it is gone with this
        process, however that ends.

        Raises:
            Conflict: there is a gallery of this name.
            Unavailable: another import is under way in this process.
            BrokenExport, TooLarge: from the check; nothing was changed.
        """
        await asyncio.to_thread(self._require_free, gallery)
        if self._importing:
            raise Unavailable(
                "Another gallery is being imported. Try again when that is done.",
                slug="overloaded",
                retry_after=10.0,
            )
        self._importing = True
        try:
            with self._unnamed() as file, self._unnamed() as copies:
                await _receive(body, file)
                with await asyncio.to_thread(
                    ExportFile, file, max_frames=self._settings.max_frames
                ) as export:
                    models = await asyncio.to_thread(self._models)
                    new = GalleryImport(
                        self._store.engine, export, models, Spool(copies),
                        adapts=self._settings.adapt,
                    )  # fmt: skip
                    await asyncio.to_thread(new.check)
                    return await self._writers.run(new.add, gallery)
        finally:
            self._importing = False

    def _models(self) -> Mapping[str, EmbeddingShape]:
        """What each registered checkpoint makes of a sequence, by digest."""
        return {
            model.digest: EmbeddingShape(model.card.parts, model.card.channels)
            for model in self._registry.all()
        }

    def _require_free(self, gallery: str) -> None:
        try:
            self._store.head(gallery)
        except NotFound:
            return
        raise gallery_exists(gallery)

    def _unnamed(self) -> IO[bytes]:
        return TemporaryFile(dir=self._settings.data_dir)


async def _receive(body: AsyncIterator[bytes], file: IO[bytes]) -> None:
    """Write the body to the disk without blocking the event loop."""
    pieces: list[bytes] = []
    held = 0
    async for piece in body:
        pieces.append(piece)
        held += len(piece)
        if held >= _IN_MEMORY:
            await asyncio.to_thread(file.writelines, pieces)
            pieces, held = [], 0
    await asyncio.to_thread(file.writelines, pieces)
    await asyncio.to_thread(file.flush)
