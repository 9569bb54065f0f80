"""A service whose galleries are searched in Milvus, over HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from service.foundation.settings import Settings
from service.gallery.tables import IndexCollectionRow
from service.http.resources import MilvusTrouble, open_collections, open_engine
from service.storage.encryption import new_secret
from tests.service.requests import enrol, identify, problem, verify
from tests.service.server import Serve
from tests.service.walkers import walk


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def written(engine: Engine) -> bool:
    """Whether what is enrolled has been written to a collection."""
    with Session(engine) as session:
        reached = session.scalar(select(IndexCollectionRow.revision))
    return (reached or 0) >= 2


def test_a_gallery_in_milvus_serves_as_any_other(
    serve: Serve, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(index=f"milvus://{tmp_path / 'vectors.db'}")
    assert enrol(client, "anna", walk(1), metadata='{"view": "000"}').status_code == 201
    assert identify(client, walk(1)).json()["candidates"][0]["subject_id"] == "anna"
    assert enrol(client, "bert", walk(2), metadata='{"view": "090"}').status_code == 201
    wait_for(lambda: written(engine))
    found = identify(client, walk(2), filter='{"view": ["090", "045"]}', explain="true").json()
    assert [one["subject_id"] for one in found["candidates"]] == ["bert"]
    assert found["candidates"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert verify(client, "anna", walk(1)).json()["verified"]

    def refused(*_: Any, **__: Any) -> None:
        raise import_module("pymilvus").MilvusException(code=2, message="Fail connecting to server")

    with monkeypatch.context() as away:
        away.setattr("pymilvus.MilvusClient.search", refused)
        # Until it looks again how far the collection is, the process needs none.
        wait_for(lambda: identify(client, walk(2)).status_code == 503)
        answer = identify(client, walk(2))
        assert problem(answer, 503)["type"] == "/problems/index-unavailable"
        assert int(answer.headers["retry-after"]) >= 1
    wait_for(lambda: identify(client, walk(2)).status_code == 200)

    receipt = client.delete("/subjects/bert").json()
    assert receipt["vectors"] == "deleted"
    assert [one["subject_id"] for one in identify(client, walk(2)).json()["candidates"]] == ["anna"]
    assert client.delete("/galleries/default").json()["vectors"] == "deleted"
    assert identify(client, walk(1)).json()["candidates"] == []


def test_without_milvus_a_receipt_says_nothing_of_it(serve: Serve) -> None:
    client = serve()
    enrol(client, "anna", walk(1))
    assert client.delete("/subjects/anna").json()["vectors"] is None


@pytest.mark.parametrize(
    ("text", "uri", "folder"),
    [
        ("milvus://host", "http://host:19530", None),
        ("milvus://host:123/gaits", "http://host:123/gaits", None),
        ("milvus+tls://host", "https://host:19530", None),
        ("milvus://[::1]:5", "http://[::1]:5", None),
        ("milvus:///data/x.db", "/data/x.db", "/data/x.db"),
    ],
)
def test_where_milvus_is(text: str, uri: str, folder: str | None) -> None:
    address = Settings(index=text).milvus
    assert address is not None
    assert (address.uri, address.folder) == (uri, folder)


@pytest.mark.parametrize(
    "text",
    [
        "milvus",
        "milvus://",
        "milvus:///data/x",
        "milvus:///.db",
        "milvus://u:hush@host",
        "milvus://host?token=hush",
        "milvus://host/a/b",
        "milvus://host:none",
        "milvuss://host",
        "http://host",
        "flat",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings(index=text)
    assert "hush" not in str(refused.value)


def test_a_token_is_shown_nowhere() -> None:
    settings = Settings(index="milvus://host", milvus_token=SecretStr("root:hush"))
    assert "hush" not in repr(settings)


def test_what_is_encrypted_goes_to_milvus_only_if_somebody_says_so(settings: Settings) -> None:
    sealed = settings.model_copy(
        update={"encryption_keys": SecretStr(new_secret()), "index": "milvus://127.0.0.1:1"}
    )
    engine = open_engine(sealed)
    with pytest.raises(MilvusTrouble, match="GAITID_MILVUS_UNENCRYPTED"):
        open_collections(sealed, engine)
    said = sealed.model_copy(update={"milvus_unencrypted": True})
    assert open_collections(said, engine) is not None
    engine.dispose()
