"""Enrolment that protects the gallery, over HTTP and in the turn that decides."""

from __future__ import annotations

import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from service.gallery.coverage import coverage, labels_in_use
from service.gallery.editing import edit_sequence
from service.gallery.records import Embedding, Silhouettes
from service.gallery.sealing import Sealing
from service.gallery.store import GalleryChanged, GalleryStore
from service.gallery.tables import SequenceRow, SubjectRow
from service.http.schemas import EnrolConflictProblem
from service.privacy.erasure_transactions import erase_gallery, erase_sequence, erase_subject
from service.recognition.conflict import EnrolmentConflict
from service.recognition.conflict_check import Admission, Comparison, ConflictCheck
from service.serving.thresholds import ModelInUse
from service.storage.database import migrate, new_id, now, open_database, writing
from tests.service.jobs.galleries import BLANK, add, made_walk
from tests.service.requests import contents, enrol, problem
from tests.service.searched import both, searched_gallery
from tests.service.server import Serve
from tests.service.statements import instructions_of_writes
from tests.service.walkers import npz as packed
from tests.service.walkers import walk, walker

MEMBERS = frozenset({"conflicts", "threshold"})


def ask(client: httpx.Client, subject: str, *walks: bytes, **fields: str) -> httpx.Response:
    """Enrol with no conflict accepted."""
    return enrol(client, subject, *walks, **{"accept_conflict": "false", **fields})


def another(person: int) -> bytes:
    """The same person's walk with a speck in one frame: another walk, and the nearest there is."""
    film = walker(person)
    film[3, 40:44, 43:47] = 0
    return packed(film)


def test_a_walk_that_matches_somebody_else_is_refused_and_changes_nothing(serve: Serve) -> None:
    client = serve()
    (anna,) = ask(client, "anna", walk(1)).json()["sequences"]
    before = contents(client)
    body = problem(ask(client, "bert", another(1)), 409, MEMBERS)
    assert body["type"] == "/problems/enrolment-conflict"
    assert body["errors"] == [{"where": "sequence[0] 0.npz", "reason": "nearer_to_another"}]
    (conflict,) = EnrolConflictProblem.model_validate(body).conflicts
    assert (conflict.own.subject_id, conflict.own.similarity) == ("bert", None)
    assert (conflict.other.subject_id, conflict.other.sequence_id) == ("anna", anna["sequence_id"])
    assert 0.99 < (conflict.other.similarity or 0) <= 1.0001
    assert body["threshold"] == 0.99
    assert contents(client) == before


def test_a_conflict_may_be_accepted_and_is_still_said(serve: Serve) -> None:
    client = serve()
    ask(client, "anna", walk(1))
    answer = ask(client, "bert", another(1), accept_conflict="true")
    assert answer.status_code == 201
    (conflict,) = answer.json()["conflicts"]
    assert (conflict["reason"], conflict["other"]["subject_id"]) == ("nearer_to_another", "anna")
    assert client.get("/galleries/default").json()["subjects"] == 2


def test_a_further_walk_of_the_same_person_is_welcome(serve: Serve) -> None:
    client = serve()
    ask(client, "anna", walk(1))
    ask(client, "bert", walk(2), accept_conflict="true")
    answer = ask(client, "anna", another(1))
    assert answer.status_code == 201
    assert answer.json()["conflicts"] == []


def test_the_wrong_walk_among_right_ones_is_the_one_that_is_named(serve: Serve) -> None:
    client = serve()
    ask(client, "anna", walk(1))
    ask(client, "bert", walk(2), accept_conflict="true")
    body = problem(ask(client, "anna", another(1), another(2)), 409, MEMBERS)
    (conflict,) = body["conflicts"]
    assert conflict["where"] == "sequence[1] 1.npz"
    assert conflict["other"]["subject_id"] == "bert"
    assert conflict["own"]["similarity"] < conflict["other"]["similarity"]


def test_the_same_walk_is_not_enrolled_twice_and_its_id_is_answered(serve: Serve) -> None:
    client = serve()
    (first,) = ask(client, "anna", walk(1)).json()["sequences"]
    again = ask(client, "anna", walk(1))
    assert again.status_code == 201
    assert again.json()["sequences"] == [{**first, "already_enrolled": True}]
    both = ask(client, "anna", walk(1), another(1))
    assert both.status_code == 201
    old, new = both.json()["sequences"]
    assert (old["sequence_id"], old["already_enrolled"]) == (first["sequence_id"], True)
    assert (new["sequence_id"] != old["sequence_id"], new["already_enrolled"]) == (True, False)
    assert client.get("/galleries/default").json()["sequences"] == 2


def test_the_same_walk_twice_in_one_request_is_enrolled_once(serve: Serve) -> None:
    client = serve()
    one, two = ask(client, "anna", walk(1), walk(1)).json()["sequences"]
    assert one["sequence_id"] == two["sequence_id"]
    assert (one["already_enrolled"], two["already_enrolled"]) == (False, True)
    assert client.get("/galleries/default").json()["sequences"] == 1


def test_megabytes_of_frames_are_not_hashed_on_the_event_loop(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    hashes = Sealing.content_hashes

    def noted(sealing: Sealing, silhouettes: Silhouettes) -> tuple[str, ...]:
        threads.append(threading.current_thread().name)
        return hashes(sealing, silhouettes)

    monkeypatch.setattr(Sealing, "content_hashes", noted)
    assert ask(serve(), "anna", walk(1), another(1)).status_code == 201
    assert [name.split("_")[0] for name in threads] == ["writer", "writer"]


def test_the_same_walk_as_another_subject_is_a_conflict_also_without_a_threshold(
    serve: Serve,
) -> None:
    client = serve(model="uncalibrated")
    (anna,) = ask(client, "anna", walk(1)).json()["sequences"]
    assert ask(client, "carl", another(1)).status_code == 201  # no threshold: nobody is a match
    body = problem(ask(client, "bert", walk(1)), 409, MEMBERS)
    (conflict,) = body["conflicts"]
    assert conflict["reason"] == "same_walk"
    assert conflict["other"] == {
        "subject_id": "anna",
        "similarity": 1.0,
        "sequence_id": anna["sequence_id"],
    }
    assert body["threshold"] is None
    accepted = ask(client, "bert", walk(1), accept_conflict="true")
    assert accepted.status_code == 201
    assert accepted.json()["sequences"][0]["already_enrolled"] is False
    again = ask(client, "bert", walk(1)).json()  # its own by now
    assert again["sequences"][0]["already_enrolled"] is True
    assert client.get("/galleries/default").json()["sequences"] == 3


def test_the_same_walk_in_another_gallery_is_another_matter(serve: Serve) -> None:
    client = serve()
    client.post("/galleries", json={"name": "lab"})
    ask(client, "anna", walk(1))
    assert ask(client, "bert", walk(1), gallery="lab").status_code == 201


def test_many_identical_enrolments_at_once_end_with_one_sequence(serve: Serve) -> None:
    client = serve(decode_workers=4)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: ask(client, "anna", walk(1)), range(8)))
    assert [answer.status_code for answer in answers] == [201] * 8
    enrolled = [answer.json()["sequences"][0] for answer in answers]
    assert sorted(sequence["already_enrolled"] for sequence in enrolled) == [False] + [True] * 7
    assert len({sequence["sequence_id"] for sequence in enrolled}) == 1
    assert client.get("/galleries/default").json()["sequences"] == 1


def test_of_many_who_claim_one_walk_at_once_one_gets_it(serve: Serve) -> None:
    client = serve(decode_workers=4)
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: ask(client, f"s{n}", walk(1)), range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert client.get("/galleries/default").json()["sequences"] == 1


def test_of_many_who_are_alike_at_once_one_is_enrolled(serve: Serve) -> None:
    client = serve(decode_workers=4)
    walks = [packed(walker(1, frames=40 + number)) for number in range(6)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda n: ask(client, f"s{n}", walks[n]), range(6)))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 5


def test_an_idempotency_key_replays_that_a_walk_was_enrolled_already(serve: Serve) -> None:
    client = serve()
    ask(client, "anna", walk(1))

    def retry() -> httpx.Response:
        return client.post(
            "/enroll",
            data={"subject_id": "anna"},
            files={"sequence": ("a", walk(1))},
            headers={"Idempotency-Key": "k"},
        )

    first, again = retry(), retry()
    assert (first.status_code, again.status_code) == (201, 201)
    (sequence,) = first.json()["sequences"]
    assert sequence["already_enrolled"]
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("value", ["perhaps", "2"])
def test_accept_conflict_is_true_or_false(shared: httpx.Client, value: str) -> None:
    body = problem(ask(shared, "anna", walk(1), accept_conflict=value), 422)
    assert body["errors"][0]["where"] == "accept_conflict"


def covered(client: httpx.Client, subject: str, **metadata: Any) -> Any:
    """Coverage after one more walk of a person that nobody else resembles."""
    number = len(contents(client)) + client.get("/galleries/default").json()["sequences"]
    film = packed(walker(number, frames=30 + number))
    text = str(metadata).replace("'", '"') if metadata else "{}"
    return enrol(client, subject, film, metadata=text).json()["coverage"]


def test_coverage_says_what_there_is_and_what_others_have(serve: Serve) -> None:
    client = serve()
    assert covered(client, "anna", view="090", condition="normal") == {
        "sequences": 1,
        "views": ["090"],
        "conditions": ["normal"],
        "missing_views": [],
        "missing_conditions": [],
        "advice": ["another_sequence", "another_view"],
    }
    assert covered(client, "anna", view="000", condition="normal")["advice"] == []
    assert covered(client, "bert", view="090", condition="coat")["missing_views"] == ["000"]
    bert = client.get("/subjects/bert").json()["coverage"]
    assert bert["missing_conditions"] == ["normal"]
    assert bert["views"] == ["090"]
    assert covered(client, "bert")["advice"] == ["name_the_view"]
    assert covered(client, "carl", view=90)["views"] == ["90"]


def test_coverage_names_the_most_used_views_first_and_not_endlessly(serve: Serve) -> None:
    client = serve()
    for number in range(15):
        covered(client, "anna", view=f"{number:03}")
    covered(client, "bert", view="007")
    missing = covered(client, "carl", view="x")["missing_views"]
    assert missing[:2] == ["007", "000"]
    assert len(missing) == 12


def add_walks(engine: Engine, gallery_id: str, subject: str, labels: list[tuple[str, str]]) -> None:
    """Rows of walks that no index ever hears of."""
    with Session(writing(engine)) as session, session.begin():
        if session.get(SubjectRow, (gallery_id, subject)) is None:
            session.add(SubjectRow(gallery_id=gallery_id, subject_id=subject, created_at=now()))
            session.flush()
        session.add_all(
            SequenceRow(
                id=new_id(), gallery_id=gallery_id, subject_id=subject, revision=1, frames=1,
                silhouettes=b"", content_hash=new_id(), quality={}, details={},
                view=view, condition=condition, created_at=now(),
            )
            for view, condition in labels
        )  # fmt: skip


def test_what_an_enrolment_does_under_the_write_lock_does_not_grow_with_the_gallery(
    serve: Serve, engine: Engine
) -> None:
    client = serve(audit=False)
    enrol(client, "anna", walk(1), metadata='{"view": "000"}')
    gallery_id, _, _ = GalleryStore(engine).head("default")
    took = []
    for person in (2, 3):
        with instructions_of_writes(Engine) as counted:
            covered = enrol(client, "anna", walk(person), metadata='{"view": "000"}').json()
        took.append(max(counted))
        labels = [(f"{number % 11:03}", f"c{number % 3}") for number in range(2000)]
        add_walks(engine, gallery_id, "bert", labels)
    assert covered["coverage"]["missing_views"][:2] == ["001", "002"]
    assert took[1] <= 1.2 * took[0], took


def test_labels_read_before_a_subject_gets_its_walks_serve_after_it(
    engine: Engine, store: GalleryStore
) -> None:
    gallery_id, _, _ = store.head("default")
    for times, number in enumerate(range(40, 0, -1), 1):
        add_walks(engine, gallery_id, "anna", [(f"{number:03}", "coat")] * times)
    add_walks(engine, gallery_id, "bert", [("001", "bag")])
    with Session(engine) as session:
        before = labels_in_use(session, gallery_id, "bert")
    add_walks(engine, gallery_id, "bert", [(f"{number:03}", "coat") for number in range(2, 13)])
    with Session(engine) as session:
        found = coverage(session, gallery_id, "bert", before)
        assert found == coverage(
            session, gallery_id, "bert", labels_in_use(session, gallery_id, "bert")
        )
    assert found.missing_views == tuple(f"{number:03}" for number in range(13, 25))
    assert (found.conditions, found.missing_conditions) == (("bag", "coat"), ())


# The turn that decides


class Check:
    """One subject's walk, looked at and then entered."""

    def __init__(self, store: GalleryStore, subject: str, embedding: Embedding, grey: int) -> None:
        walk = made_walk(embedding, np.full((2, 64, 64), grey, np.uint8))
        self.store, self.subject = store, subject
        (self.sequence,) = store.seal([walk], {}, "d")
        model = ModelInUse("m", "d", 0.9, "cosine")
        self.check = ConflictCheck(store, model, subject, [self.sequence])

    def look(self) -> Comparison:
        head = self.store.head("default")
        live = searched_gallery(head.gallery_id, "d", (2, 4), "cosine", self.store)
        self.seen = self.check.compare(head, live)
        return self.seen

    def enter(self) -> Admission:
        """Enrol what was looked at; raises what `ConflictCheck.admit` raises."""
        with self.store.enrolling(self.seen.gallery_id, self.subject) as transaction:
            admission = self.check.admit(transaction, self.seen, accept_conflict=False)
            transaction.add(admission.added)
        return admission

    def look_and_enter(self) -> None:
        self.look()
        self.enter()


def direction(axis: int) -> Embedding:
    embedding = np.zeros((2, 4), np.float32)
    embedding[:, axis] = 1
    return embedding


@both
def test_what_was_enrolled_after_the_look_counts_in_the_turn(store: GalleryStore) -> None:
    bert = Check(store, "bert", direction(0), 1)
    assert bert.look().walks[0].other is None
    Check(store, "anna", direction(0), 2).look_and_enter()
    with pytest.raises(EnrolmentConflict) as refused:
        bert.enter()
    assert refused.value.conflicts[0].other.subject_id == "anna"
    assert store.gallery("default").sequences == 1


@both
def test_own_walks_enrolled_after_the_look_count_too(store: GalleryStore) -> None:
    near = direction(0) + np.float32(0.3) * direction(1)
    Check(store, "anna", near, 1).look_and_enter()
    second = Check(store, "bert", direction(0), 3)
    second.look()
    with pytest.raises(EnrolmentConflict):
        second.enter()
    Check(store, "bert", direction(1), 2).look_and_enter()
    third = made_walk(direction(0) + np.float32(0.1) * direction(1), BLANK + np.uint8(4))
    add(store, "default", "bert", [third], "d")
    assert second.enter().added == (second.sequence,)


@both
def test_what_changes_hands_after_the_look_is_looked_at_again(
    store: GalleryStore, engine: Engine
) -> None:
    anna = Check(store, "anna", direction(0), 1)
    anna.look_and_enter()
    Check(store, "carl", direction(1), 9).look_and_enter()
    bert = Check(store, "bert", direction(0), 2)
    bert.look()
    moved = anna.sequence.sequence_id
    edit_sequence(engine, lambda *_: None, sequence_id=moved, subject_id="carl")
    with pytest.raises(GalleryChanged):
        bert.enter()
    (walk,) = bert.look().walks
    assert walk.other is not None
    assert (walk.other.subject_id, walk.other.sequence_id) == ("carl", moved)


@both
@pytest.mark.parametrize("erase", ["sequence", "subject", "gallery"])
def test_what_is_erased_after_the_look_is_not_named(
    store: GalleryStore, engine: Engine, erase: str
) -> None:
    anna, bert = (Check(store, name, direction(0), len(name)) for name in ("anna", "bertha"))
    anna.look_and_enter()
    bert.look()
    if erase == "sequence":
        erase_sequence(engine, anna.sequence.sequence_id)
    elif erase == "subject":
        erase_subject(engine, "default", "anna")
    else:
        erase_gallery(engine, "default", keep=True)
    with pytest.raises(GalleryChanged):
        bert.enter()
    bert.look_and_enter()
    assert store.gallery("default").sequences == 1


def test_enrolments_and_erasures_at_once_all_end(serve: Serve) -> None:
    client = serve(decode_workers=4)
    stop = threading.Event()

    def erase() -> None:
        while not stop.is_set():
            for item in client.get("/subjects").json()["items"]:
                client.delete(f"/subjects/{item['subject_id']}")

    eraser = threading.Thread(target=erase)
    eraser.start()
    try:
        with ThreadPoolExecutor(4) as threads:
            codes = list(
                threads.map(lambda n: ask(client, f"s{n % 3}", walk(n % 2)).status_code, range(24))
            )
    finally:
        stop.set()
        eraser.join()
    assert set(codes) <= {200, 201, 409}


def test_sequences_of_an_older_schema_get_their_labels(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config

    import service.storage.migrations

    engine = open_database(f"sqlite:///{tmp_path / 'old.sqlite'}")
    config = Config()
    config.set_main_option("script_location", next(iter(service.storage.migrations.__path__)))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002_jobs")
    engine.dispose()
    with sqlite3.connect(tmp_path / "old.sqlite") as old:
        old.execute("INSERT INTO gallery VALUES ('g', 'default', 1, '{}', NULL, '2026-01-01')")
        old.execute("INSERT INTO subject VALUES ('g', 'anna', '2026-01-01')")
        for number, metadata in enumerate(['{"view": 90, "condition": "bag"}', "{}"]):
            old.execute(
                "INSERT INTO sequence VALUES (?, 'g', 'anna', 1, 1, x'', 'h', '{}', ?, '2026')",
                (f"s{number}", metadata),
            )
    old.close()
    migrate(engine)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT view, condition FROM sequence ORDER BY id").all()
    engine.dispose()
    assert [tuple(row) for row in rows] == [("90", "bag"), (None, None)]
