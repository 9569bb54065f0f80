"""Collections of index vectors in Milvus: the only module that knows its client.

A collection has a row a walk: the sequence's id, hashes of its metadata to filter by, and its index
vector. It finds a shortlist and nothing else; who is enrolled, and how alike they are, the database
says (`shared_index`).
"""

from __future__ import annotations

import hashlib
import json
import logging.config
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from service.foundation.errors import Unavailable
from service.foundation.milvus_address import MilvusAddress
from service.gallery.records import Metadata, Scalar
from service.gallery.roster import ID_BYTES, Filter

_configure = logging.config.dictConfig
# At its import pymilvus closes every log handler that there is.
logging.config.dictConfig = cast(Any, lambda _config: None)
try:
    from pymilvus import DataType, MilvusClient, MilvusException
finally:
    logging.config.dictConfig = _configure

LISTS = 1024
PROBED = 0.34  # of the lists, by a search
REFINED = 6.0  # times as many as asked for, that eight bits a number rank after one
_MOST = 16_384  # rows that Milvus returns at once
_PIECE_BYTES = 8 * 2**20  # of vectors, in one call: Milvus takes 64 MB
_SEARCH_S = 5.0  # that a call of a search may take
_WRITE_S = 30.0
_BUILD_S = 120.0  # that making or loading a collection may take
_HASH = 16  # digits of a fact's hash
_FACTS = 64  # of a walk: metadata has no more
_NOT_FOUND = 100  # Milvus's code of a collection that is not there
_LOST = 2  # of one that cannot be reached
_REST_S = 1.0  # after it could not be reached: calls fail at once meanwhile
_Answer = TypeVar("_Answer")
_log = logging.getLogger(__name__)

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs what it raises, at length


class CollectionGone(Exception):
    """Milvus has no collection of that name: it, or its volume, was dropped."""


class Nearest(NamedTuple):
    """What a collection finds: the ids of sequences, and whether it may have more."""

    ids: set[str]
    more: bool


class Milvus:
    """A connection to Milvus, made when it is first needed; it heals by itself.

    Safe for use by several threads. Every call raises `Unavailable` while Milvus is away.
    """

    def __init__(self, address: MilvusAddress, token: str = "") -> None:
        """Nothing is connected yet."""
        self._address = address
        self._token = token
        self._lock = threading.Lock()
        self._client: MilvusClient | None = None
        self._index: dict[str, Any] = {}  # what suits the server
        self._rest_until = 0.0

    @property
    def compacts(self) -> bool:
        """Whether deleted rows can be compacted away; milvus-lite does so when it likes."""
        return self._address.folder is None

    def create(self, name: str, vector: int) -> None:
        """Make an empty collection of vectors of so many numbers, in the place of any."""
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=ID_BYTES)
        schema.add_field(
            "facts",
            DataType.ARRAY,
            element_type=DataType.VARCHAR,
            max_capacity=_FACTS,
            max_length=_HASH,
        )
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vector)

        def make(client: MilvusClient) -> None:
            params = client.prepare_index_params()
            params.add_index("vector", metric_type="IP", **self._index)
            client.drop_collection(name, timeout=_BUILD_S)
            client.create_collection(name, schema=schema, index_params=params, timeout=_BUILD_S)

        self._call(make)

    def drop(self, name: str) -> None:
        """Remove a collection, if it is there."""
        self._call(lambda client: client.drop_collection(name, timeout=_BUILD_S))

    def names(self) -> list[str]:
        """Every collection of the database."""
        return self._call(lambda client: list(client.list_collections()))

    def count(self, name: str) -> int:
        """How many rows there are, everything written included."""
        rows = self._call(
            lambda client: client.query(
                name,
                filter="",
                output_fields=["count(*)"],
                consistency_level="Strong",
                timeout=_WRITE_S,
            )
        )
        return int(rows[0]["count(*)"])

    def write(
        self,
        name: str,
        sequence_ids: Sequence[str],
        metadata: Sequence[Metadata],
        vectors: NDArray[np.float32],
    ) -> None:
        """Add rows of index vectors [n, d], or put them in the place of those that there are."""
        size = max(1, _PIECE_BYTES // (4 * max(1, vectors.shape[1])))
        for start in range(0, len(sequence_ids), size):
            rows = [
                {"id": sequence_id, "facts": facts(said), "vector": vector}
                for sequence_id, said, vector in zip(
                    sequence_ids[start : start + size],
                    metadata[start : start + size],
                    vectors[start : start + size],
                    strict=True,
                )
            ]
            self._call(
                partial(MilvusClient.upsert, collection_name=name, data=rows, timeout=_WRITE_S)
            )

    def delete(self, name: str, sequence_ids: Sequence[str]) -> None:
        """Delete rows; those that are not there are ignored."""
        for start in range(0, len(sequence_ids), _MOST):
            some = list(sequence_ids[start : start + _MOST])
            self._call(
                partial(MilvusClient.delete, collection_name=name, ids=some, timeout=_WRITE_S)
            )

    def timestamp(self) -> int:
        """A moment after everything that this process wrote; 0 where nothing needs waiting for."""
        if self._address.folder is not None:
            return 0
        return int(
            self._call(lambda client: client._get_connection().alloc_timestamp(timeout=_SEARCH_S))
        )

    def compact(self, name: str) -> None:
        """Write segments anew without what was deleted, in the background."""

        def compact(client: MilvusClient) -> None:
            client.flush(name, timeout=_BUILD_S)
            client.compact(name, timeout=_WRITE_S)

        self._call(compact)

    def nearest(
        self,
        name: str,
        vectors: NDArray[np.float32],
        limit: int,
        where: Filter | None,
        written: int,
    ) -> Nearest:
        """The rows nearest to any of the vectors [m, d], by inner product: `limit` of each.

        Args:
            name: of the collection.
            vectors: of the probes.
            limit: 16,384 at most are returned.
            where: what the rows' metadata must say.
            written: the moment whose writes must be found, of `timestamp`.
        """
        limit = min(limit, _MOST)
        condition = "" if not where else expression(where)
        found = self._search(name, vectors, limit, condition, written, PROBED)
        if condition and any(len(ids) < limit for ids in found):
            # The nearest lists may have few that the filter lets through.
            found = self._search(name, vectors, limit, condition, written, 1.0)
        ids = {sequence_id for one in found for sequence_id in one}
        return Nearest(ids, limit < _MOST and any(len(one) == limit for one in found))

    def _search(
        self,
        name: str,
        vectors: NDArray[np.float32],
        limit: int,
        condition: str,
        written: int,
        share: float,
    ) -> list[list[str]]:
        params: dict[str, Any] = {}
        if "params" in self._index:
            params["nprobe"] = max(1, round(share * LISTS))
            if self._index["params"].get("refine"):
                params["refine_k"] = REFINED
        how: dict[str, Any] = {"consistency_level": "Strong"}
        if written:  # waits for that moment only, not for now
            how = {"consistency_level": "Customized", "guarantee_timestamp": written}
        answer = self._call(
            lambda client: client.search(
                name,
                list(vectors),
                filter=condition,
                limit=limit,
                search_params={"metric_type": "IP", "params": params},
                timeout=_SEARCH_S,
                **how,
            )
        )
        return [[hit["id"] for hit in hits] for hits in answer]

    def _call(self, work: Callable[[MilvusClient], _Answer]) -> _Answer:
        trouble: Exception
        try:
            return work(self._connected())
        except MilvusException as error:
            if error.code == _NOT_FOUND:
                raise CollectionGone from error
            trouble, lost = error, error.code == _LOST
        except (grpc.RpcError, OSError) as error:
            trouble, lost = error, True
        if lost:
            self._rest_until = time.monotonic() + _REST_S
        _log.warning("Milvus failed: %s", str(trouble).partition("\n")[0])
        raise _away() from trouble

    def _connected(self) -> MilvusClient:
        if time.monotonic() < self._rest_until:
            raise _away()
        with self._lock:
            if self._client is None:
                client = MilvusClient(
                    self._address.uri, token=self._token, timeout=_SEARCH_S, dedicated=True
                )
                self._index = _suited(client.get_server_version(timeout=_SEARCH_S))
                self._client = client
            return self._client

    def close(self) -> None:
        """Close the connection; of milvus-lite also the folder."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None
        if self._address.folder is not None:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(self._address.folder)


def facts(metadata: Metadata) -> list[str]:
    """What the metadata say, each thing as a hash: Milvus learns no names of places or people.

    As in JSON 1 is 1.0, but not true.
    """
    return [_fact(name, value) for name, value in metadata.items()][:_FACTS]


def expression(where: Filter) -> str:
    """A filter in Milvus's language; only hashes are put into it."""
    conditions = []
    for name, value in where.items():
        values = value if isinstance(value, tuple) else (value,)
        conditions.append(
            f"ARRAY_CONTAINS_ANY(facts, {json.dumps([_fact(name, one) for one in values])})"
        )
    return " and ".join(conditions)


def _fact(name: str, value: Scalar) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return hashlib.sha256(json.dumps([name, value]).encode()).hexdigest()[:_HASH]


def _suited(version: str) -> dict[str, Any]:
    """The index of vectors that a server of this version makes; milvus-lite compares them all."""
    if "milvus_lite" in version:
        return {"index_type": "FLAT"}
    numbers = version.removeprefix("v").split("-")[0].split(".")
    params: dict[str, Any] = {"nlist": LISTS}
    if [int(number) for number in numbers[:2]] < [2, 6]:
        return {"index_type": "IVF_SQ8", "params": params}
    return {"index_type": "IVF_RABITQ", "params": {**params, "refine": True, "refine_type": "SQ8"}}


def _away() -> Unavailable:
    return Unavailable(
        "The vector database that galleries are searched in cannot be reached, and nothing was "
        "changed. The service's log says why.",
        slug="index-unavailable",
        retry_after=5.0,
    )
