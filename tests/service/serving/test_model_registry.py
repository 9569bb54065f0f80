import errno
from pathlib import Path

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from models.card import Card
from service.foundation.errors import Conflict, NotFound
from service.foundation.settings import Settings
from service.jobs.queue import JobQueue
from service.serving.model_files import ModelRow, UnreadableCard
from service.serving.registry import ModelRegistry, Source, resolve
from service.storage.database import now


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"shipped_models_dir": tmp_path / "shipped"})


@pytest.fixture
def registry(settings: Settings, engine: Engine) -> ModelRegistry:
    return ModelRegistry(settings, engine)


@pytest.fixture
def job_id(engine: Engine) -> str:
    return JobQueue(engine, lease_seconds=30, max_attempts=3).enqueue("distill", {}).id


def make(folder: Path, digest: str = "d1") -> Path:
    folder.mkdir(parents=True)
    card = Card(
        name="m", architecture="gaitbase", config={}, metric="cosine", parts=1, channels=1,
        identities=0, metrics={"rank1": 0.5}, digest=digest,
    )  # fmt: skip
    (folder / "card.json").write_text(card.model_dump_json())
    (folder / "weights.safetensors").write_bytes(b"weights")
    return folder


def test_models_come_from_the_shipped_folder_and_the_deployments_own(
    settings: Settings, engine: Engine, registry: ModelRegistry
) -> None:
    make(settings.shipped_models_dir / "default")
    make(settings.models_dir / "teacher")
    assert [(model.name, model.source) for model in registry.all()] == [
        ("default", Source.SHIPPED),
        ("teacher", Source.IMPORTED),
    ]
    assert resolve(settings, engine, "default") == settings.shipped_models_dir / "default"
    assert registry.show("default").metrics == {"rank1": 0.5}


@pytest.mark.parametrize(
    "name", ["nope", "..", ".", "", "a/b", "../shipped/default", "default\n", ".incoming-1"]
)
def test_no_name_leads_out_of_the_folders_of_models(
    settings: Settings, engine: Engine, name: str
) -> None:
    make(settings.shipped_models_dir / "default")
    make(settings.models_dir / ".incoming-1")
    with pytest.raises(NotFound):
        resolve(settings, engine, name)


def test_a_broken_card_does_not_hide_the_other_models(
    settings: Settings, registry: ModelRegistry
) -> None:
    make(settings.models_dir / "good")
    for name, content in (
        ("empty", ""),
        ("list", "[]"),
        ("bare", "{}"),
        ("deep", "[" * 99999),
        ("half-a-pair", r'{"digest": "0", "notes": "\ud800"}'),
        ("no-number", '{"digest": "0", "threshold": NaN}'),
        ("endless", '{"digest": "0", "threshold": 1e999}'),
    ):
        (make(settings.models_dir / name) / "card.json").write_text(content)
    assert [model.name for model in registry.all()] == ["good"]
    with pytest.raises(UnreadableCard):
        registry.show("list")


def test_a_trained_model_appears_whole_and_names_its_job(
    registry: ModelRegistry, engine: Engine, tmp_path: Path, job_id: str
) -> None:
    checkpoint = make(tmp_path / "run" / "checkpoint")
    staged = registry.stage_trained("mine", checkpoint, job_id=job_id, metrics={"loss": 1.0})
    assert "mine" not in [model.name for model in registry.all()]
    with Session(engine) as session, session.begin():
        session.add(staged.row)
        staged.files.move_in()
    model = registry.show("mine")
    assert (model.source, model.job_id, model.digest) == (Source.TRAINED, job_id, "d1")
    assert model.metrics == {"rank1": 0.5, "loss": 1.0}
    assert (model.path / "weights.safetensors").read_bytes() == b"weights"
    assert checkpoint.exists()  # a resumed job finds it again


def test_registering_twice_after_a_crash_is_the_same_as_once(
    settings: Settings, registry: ModelRegistry, tmp_path: Path, job_id: str
) -> None:
    checkpoint = make(tmp_path / "run" / "checkpoint")
    make(settings.models_dir / f".incoming-{job_id}-1", digest="half")  # killed while copying
    first = registry.stage_trained("mine", checkpoint, job_id=job_id, metrics={})
    first.files.move_in()
    again = registry.stage_trained("mine", checkpoint, job_id=job_id, metrics={})  # before its row
    again.files.move_in()
    again.files.move_in()  # the transaction was tried again
    assert first.row.digest == again.row.digest
    assert [path.name for path in settings.models_dir.iterdir()] == ["mine"]


def test_a_removal_that_is_killed_or_finds_no_space_can_be_made_again(
    settings: Settings, registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.models_dir.mkdir()
    registry.add_uploaded("mine", make(tmp_path / "sent"), lambda _: None)

    def no_space(_session: Session) -> None:
        raise OSError(errno.ENOSPC, "no space")

    event.listen(Session, "before_commit", no_space)
    with pytest.raises(OSError, match="no space"):
        registry.remove("mine", lambda: None)
    event.remove(Session, "before_commit", no_space)
    assert registry.show("mine").created_at is not None  # nothing was changed
    with monkeypatch.context() as killed:
        killed.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            registry.remove("mine", lambda: None)
    registry.remove("mine", lambda: None)
    assert list(settings.models_dir.iterdir()) == []
    registry.add_uploaded("mine", make(tmp_path / "again"), lambda _: None)


@pytest.mark.parametrize("place", ["shipped", "folder", "row"])
def test_a_name_that_is_taken_stays_with_its_model(
    settings: Settings,
    registry: ModelRegistry,
    engine: Engine,
    tmp_path: Path,
    job_id: str,
    place: str,
) -> None:
    if place == "shipped":
        make(settings.shipped_models_dir / "mine")
    else:
        make(settings.models_dir / "mine", digest="d1" if place == "row" else "other")
    if place == "row":
        with Session(engine) as session, session.begin():
            session.add(
                ModelRow(name="mine", digest="d1", job_id=None, metrics={}, created_at=now())
            )
    with pytest.raises(Conflict):
        registry.stage_trained("mine", make(tmp_path / "run"), job_id=job_id, metrics={})
