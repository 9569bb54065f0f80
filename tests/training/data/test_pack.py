from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from training.data.pack import Pack, PackError, PackWriter, Partition, decode_frames, encode_frames

Walk = Callable[..., npt.NDArray[np.uint8]]
binary = st.sampled_from([np.uint8(0), np.uint8(255)])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    hnp.arrays(
        np.uint8,
        st.tuples(st.integers(1, 4), st.just(64), st.just(64)),
        elements=binary,
        fill=binary,
    )
)
def test_binary_silhouettes_survive_packing_bit_for_bit(silhouettes: npt.NDArray[np.uint8]) -> None:
    rows = encode_frames(silhouettes, "binary")
    assert rows.shape == (len(silhouettes), 512)
    np.testing.assert_array_equal(decode_frames(rows, "binary"), silhouettes)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=6), st.data())
def test_a_pack_gives_back_what_was_added(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[int, bool]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    added = []
    with PackWriter(folder / "x.pack") as writer:
        for i, (frames, grey) in enumerate(plan):
            rng = np.random.default_rng(i)
            silhouettes = rng.integers(0, 256, (frames, 64, 64), dtype=np.uint8)
            if not grey:
                silhouettes = np.where(silhouettes > 99, np.uint8(255), np.uint8(0))
            added.append(silhouettes)
            writer.add(f"s{i % 3}", f"nm-{i}", "090", silhouettes, {"camera": i})
        pack = writer.finish()
    assert pack.encoding == ("grey" if any(grey for _, grey in plan) else "binary")
    assert [r.metadata for r in pack.sequences] == [{"camera": i} for i in range(len(plan))]
    for i, silhouettes in enumerate(added):
        np.testing.assert_array_equal(pack.silhouettes(i), silhouettes)
        picks = data.draw(st.lists(st.integers(0, len(silhouettes) - 1), max_size=5))
        np.testing.assert_array_equal(pack.silhouettes(i, picks), silhouettes[picks])
    pack.verify()


def test_frames_are_mapped_and_not_read_into_memory(small_pack: Pack) -> None:
    with (small_pack.path / "frames.bin").open("r+b") as file:
        file.write(b"\xaa" * 512)  # seen by the open pack, because it reads the file itself
    assert (small_pack.silhouettes(0, [0])[0, 0, :4] == [255, 0, 255, 0]).all()
    with pytest.raises(PackError, match="content hash"):
        small_pack.verify()


def test_the_content_hash_depends_on_frames_and_records_and_on_nothing_else(
    tmp_path: Path, walk: Walk
) -> None:
    def content_hash(
        name: str, seed: int, view: str = "090", partition: Partition | None = None
    ) -> str:
        with PackWriter(tmp_path / name) as writer:
            writer.add("s", "nm", view, walk(seed, 3))
            return writer.finish(partition).content_hash

    first = content_hash("a", 0)
    assert first == content_hash("b", 0)
    assert first == content_hash("c", 0, partition=Partition(train=("s",), test=()))
    assert len({first, content_hash("d", 1), content_hash("e", 0, view="000")}) == 3


def test_subsets_share_the_file_and_label_their_own_subjects_from_zero(small_pack: Pack) -> None:
    part = small_pack.subset(["s5", "s1", "someone else"])
    assert part.subjects == ("s1", "s5")
    assert part.labels.tolist() == [0] * 5 + [1] * 2
    assert part.content_hash == small_pack.content_hash
    whole = [r.subject for r in small_pack.sequences].index("s5")
    np.testing.assert_array_equal(part.silhouettes(5), small_pack.silhouettes(whole))
    assert {r.view for r in small_pack.where(lambda r: r.view == "000").sequences} == {"000"}
    with pytest.raises(PackError, match="none of the subjects asked for; it has no partition"):
        small_pack.subset(["nobody"])
    with pytest.raises(PackError, match="no sequence is left"):
        small_pack.where(lambda record: record.view == "999")


def test_frames_outside_a_sequence_are_refused_and_not_those_of_its_neighbour(
    small_pack: Pack,
) -> None:
    frames = small_pack.sequences[0].frames
    with pytest.raises(IndexError, match=f"{frames} frames"):
        small_pack.silhouettes(0, [frames])


@pytest.mark.parametrize(
    ("silhouettes", "reason"),
    [
        (np.zeros((3, 64, 44), np.uint8), r"\[s, 64, 64\]"),
        (np.zeros((3, 64, 64), np.float32), "float32"),
        (np.zeros((0, 64, 64), np.uint8), "no frames"),
    ],
)
def test_a_writer_refuses_what_is_not_a_sequence(
    tmp_path: Path, silhouettes: npt.NDArray[np.uint8], reason: str
) -> None:
    with PackWriter(tmp_path / "x") as writer, pytest.raises(PackError, match=reason):
        writer.add("s", "c", "v", silhouettes)


def test_a_refused_sequence_leaves_no_trace(tmp_path: Path, walk: Walk) -> None:
    with PackWriter(tmp_path / "x") as writer:
        with pytest.raises(PackError, match="JSON"):
            writer.add("s", "c", "v", walk(0, 3), {"of": object()})
        writer.add("s", "c", "v", walk(1, 4))
        pack = writer.finish()
    assert len(pack) == 1
    np.testing.assert_array_equal(pack.silhouettes(0), walk(1, 4))


def test_an_existing_pack_is_never_written_over(small_pack: Pack) -> None:
    with pytest.raises(PackError, match="exists"):
        PackWriter(small_pack.path)


def test_two_writers_of_one_pack_exclude_each_other(tmp_path: Path) -> None:
    with PackWriter(tmp_path / "x"), pytest.raises(PackError, match="another process"):
        PackWriter(tmp_path / "x")


def _write_and_die(path: Path, sequences: int, torn_bytes: int, encoding: str) -> None:
    with PackWriter(path, encoding, resume=True) as writer:  # type: ignore[arg-type]
        for i in range(len(writer.sequences), sequences):
            frames = np.full((5, 64, 64), 7 * (i % 2) if encoding != "binary" else 255, np.uint8)
            writer.add(f"s{i}", "c", "v", frames)
        if torn_bytes:  # killed in the middle of an append
            for file in (writer._data, writer._journal):
                file.write(b'{"subject": ' + b"x" * torn_bytes)
                file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("encoding", ["auto", "binary", "grey"])
def test_a_killed_writer_leaves_no_pack_and_its_successor_goes_on_after_the_last_whole_sequence(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "x.pack"
    spawn = multiprocessing.get_context("spawn")
    for sequences, torn in ((1, 100), (3, 700)):
        child = spawn.Process(target=_write_and_die, args=(path, sequences, torn, encoding))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        for candidate in (path, *tmp_path.iterdir()):
            with pytest.raises(PackError):
                Pack.open(candidate)
    with PackWriter(path, encoding, resume=True) as writer:  # type: ignore[arg-type]
        assert [r.subject for r in writer.sequences] == ["s0", "s1", "s2"]
        writer.add("s3", "c", "v", np.zeros((2, 64, 64), np.uint8))
        pack = writer.finish()
    pack.verify()
    assert pack.lengths.tolist() == [5, 5, 5, 2]
    expected = 255 if encoding == "binary" else 7
    assert np.unique(pack.silhouettes(1)).tolist() == [expected]
    assert not pack.silhouettes(3).any()
    assert sorted(p.name for p in path.iterdir()) == ["frames.bin", "index.json"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("killed_at", ["_content_hash", "_replace", "sync"])
def test_a_writer_killed_while_it_finishes_can_finish_again(
    tmp_path: Path, walk: Walk, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    path = tmp_path / "x.pack"

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, PackWriter(path) as writer:
        writer.add("s", "c", "v", walk(0, 3))
        patch.setattr(f"training.data.pack.{killed_at}", die)
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    if killed_at == "sync":  # it was in its place already
        Pack.open(path).verify()
        return
    with pytest.raises(PackError):
        Pack.open(path)
    with PackWriter(path, resume=True) as writer:
        writer.finish().verify()


def test_a_writer_killed_while_it_turns_grey_loses_nothing(
    tmp_path: Path, walk: Walk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name in ("rename", "unlink"):
        path = tmp_path / name
        with PackWriter(path) as writer:
            writer.add("s0", "c", "v", walk(0, 3))
            with monkeypatch.context() as patch:
                patch.setattr(Path, name, die)
                with pytest.raises(KeyboardInterrupt):
                    writer.add("s1", "c", "v", walk(1, 4, grey=True))
        with PackWriter(path, resume=True) as writer:
            assert [r.subject for r in writer.sequences] == ["s0"]
            writer.add("s1", "c", "v", walk(1, 4, grey=True))
            pack = writer.finish()
        pack.verify()
        np.testing.assert_array_equal(pack.silhouettes(0), walk(0, 3))
        np.testing.assert_array_equal(pack.silhouettes(1), walk(1, 4, grey=True))
        assert sorted(p.name for p in path.iterdir()) == ["frames.bin", "index.json"]


def test_without_resume_a_writer_starts_anew(tmp_path: Path, walk: Walk) -> None:
    with PackWriter(tmp_path / "x") as writer:
        writer.add("old", "c", "v", walk(0, 3))
    with PackWriter(tmp_path / "x") as writer:
        assert writer.sequences == ()
        writer.add("new", "c", "v", walk(1, 3))
        assert writer.finish().subjects == ("new",)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frames": 10_000}, "bytes, but the index says"),
        ({"encoding": "grey"}, "bytes, but the index says"),
        ({"encoding": "jpeg"}, "encoding"),
        ({"format": "gaitid-pack-9"}, "format"),
        ({"sequences": []}, "sequences"),
        ({"more": 1}, "more"),
        (
            {
                "sequences": [
                    {
                        "subject": "s",
                        "condition": "c",
                        "view": "v",
                        "first_frame": 1,
                        "frames": 9999,
                    }
                ]
            },
            "ends after the last frame",
        ),
        (
            {
                "sequences": [
                    {"subject": "s", "condition": "c", "view": "v", "first_frame": -1, "frames": 1}
                ]
            },
            "first_frame",
        ),
    ],
)
def test_an_index_that_contradicts_its_frames_is_refused(
    small_pack: Pack, change: dict[str, object], reason: str
) -> None:
    index = small_pack.path / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(PackError, match=reason):
        Pack.open(small_pack.path)


def test_a_partition_is_read_as_the_field_writes_it_and_written_back(
    tmp_path: Path, walk: Walk
) -> None:
    field_file = tmp_path / "CASIA-B.json"
    field_file.write_text('{"TRAIN_SET": ["001", "002"], "TEST_SET": ["075"]}')
    partition = Partition.load(field_file)
    with PackWriter(tmp_path / "x") as writer:
        for subject in ("001", "075"):
            writer.add(subject, "nm", "090", walk(0, 3))
        pack = writer.finish(partition)
    assert pack.partition == partition
    assert pack.subset(partition.train).subjects == ("001",)
    written = json.loads((pack.path / "partition.json").read_text())
    assert written == {"TRAIN_SET": ["001", "002"], "TEST_SET": ["075"]}


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"TRAIN_SET": ["1"]}', '{"TRAIN_SET":["1"],"TEST_SET":["1"]}']
)
def test_a_broken_partition_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "partition.json"
    path.write_text(text)
    with pytest.raises(PackError, match=r"partition\.json"):
        Partition.load(path)


def poses(seed: int, frames: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, 2, 64, 64), dtype=np.uint8)


def with_poses(path: Path, walk: Walk, *, shift: int = 0) -> PackWriter:
    writer = PackWriter(path)
    for number in range(3):
        writer.add(f"s{number}", "nm", "090", walk(number, 4), None, poses(number + shift, 4))
    return writer


def test_pose_maps_lie_beside_their_frames_in_the_pack_and_its_subsets(
    tmp_path: Path, walk: Walk
) -> None:
    with with_poses(tmp_path / "x.pack", walk) as writer:
        pack = writer.finish()
    assert pack.has_pose
    pack.verify()
    part = pack.subset(["s2"])
    np.testing.assert_array_equal(part.pose_maps(0), poses(2, 4))
    seen = part.walk(0, pose=True)
    np.testing.assert_array_equal(seen[:, :2], poses(2, 4))
    np.testing.assert_array_equal(seen[:, 2], walk(2, 4))
    np.testing.assert_array_equal(part.walk(0, pose=False), walk(2, 4))
    with with_poses(tmp_path / "other.pack", walk, shift=1) as writer:
        assert writer.finish().content_hash != pack.content_hash


def test_a_pack_without_pose_maps_says_so(small_pack: Pack) -> None:
    assert not small_pack.has_pose
    assert "pose" not in (small_pack.path / "index.json").read_text()
    with pytest.raises(PackError, match="has no pose maps"):
        small_pack.walk(0, pose=True)


def test_all_sequences_have_pose_maps_of_their_frames_or_none_has(
    tmp_path: Path, walk: Walk
) -> None:
    with with_poses(tmp_path / "x.pack", walk) as writer:
        with pytest.raises(PackError, match="all sequences of a pack have pose maps, or none"):
            writer.add("s9", "nm", "090", walk(9, 4))
        wrongs: tuple[Any, ...] = (poses(0, 3), poses(0, 4).astype(np.int16), poses(0, 4)[:, :1])
        for wrong in wrongs:
            with pytest.raises(PackError, match=r"pose maps uint8 \[4, 2, 64, 64\] expected"):
                writer.add("s9", "nm", "090", walk(9, 4), None, wrong)
        assert len(writer.finish()) == 3
    with PackWriter(tmp_path / "y.pack") as writer:
        writer.add("s0", "nm", "090", walk(0, 4))
        with pytest.raises(PackError, match="or none"):
            writer.add("s1", "nm", "090", walk(1, 4), None, poses(1, 4))


def test_a_writer_of_pose_maps_that_was_killed_goes_on(tmp_path: Path, walk: Walk) -> None:
    with with_poses(tmp_path / "whole.pack", walk) as writer:
        whole = writer.finish()
    with with_poses(tmp_path / "x.pack", walk):
        pass
    kept = tmp_path / ".x.pack.partial"
    with (kept / "pose.bin").open("r+b") as file:  # the last sequence's maps were not all written
        file.truncate(11 * 8192)
    with PackWriter(tmp_path / "x.pack", resume=True) as writer:
        assert [record.subject for record in writer.sequences] == ["s0", "s1"]
        writer.add("s2", "nm", "090", walk(2, 4), None, poses(2, 4))
        pack = writer.finish()
    assert pack.content_hash == whole.content_hash
    pack.verify()


def test_a_pack_whose_pose_maps_are_cut_off_or_gone_is_refused(tmp_path: Path, walk: Walk) -> None:
    with with_poses(tmp_path / "x.pack", walk) as writer:
        pack = writer.finish()
    file = pack.path / "pose.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(PackError, match="the index says 12 frames of 8192"):
        Pack.open(pack.path)
    file.unlink()
    with pytest.raises(PackError, match="0 bytes"):
        Pack.open(pack.path)
