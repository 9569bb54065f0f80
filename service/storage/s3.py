"""Objects in an S3 bucket, through `obstore` (the extra `s3`).

Credentials, endpoint, region and style of addresses come from the standard variables AWS_*. They
are in headers of requests only, so that neither addresses nor errors hold a secret.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store

from service.storage.objects import PIECE, AlreadyStored, Listed, NotStored, StoreUnavailable

_PART = 8 << 20  # bytes of an upload's part; S3 takes 10,000 parts
_PARTS_AT_ONCE = 3
_CONNECT_S, _SILENT_S = 3, 15
_RETRIES, _RETRY_S = 5, 15
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_log = logging.getLogger(__name__)


class S3Objects:
    """Objects of one bucket, under a prefix."""

    def __init__(self, bucket: str, prefix: str) -> None:
        """Use the bucket; nothing is asked of it yet. `prefix` may be empty."""
        plain = any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS)
        self._prefix = f"{prefix}/" if prefix else ""
        self._store = S3Store(
            bucket,
            client_options={
                "allow_http": plain,  # for an address that says so
                "connect_timeout": timedelta(seconds=_CONNECT_S),
                "read_timeout": timedelta(seconds=_SILENT_S),
                "timeout": timedelta(hours=1),  # of a whole answer, however large
            },
            retry_config={
                "max_retries": _RETRIES,
                "retry_timeout": timedelta(seconds=_RETRY_S),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=3),
                    "base": 2,
                },
            },
        )

    def write(self, key: str, content: Iterable[bytes]) -> None:
        """One request for a small object, a multipart upload for a large one."""
        pieces = iter(content)
        begin = bytearray()
        for piece in pieces:
            begin += piece
            if len(begin) > _PART:
                break
        with _told(key):
            if len(begin) <= _PART:
                obstore.put(self._store, self._prefix + key, bytes(begin), use_multipart=False)
                return
            obstore.put(
                self._store,
                self._prefix + key,
                chain([bytes(begin)], pieces),
                chunk_size=_PART,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def write_new(self, key: str, content: bytes) -> None:
        """A conditional request (If-None-Match), which the store decides."""
        with _told(key):
            try:
                obstore.put(self._store, self._prefix + key, content, mode="create")
            except AlreadyExistsError as error:
                raise AlreadyStored(key) from error

    def read(self, key: str) -> Iterator[bytes]:
        """The pieces as they arrive."""
        with _told(key):
            answer = obstore.get(self._store, self._prefix + key)
            for piece in answer.stream(min_chunk_size=PIECE):
                yield bytes(piece)

    def list(self, prefix: str) -> Iterator[Listed]:
        """Every page of the listing."""
        with _told(prefix):
            for page in obstore.list(self._store, self._prefix + prefix, chunk_size=1000):
                for meta in page:
                    yield Listed(meta["path"].removeprefix(self._prefix), meta["last_modified"])

    def delete(self, keys: Sequence[str]) -> None:
        """Bulk requests."""
        if keys:
            with _told(keys[0]):
                obstore.delete(self._store, [self._prefix + key for key in keys])


@contextmanager
def _told(key: str) -> Iterator[None]:
    """Turn what the client raises into what `Objects` raise."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotStored(key) from error
    except BaseError as error:
        _log.error("the store failed at %s: %s", key, " ".join(str(error).split())[:500])
        raise StoreUnavailable from error
