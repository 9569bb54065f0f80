"""Corrections in the database: what indexes, exports and enrolments under way make of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, select, update
from sqlalchemy.orm import Session

from service.foundation.errors import Conflict, CutOff, NotFound
from service.gallery.editing import Corrected, edit_sequence, edit_subject
from service.gallery.listing import subject, subjects
from service.gallery.store import GalleryStore
from service.gallery.tables import EmbeddingRow, ErasedSequenceRow, SequenceRow
from service.privacy.erasure_transactions import erase_sequence, erase_subject
from service.storage.database import writing
from service.transfer.export import stream_gallery
from tests.service.gallery.test_live_index import Process, embedding, enrol, walk
from tests.service.jobs.galleries import add

Made = Corrected[Any]


def ignore(_session: Session, _corrected: Made) -> None:
    """Nothing else belongs into the transaction."""


def test_an_index_replaces_what_was_corrected_and_a_late_one_reads_it_once(engine: Engine) -> None:
    process = Process(engine)
    store = process.store
    sequence_id = add(store, "default", "anna", [walk(1)], "d", {"view": "000"})[0].sequence_id
    enrol(store, "bert", 2)
    gallery_id, newest, _ = store.head("default")
    followed = process.make(gallery_id)

    def found(view: str) -> list[str]:
        _, revision, _ = store.head("default")
        late = process.make(gallery_id)
        answers = [
            [
                one.subject_id
                for one in index.search(revision, embedding(1), 9, where={"view": view})
            ]
            for index in (followed, late)
        ]
        assert answers[0] == answers[1]
        assert followed.same_as(late)
        return answers[0]

    assert found("000") == ["anna"]
    for number in range(3):  # again and again
        view = f"{number}"
        edit_sequence(engine, ignore, sequence_id=sequence_id, metadata={"view": view})
        assert (found("000"), found(view)) == ([], ["anna"])
    edit_sequence(engine, ignore, sequence_id=sequence_id, subject_id="bert")
    assert found("2") == ["bert"]
    assert followed.subjects == 1
    edit_subject(engine, ignore, gallery="default", subject_id="bert", new_id="b")
    assert found("2") == ["b"]
    erase_sequence(engine, sequence_id)
    assert found("2") == []
    assert store.head("default")[1] == newest + 6
    with Session(engine) as session:
        assert session.get_one(ErasedSequenceRow, (gallery_id, sequence_id)).revision == newest + 6


def test_a_long_history_with_corrections_is_followed_in_pieces(engine: Engine) -> None:
    process = Process(engine, piece=2)
    for person in range(5):
        enrol(process.store, f"s{person}", person, person + 10, person + 20)
    assert process.finds(3)[0] == "s3"
    edit_subject(engine, ignore, gallery="default", subject_id="s3", merge_into="s1")
    edit_subject(engine, ignore, gallery="default", subject_id="s0", new_id="s9")
    for one in (process, Process(engine, piece=2)):
        assert one.finds(3)[0] == "s1"
        assert one.finds(20)[0] == "s9"
        assert sorted(one.finds(3)) == ["s1", "s2", "s4", "s9"]


@pytest.mark.parametrize(
    "correct",
    [
        partial(edit_sequence, metadata={"view": "000"}),
        partial(edit_sequence, subject_id="bert"),
        partial(edit_subject, gallery="default", subject_id="anna", new_id="a"),
        partial(edit_subject, gallery="default", subject_id="anna", merge_into="bert"),
    ],
)
def test_a_correction_that_fails_at_its_end_leaves_nothing_half_done(
    engine: Engine, correct: Any
) -> None:
    process = Process(engine)
    (sequence_id, _) = enrol(process.store, "anna", 1, 2)
    enrol(process.store, "bert", 2)
    if correct.func is edit_sequence:
        correct = partial(correct, sequence_id=sequence_id)

    def state() -> object:
        listed = [subject(engine, "default", who)[:2] for who in ("anna", "bert")]
        return process.store.gallery("default"), listed, process.finds(1)

    before = state()

    def refuse(_session: Session, _corrected: Made) -> None:
        raise NotFound("refused in the transaction")

    with pytest.raises(NotFound, match="refused"):
        correct(engine, refuse)
    assert state() == before
    correct(engine, ignore)
    assert process.store.gallery("default").revision == 3


@pytest.mark.parametrize("after", range(1, 12))
def test_a_correction_that_is_broken_off_anywhere_leaves_all_or_nothing(
    engine: Engine, after: int
) -> None:
    store = GalleryStore(engine)
    walks = [*enrol(store, "anna", 1, 2), *enrol(store, "bert", 2, 3)]
    written = 0

    def break_off(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal written
        written += statement.startswith(("INSERT", "UPDATE", "DELETE"))
        if written == after:
            raise RuntimeError("the process dies")

    event.listen(engine, "before_cursor_execute", break_off)
    try:
        edit_subject(engine, ignore, gallery="default", subject_id="anna", merge_into="bert")
        died = False
    except RuntimeError:
        died = True
    finally:
        event.remove(engine, "before_cursor_execute", break_off)
    listed = {item.subject_id: item.sequences for item in subjects_of(engine)}
    assert listed == ({"anna": 2, "bert": 2} if died else {"bert": 3})
    assert store.head("default")[1] == (2 if died else 3)
    assert Process(engine).finds(1)[0] == ("anna" if died else "bert")
    with Session(engine) as session:
        left = set(session.scalars(select(EmbeddingRow.sequence_id)))
        assert left == set(walks if died else (walks[0], *walks[2:]))


def subjects_of(engine: Engine) -> Any:
    return subjects(engine, "default", limit=99, after=None).items


def test_an_export_that_has_begun_is_cut_off_by_a_correction_and_begins_anew(
    engine: Engine, tmp_path: Path
) -> None:
    store = GalleryStore(engine)
    for person in range(70):  # more than a page
        enrol(store, f"s{person:02}", person)
    (moved,) = enrol(store, "t", 99)
    for correct in (
        partial(edit_sequence, sequence_id=moved, metadata={"view": "000"}),
        partial(edit_sequence, sequence_id=moved, subject_id="s00"),
        partial(edit_subject, gallery="default", subject_id="s01", new_id="u"),
        partial(edit_subject, gallery="default", subject_id="s02", merge_into="s03"),
    ):
        pieces = stream_gallery(engine, "default", embeddings=False)
        correct(engine, ignore)
        with pytest.raises(CutOff):
            list(pieces)
    assert b"".join(stream_gallery(engine, "default", embeddings=False))


def test_a_walk_goes_to_no_subject_that_has_it_and_merging_compares_content(
    engine: Engine,
) -> None:
    store = GalleryStore(engine)
    first, second = enrol(store, "anna", 1, 2)
    (twin,) = enrol(store, "bert", 2)
    with pytest.raises(Conflict):
        edit_sequence(engine, ignore, sequence_id=second, subject_id="bert")
    made = edit_subject(engine, ignore, gallery="default", subject_id="anna", merge_into="bert")
    assert made.handover is not None
    assert (made.handover.sequence_ids, made.handover.erased) == ((first, second), (second,))
    _, walks, _ = subject(engine, "default", "bert")
    assert [walk.sequence_id for walk in walks] == [first, twin]
    with Session(engine) as session:
        assert session.get(EmbeddingRow, (second, "d")) is None
        assert session.get_one(SequenceRow, first).revision == made_at(engine)
    erase_subject(engine, "default", "bert")
    assert Process(engine).finds(1) == []


def made_at(engine: Engine) -> int:
    return GalleryStore(engine).head("default")[1]


def test_a_correction_needs_no_key_that_a_walk_is_sealed_with(engine: Engine) -> None:
    (sequence_id,) = enrol(GalleryStore(engine), "anna", 1)
    with Session(writing(engine)) as session, session.begin():
        session.execute(update(SequenceRow).values(silhouettes=b"sealed", key_id="elsewhere"))
    edit_sequence(engine, ignore, sequence_id=sequence_id, metadata={"view": "000"})
    assert GalleryStore(engine).sequence(sequence_id).metadata == {"view": "000"}
