"""Scene transforms as they are kept: sealed, one for a gallery under a model, never mixed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from alembic.config import Config
from numpy.typing import NDArray
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from models.comparison.scene import SceneFit, SceneSums, SceneTransform
from models.comparison.similarity import part_similarity
from service import storage
from service.foundation.errors import Conflict, NotFound
from service.foundation.settings import Settings
from service.gallery import scenes
from service.gallery.operating_point import OperatingPoint
from service.gallery.ranking import GallerySearch
from service.gallery.reencryption import holdings, reencrypt
from service.gallery.sealing import DamagedScene
from service.gallery.store import GalleryStore
from service.gallery.tables import GalleryRow, SceneCohortRow, SceneRow
from service.http.resources import open_engine
from service.recognition.conflict_check import ConflictCheck
from service.serving.thresholds import ModelInUse, choose_threshold
from service.storage.database import writing
from tests.service.gallery.test_encryption import NEW, OLD, files, names, with_keys
from tests.service.jobs.galleries import add, made_walk
from tests.service.searched import both, searched_gallery

PARTS, CHANNELS = 2, 3
DIGEST = "d"
FIT = SceneFit(None, 0.25, (0.1, 0.4), 0.8, False, 12, 36)
ROOM = datetime(2026, 11, 30, tzinfo=UTC)


def embeddings(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, PARTS, CHANNELS)).astype(np.float32)


def transform(seed: int = 0) -> SceneTransform:
    rng = np.random.default_rng(seed)
    width = PARTS * CHANNELS
    mean, matrix = rng.normal(size=width), rng.normal(size=(width, width))
    return SceneTransform(mean.astype(np.float32), matrix.astype(np.float32), parts=1)


def found(threshold: float) -> OperatingPoint:
    return OperatingPoint(
        threshold=threshold, interval=None, confidence=0.95, method="observed", target_fpir=0.1,
        gallery_subjects=3, gallery_sequences=6, calibrated_at=ROOM, digest=DIGEST,
    )  # fmt: skip


def use(
    engine: Engine, threshold: float | None = 0.7, *, seed: int = 0, plain: float | None = 0.4
) -> scenes.Scene | None:
    """Put a transform in use in the gallery `default`, or none."""
    scene = None if threshold is None else scenes.new_scene(transform(seed), found(threshold))
    with Session(writing(engine)) as session, session.begin():
        gallery_id = session.scalars(select(GalleryRow.id)).one()
        without = None if plain is None else found(plain)
        scenes.put(session, gallery_id, DIGEST, FIT, 3, scene, without)
    return scene


def in_use(engine: Engine) -> scenes.Scene | None:
    with Session(engine) as session:
        return scenes.scene_in(session, session.scalars(select(GalleryRow.id)).one(), DIGEST)


def enrol(store: GalleryStore, subject: str, walks: NDArray[np.float32], **said: str) -> None:
    for position, walk in enumerate(walks):
        frames = np.full((2, 64, 64), 100 + 10 * len(subject) + position, np.uint8)
        add(store, "default", subject, [made_walk(walk, frames)], DIGEST, dict(said))


def live(store: GalleryStore) -> GallerySearch:
    """An index as a process makes it now."""
    gallery_id, newest, _ = store.head("default")
    scene = in_use(store.engine)
    seen, metric = scenes.compared(embeddings(1), "euclidean", scene)
    _, parts, channels = seen.shape
    index = searched_gallery(gallery_id, DIGEST, (parts, channels), metric, store, scene=scene)
    index.follow(newest)
    return index


def test_what_is_kept_comes_back_and_raises_the_epoch(engine: Engine) -> None:
    scene = use(engine)
    kept = in_use(engine)
    assert scene is not None
    assert kept is not None
    assert (kept.version, kept.operating_point) == (scene.version, scene.operating_point)
    walks = embeddings(5)
    assert np.array_equal(kept.embeddings(walks), scene.transform.apply(walks))
    with Session(engine) as session:
        assert session.scalars(select(GalleryRow.index_epoch)).one() == 1
    (shown,) = GalleryStore(engine).gallery("default").scenes
    assert (shown.used, shown.revision, shown.gain, shown.interval) == (True, 3, 0.25, (0.1, 0.4))


def test_many_embeddings_are_transformed_as_few_are(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = use(engine)
    assert scene is not None
    walks = embeddings(11)
    whole = scene.embeddings(walks)
    monkeypatch.setattr(scenes, "_BLOCK", 4)
    assert np.allclose(scene.embeddings(walks), whole, atol=1e-6)


def test_an_operating_point_holds_for_its_own_transform_only(engine: Engine) -> None:
    store = GalleryStore(engine)
    scene = use(engine)
    assert scene is not None
    head = store.head("default", DIGEST)
    assert (head.point_for(DIGEST, scene.version) or {})["threshold"] == 0.7
    assert (head.point_for(DIGEST, None) or {})["threshold"] == 0.4  # who has not followed yet
    assert head.point_for(DIGEST, "another") is None
    assert head.point_for("another", scene.version) is None
    point = OperatingPoint.of(scene.operating_point)
    assert choose_threshold(None, point, 3, DIGEST, 0.9, scene.version).value == 0.7
    assert choose_threshold(None, point, 3, DIGEST, 0.9, None).value == 0.9
    with pytest.raises(Exception, match="no threshold"):  # the card's is of other similarities
        choose_threshold(None, None, 3, DIGEST, 0.9, scene.version)


def test_a_dropped_transform_leaves_what_was_decided_by_without(engine: Engine) -> None:
    store = GalleryStore(engine)
    use(engine)
    with Session(writing(engine)) as session, session.begin():
        gallery_id = session.scalars(select(GalleryRow.id)).one()
        assert scenes.drop(session, gallery_id)
        assert not scenes.drop(session, gallery_id)
    assert in_use(engine) is None
    point = store.head("default").operating_point
    assert point is not None
    assert (point["threshold"], "scene" in point) == (0.4, False)
    assert store.gallery("default").scenes == ()
    with Session(engine) as session:
        assert session.scalars(select(SceneRow.transform)).one() is None
        assert session.scalars(select(GalleryRow.index_epoch)).one() == 2


def test_without_a_plain_threshold_of_its_own_the_former_one_comes_back(engine: Engine) -> None:
    with Session(writing(engine)) as session, session.begin():
        session.execute(update(GalleryRow).values(operating_point=found(0.33).kept()))
    use(engine, plain=None)
    use(engine, None, plain=None)
    point = GalleryStore(engine).head("default").operating_point
    assert point == found(0.33).kept()


@both
def test_an_index_searches_by_its_own_transform_whatever_the_rows_say_by_now(
    store: GalleryStore,
) -> None:
    walks = embeddings(6)
    for number in range(3):
        enrol(store, f"p{number}", walks[2 * number : 2 * number + 2])
    first = use(store.engine, 0.7)
    index = live(store)
    use(store.engine, 0.8, seed=1)
    assert first is not None
    enrol(store, "late", embeddings(1, seed=9))  # comes into the old index by the old transform
    probe = embeddings(1, seed=5)[0]
    seen = first.embeddings(np.concatenate([probe[None], walks, embeddings(1, seed=9)]))
    alike = seen[1:, 0] @ seen[0, 0]
    subjects = {f"p{number}": alike[2 * number : 2 * number + 2] for number in range(3)}
    subjects["late"] = alike[6:]
    by_hand = {name: (one.max() + one.mean()) / 2 for name, one in subjects.items()}
    hits = index.search(store.head("default").revision, probe, 4)
    assert {hit.subject_id: hit.similarity for hit in hits} == pytest.approx(by_hand, abs=1e-5)
    assert [hit.similarity for hit in hits] == pytest.approx(sorted(by_hand.values(), reverse=True))
    named = {hit.subject_id: hit.sequence_id for hit in hits}
    best = index.compare(0, walks[3] if alike[3] > alike[2] else walks[2], "p1")
    assert best is not None
    assert named["p1"] == best.sequence_id  # the best walk's
    newer = live(store)
    assert newer.scene_version != index.scene_version
    assert newer.search(0, probe, 1)[0].similarity != pytest.approx(hits[0].similarity, abs=1e-3)


@both
def test_parts_are_those_of_the_stored_embeddings(store: GalleryStore) -> None:
    walks = embeddings(2)
    enrol(store, "anna", walks)
    use(store.engine)
    (best,) = live(store).search(0, embeddings(1, seed=5)[0], 1, explain=True)
    probe = embeddings(1, seed=5)[0]
    known = [tuple(parts) for parts in part_similarity(probe, walks, "cosine").tolist()]
    assert best.parts in known


@both
def test_conflicts_are_judged_by_transformed_similarities_and_their_threshold(
    store: GalleryStore,
) -> None:
    walks = embeddings(4)
    enrol(store, "anna", walks[:2])
    scene = use(store.engine, 0.7)
    assert scene is not None
    model = ModelInUse("m", DIGEST, 0.9, "euclidean")
    others = [
        made_walk(walk, np.full((2, 64, 64), 7 + row, np.uint8))
        for row, walk in enumerate(walks[2:])
    ]
    sequences = store.seal(others, {}, DIGEST)
    check = ConflictCheck(store, model, "bert", sequences)
    seen = check.compare(store.head("default", DIGEST), live(store))
    alike = scene.embeddings(walks)[:, 0]
    assert seen.threshold == 0.7
    other = seen.walks[0].other
    assert other is not None
    near = alike[:2] @ alike[2]
    assert other.similarity == pytest.approx((near.max() + near.mean()) / 2, abs=1e-5)
    sent = seen.walks[0].sent
    assert sent is not None
    assert sent.similarity == pytest.approx(alike[2] @ alike[3], abs=1e-5)
    enrol(store, "cleo", walks[2:3])  # after the look, before the turn: it is the very walk
    with (
        pytest.raises(Conflict, match=r"may be 'cleo': the similarity is 1\.000"),
        store.enrolling(seen.gallery_id, "bert") as transaction,
    ):
        check.admit(transaction, seen, accept_conflict=False)


def test_a_gallery_takes_its_transform_and_sums_with_it(engine: Engine) -> None:
    use(engine)
    with Session(writing(engine)) as session, session.begin():
        gallery = session.scalars(select(GalleryRow)).one()
        scenes.add_to_cohort(session, gallery.id, "default", DIGEST, embeddings(3))
        session.delete(gallery)
    with Session(engine) as session:
        assert session.scalars(select(SceneRow)).all() == []
        assert session.scalars(select(SceneCohortRow)).all() == []


# Sums of who passed


def test_a_cohort_adds_up_and_keeps_nothing_else(engine: Engine) -> None:
    walks = embeddings(5)
    with Session(writing(engine)) as session, session.begin():
        gallery_id = session.scalars(select(GalleryRow.id)).one()
        added = [
            scenes.add_to_cohort(session, gallery_id, "default", DIGEST, some)
            for some in (walks[:2], walks[2:])
        ]
        sums = scenes.cohort_in(session, gallery_id, DIGEST)
        assert scenes.cohort_in(session, gallery_id, "another") is None
    assert added == [2, 5]
    assert sums is not None
    expected = SceneSums.of(walks)
    assert np.allclose(sums.total, expected.total)
    assert np.allclose(sums.products, expected.products)


def test_embeddings_too_wide_to_sum_are_refused(engine: Engine) -> None:
    with Session(writing(engine)) as session, session.begin():
        gallery_id = session.scalars(select(GalleryRow.id)).one()
        wide = np.ones((1, 16, 256), np.float32)
        with pytest.raises(Conflict, match="4096 numbers"):
            scenes.add_to_cohort(session, gallery_id, "default", DIGEST, wide)
        with pytest.raises(NotFound):
            scenes.add_to_cohort(session, "gone", "default", DIGEST, embeddings(1))


# Sealing


def sealed_traces(engine: Engine, settings: Settings) -> int:
    """How much of the transform or the sums is to be seen in the database's files."""
    within = files(settings)
    scene = in_use(engine)
    with Session(engine) as session:
        gallery_id = session.scalars(select(GalleryRow.id)).one()
        sums = scenes.cohort_in(session, gallery_id, DIGEST)
    assert scene is not None
    assert sums is not None
    traces = (scene.transform.matrix.tobytes()[:48], sums.products.tobytes()[:48])
    return sum(trace in within for trace in traces)


@pytest.mark.sqlite
def test_both_are_sealed_as_embeddings_are_and_change_keys_with_them(settings: Settings) -> None:
    engine = open_engine(settings)
    GalleryStore(engine).ensure("default")
    use(engine)
    with Session(writing(engine)) as session, session.begin():
        gallery_id = session.scalars(select(GalleryRow.id)).one()
        scenes.add_to_cohort(session, gallery_id, "default", DIGEST, embeddings(3))
    before = in_use(engine)
    assert before is not None
    assert sealed_traces(engine, settings) == 2
    engine.dispose()
    for keys in ((OLD,), (NEW, OLD)):
        sealed = with_keys(settings, *keys)
        engine = open_engine(sealed)
        assert reencrypt(engine) == 2
        assert [(kept.key_id, kept.scenes) for kept in holdings(engine)] == [(names(sealed)[0], 2)]
        assert sealed_traces(engine, settings) == 0
        after = in_use(engine)
        assert after is not None
        assert np.array_equal(after.transform.matrix, before.transform.matrix)
        engine.dispose()
    engine = open_engine(with_keys(settings, NEW))  # the old one is needed no more
    assert in_use(engine) is not None
    engine.dispose()


@pytest.mark.parametrize("secrets", [(), (OLD,)])
def test_a_changed_transform_is_said_to_be_damaged(
    settings: Settings, secrets: tuple[str, ...]
) -> None:
    engine = open_engine(with_keys(settings, *secrets) if secrets else settings)
    GalleryStore(engine).ensure("default")
    use(engine)
    with Session(writing(engine)) as session, session.begin():
        row = session.scalars(select(SceneRow)).one()
        data = bytearray(row.transform or b"")
        data[len(data) // 2] ^= 1
        row.transform = bytes(data)
    with pytest.raises(DamagedScene, match="/jobs/adapt"):
        in_use(engine)
    engine.dispose()


def test_what_was_sealed_for_another_gallery_does_not_open(settings: Settings) -> None:
    engine = open_engine(with_keys(settings, OLD))
    GalleryStore(engine).ensure("default")
    use(engine)
    with Session(writing(engine)) as session, session.begin():
        session.execute(update(SceneRow).values(digest="another"))
        gallery_id = session.scalars(select(GalleryRow.id)).one()
        with pytest.raises(DamagedScene):
            scenes.scene_in(session, gallery_id, "another")
    engine.dispose()


def test_an_earlier_version_finds_no_threshold_of_transformed_similarities(
    settings: Settings,
) -> None:
    engine = open_engine(settings)
    GalleryStore(engine).ensure("default")
    use(engine)
    config = Config()
    config.set_main_option("script_location", str(Path(storage.__file__).parent / "migrations"))
    for step, revision in ((command.downgrade, "0011_subject_details"), (command.upgrade, "head")):
        with writing(engine).begin() as connection:
            config.attributes["connection"] = connection
            step(config, revision)
    assert GalleryStore(engine).head("default").operating_point is None
    assert in_use(engine) is None
    engine.dispose()
