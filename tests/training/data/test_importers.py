from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from models.silhouettes import prepare
from training.data import Pack, PackError, Partition, Progress, SourceError, importers, pack_dataset

Silhouettes = npt.NDArray[np.uint8]
Walk = Callable[..., Silhouettes]


def walker(frames: int = 40, phase: float = 0.0) -> Silhouettes:
    """Raw silhouettes uint8 [s, 120, 160] of somebody who walks through the picture."""
    drawn = np.zeros((frames, 120, 160), np.uint8)
    for s, image in enumerate(drawn):
        centre, swing = 45 + 2 * s, 12 * np.sin(s / 4 + phase)
        cv2.circle(image, (centre, 22), 8, 255, -1)
        cv2.ellipse(image, (centre, 50), (11, 24), 0, 0, 360, 255, -1)
        for side in (-1, 1):
            cv2.line(image, (centre, 68), (centre + int(side * swing), 108), 255, 8)
    return drawn


def png(image: Silhouettes) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])


def write_pickle(path: Path, array: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(array))


def write_images(folder: Path, frames: Silhouettes) -> None:
    folder.mkdir(parents=True)
    for s, frame in enumerate(frames):
        (folder / f"{s}.png").write_bytes(png(frame))  # natural order: 10 comes after 9


def write_zip(path: Path, frames: Silhouettes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for s, frame in enumerate(frames):
            archive.writestr(f"{s:03}.png", png(frame))


def write_export(path: Path, members: dict[str, bytes | str]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array: npt.NDArray[np.generic], *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def keys(pack: Pack) -> list[tuple[str, str, str]]:
    return [(r.subject, r.condition, r.view) for r in pack.sequences]


def nothing_is_left(out: Path) -> bool:
    return not out.exists() and not list(out.parent.glob(f".{out.name}*"))


# Pickles


def test_a_pickle_tree_is_packed_bit_for_bit(tmp_path: Path, walk: Walk) -> None:
    source = tmp_path / "CASIA-B-pkl"
    wide, narrow = walk(0, 9, grey=True), walk(1, 4, grey=True)[..., 10:54]
    write_pickle(source / "001/nm-01/090/090.pkl", wide)
    write_pickle(source / "001/bg-01/000/000.pkl", narrow)
    write_pickle(source / "002/nm-01/090/090.pkl", (walk(2, 5) > 0).astype(np.uint8))
    partition = Partition(train=("001",), test=("002",))
    pack = pack_dataset(source, tmp_path / "out.pack", partition=partition)
    assert keys(pack) == [("001", "bg-01", "000"), ("001", "nm-01", "090"), ("002", "nm-01", "090")]
    np.testing.assert_array_equal(pack.silhouettes(1), wide)
    np.testing.assert_array_equal(pack.silhouettes(0)[..., 10:54], narrow)
    assert not pack.silhouettes(0)[..., :10].any()
    assert not pack.silhouettes(0)[..., 54:].any()
    np.testing.assert_array_equal(pack.silhouettes(2), walk(2, 5))  # 0 and 1 became 0 and 255
    assert pack.partition == partition


def test_the_number_of_workers_does_not_change_the_pack(tmp_path: Path, walk: Walk) -> None:
    for i in range(9):
        write_pickle(tmp_path / f"source/{i:03}/nm/090/090.pkl", walk(i, 3 + i))
    packs = [
        pack_dataset(tmp_path / "source", tmp_path / f"{workers}.pack", workers=workers)
        for workers in (1, 4)
    ]
    assert packs[0].content_hash == packs[1].content_hash


@pytest.mark.slow
def test_processes_prepare_what_one_does_and_tell_what_is_wrong(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for i in range(3):
        write_zip(source / f"{i}/090_1.zip", walker(phase=i))
    write_zip(source / "1/090_2.zip", np.zeros((20, 120, 160), np.uint8))
    told: dict[int, list[Progress]] = {1: [], 2: []}
    packs = [
        pack_dataset(source, tmp_path / f"{n}.pack", workers=n, progress=told[n].append)
        for n in (1, 2)
    ]
    assert packs[0].content_hash == packs[1].content_hash
    assert told[1] == told[2]
    assert [bool(each.skipped) for each in told[2]] == [False, False, True, False]

    (source / "2/090_1.zip").write_bytes(b"no archive")
    with pytest.raises(SourceError, match=r"2/090_1\.zip: "):
        pack_dataset(source, tmp_path / "broken.pack", workers=2)
    assert nothing_is_left(tmp_path / "broken.pack")


@pytest.mark.slow
def test_raw_walks_are_prepared_in_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(tmp_path / "source/1/090_1.zip", walker())
    write_zip(tmp_path / "source/1/090_2.zip", walker(phase=1))
    monkeypatch.setattr(importers, "prepare", None)  # which another process does not see
    with pytest.raises(TypeError):
        pack_dataset(tmp_path / "source", tmp_path / "one.pack")
    assert len(pack_dataset(tmp_path / "source", tmp_path / "two.pack", workers=2)) == 2


def test_silhouettes_are_found_beside_other_pickles(tmp_path: Path, walk: Walk) -> None:
    folder = tmp_path / "source/001/nm/090"
    write_pickle(folder / "0_heatmap.pkl", np.zeros((4, 2, 64, 64), np.float32))
    write_pickle(folder / "1_sil.pkl", walk(0, 4))
    pack = pack_dataset(tmp_path / "source", tmp_path / "out.pack")
    np.testing.assert_array_equal(pack.silhouettes(0), walk(0, 4))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros((4, 128, 128), np.uint8), r"not \[4, 128, 128\]"),
        (np.zeros((64, 64), np.uint8), r"not \[64, 64\]"),
        (np.zeros((0, 64, 64), np.uint8), "no frames"),
        (np.zeros((4, 64, 64), np.float32), "uint8"),
        (np.array([None]), "an array of bytes"),
        (print, "print"),
    ],
)
def test_a_wrong_pickle_is_named_and_nothing_is_left(
    tmp_path: Path, walk: Walk, content: object, reason: str
) -> None:
    write_pickle(tmp_path / "source/001/nm/090/090.pkl", walk(0, 4))
    write_pickle(tmp_path / "source/002/nm/090/090.pkl", content)
    out = tmp_path / "out.pack"
    with pytest.raises(SourceError, match=rf"002/nm/090/090\.pkl: .*{reason}"):
        pack_dataset(tmp_path / "source", out)
    assert nothing_is_left(out)


# Images and walks


def test_raw_images_are_prepared_and_stay_in_natural_order(tmp_path: Path) -> None:
    write_images(tmp_path / "source/001/nm-01/090", walker())
    write_zip(tmp_path / "walks/001/090_nm-01.zip", walker())
    from_images = pack_dataset(tmp_path / "source", tmp_path / "images.pack")
    from_walks = pack_dataset(tmp_path / "walks", tmp_path / "walks.pack")
    assert keys(from_images) == keys(from_walks) == [("001", "nm-01", "090")]
    silhouettes = from_images.silhouettes(0)
    np.testing.assert_array_equal(silhouettes, from_walks.silhouettes(0))
    np.testing.assert_array_equal(silhouettes, prepare(list(walker()), clean=True).silhouettes)
    assert len(silhouettes) >= 30
    rows = np.flatnonzero(silhouettes.max(0).max(1))
    assert (rows[0], rows[-1]) == (0, 63)


def test_prepared_images_are_packed_untouched(tmp_path: Path) -> None:
    write_images(tmp_path / "raw/001/nm-01/090", walker())
    prepared = pack_dataset(tmp_path / "raw", tmp_path / "raw.pack").silhouettes(0)
    write_images(tmp_path / "source/001/nm-01/090", prepared)
    pack = pack_dataset(tmp_path / "source", tmp_path / "out.pack")
    np.testing.assert_array_equal(pack.silhouettes(0), prepared)


def test_a_walk_without_gait_is_left_out_and_the_reason_is_told(tmp_path: Path) -> None:
    write_zip(tmp_path / "source/ann/090_1.zip", walker())
    write_zip(tmp_path / "source/ann/090_2.zip", np.zeros((20, 120, 160), np.uint8))
    told: list[Progress] = []
    pack = pack_dataset(tmp_path / "source", tmp_path / "out.pack", progress=told.append)
    assert keys(pack) == [("ann", "1", "090")]
    assert [(p.done, p.total) for p in told] == [(1, 2), (2, 2)]
    assert told[0].skipped is None
    assert told[1].skipped
    assert told[1].name.endswith("ann/090_2.zip")


def test_a_broken_walk_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    write_zip(tmp_path / "source/ann/090_1.zip", walker())
    (tmp_path / "source/ann/090_2.zip").write_bytes(b"PK\x03\x04 not really")
    out = tmp_path / "out.pack"
    with pytest.raises(SourceError, match=r"ann/090_2\.zip: "):
        pack_dataset(tmp_path / "source", out)
    assert nothing_is_left(out)


def test_a_source_of_nothing_but_poor_walks_is_refused(tmp_path: Path) -> None:
    write_zip(tmp_path / "source/ann/090_1.zip", np.zeros((20, 120, 160), np.uint8))
    with pytest.raises(SourceError, match="left out"):
        pack_dataset(tmp_path / "source", tmp_path / "out.pack")


@pytest.mark.slow
def test_real_walks_are_packed() -> None:
    """See the shared data's README: ten people, three views, four walks each."""
    real = Path(__file__).parents[3] / "../shared/data/real-dev"
    if not real.is_dir():
        pytest.skip("the shared real walks are not on this machine")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "two"
        source.mkdir()
        for subject in sorted(real.iterdir())[:2]:
            (source / subject.name).symlink_to(subject.resolve())
        told: list[Progress] = []
        pack = pack_dataset(
            source, Path(folder) / "real.pack", "walks", workers=2, progress=told.append
        )
        assert [p.name for p in told if p.skipped] == []
        assert len(pack.subjects) == 2
        assert len(pack) == 24
        assert {r.view for r in pack.sequences} == {"00", "45", "90"}
        assert {r.condition for r in pack.sequences} == {"1", "2", "3", "4"}


# The service's export


def export_members(walk: Walk) -> dict[str, bytes | str]:
    lines = [
        {"subject_id": "ann", "sequence_id": "a1", "metadata": {"view": "090", "condition": "bag"}},
        {"subject_id": "ben", "sequence_id": "b1", "metadata": {"camera": 3}},
    ]
    return {
        "gallery.json": "{}",
        "sequences.jsonl": "\n".join(json.dumps(line) for line in lines) + "\n",
        "silhouettes/a1.npy": npy(walk(0, 5, grey=True)),
        "silhouettes/b1.npy": npy(walk(1, 7, grey=True)),
    }


def test_a_gallery_export_is_packed_with_its_metadata(tmp_path: Path, walk: Walk) -> None:
    write_export(tmp_path / "gallery.zip", export_members(walk))
    pack = pack_dataset(tmp_path / "gallery.zip", tmp_path / "out.pack")
    assert keys(pack) == [("ann", "bag", "090"), ("ben", "unknown", "unknown")]
    assert pack.sequences[1].metadata == {"camera": 3, "sequence_id": "b1"}
    np.testing.assert_array_equal(pack.silhouettes(0), walk(0, 5, grey=True))
    np.testing.assert_array_equal(pack.silhouettes(1), walk(1, 7, grey=True))


def huge_header() -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 64, 64)}
    )
    return file.getvalue() + b"\0" * 4096


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"silhouettes/b1.npy": npy(np.zeros((2, 64, 44), np.uint8))}, r"b1\.npy: .*64, 44"),
        ({"silhouettes/b1.npy": npy(np.zeros((2, 64, 64), np.float32))}, r"b1\.npy: .*float32"),
        ({"silhouettes/b1.npy": npy(np.array([print]), allow_pickle=True)}, r"b1\.npy: .*object"),
        ({"silhouettes/b1.npy": npy(np.zeros((0, 64, 64), np.uint8))}, r"b1\.npy: .*fill"),
        ({"silhouettes/b1.npy": huge_header()}, r"b1\.npy: .*fill"),
        ({"silhouettes/b1.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': open()}"}, r"b1\.npy: "),
        ({"silhouettes/b1.npy": b"PK"}, r"b1\.npy: "),
        ({"silhouettes/b1.npy": None}, r"it has no silhouettes/b1\.npy"),
        ({"gallery.json": None}, "no gallery.json"),
        ({"sequences.jsonl": ""}, "nobody is enrolled"),
        ({"sequences.jsonl": "{"}, r"sequences\.jsonl line 1"),
        ({"sequences.jsonl": '{"subject_id": "ann"}'}, "line 1: sequence_id"),
        ({"sequences.jsonl": '{"subject_id": "", "sequence_id": "a1"}'}, "line 1: subject_id"),
        ({"sequences.jsonl": '{"subject_id": "a", "sequence_id": "../a1"}'}, "line 1: sequence_id"),
        ({"sequences.jsonl": '{"subject_id": "a", "sequence_id": "a1"}\n' * 2}, "a1 a second time"),
    ],
)
def test_a_wrong_export_is_refused_with_the_member_and_nothing_is_left(
    tmp_path: Path, walk: Walk, change: dict[str, bytes | str | None], reason: str
) -> None:
    members = {k: v for k, v in (export_members(walk) | change).items() if v is not None}
    write_export(tmp_path / "gallery.zip", members)
    out = tmp_path / "out.pack"
    with pytest.raises(SourceError, match=rf"gallery\.zip: .*{reason}"):
        pack_dataset(tmp_path / "gallery.zip", out, "gallery")
    assert nothing_is_left(out)


def test_a_bomb_in_an_export_is_refused_before_it_is_unpacked(tmp_path: Path, walk: Walk) -> None:
    path = tmp_path / "gallery.zip"
    members = export_members(walk)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in ("gallery.json", "sequences.jsonl", "silhouettes/a1.npy"):
            archive.writestr(name, members[name])
        with archive.open("silhouettes/b1.npy", "w") as bomb:
            for _ in range(100):
                bomb.write(bytes(2**20))
    with pytest.raises(SourceError, match=r"b1\.npy.*bytes, at most"):
        pack_dataset(path, tmp_path / "out.pack")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text"])
def test_a_damaged_export_is_refused(tmp_path: Path, walk: Walk, damage: str) -> None:
    path = tmp_path / "gallery.zip"
    write_export(path, export_members(walk))
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped":
        data[len(data) // 2] ^= 0xFF
    else:
        data = bytearray(b"not a zip")
    path.write_bytes(data)
    with pytest.raises(SourceError, match=r"gallery\.zip: "):
        pack_dataset(path, tmp_path / "out.pack", "gallery")


# Any source


def test_what_is_no_source_is_refused_with_what_would_be_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("hello")
    for source, reason in (
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "empty", "SUBJECT/CONDITION/VIEW"),
        (tmp_path / "file.txt", "not a gallery export"),
    ):
        with pytest.raises(SourceError, match=reason):
            pack_dataset(source, tmp_path / "out.pack")
    with pytest.raises(SourceError, match="not a folder"):
        pack_dataset(tmp_path / "file.txt", tmp_path / "out.pack", "pickles")
    with pytest.raises(SourceError, match="no sequence"):
        pack_dataset(tmp_path / "empty", tmp_path / "out.pack", "walks")


def test_an_import_never_touches_an_existing_pack(tmp_path: Path, small_pack: Pack) -> None:
    write_pickle(tmp_path / "source/001/nm/090/090.pkl", np.zeros((3, 64, 64), np.uint8))
    with pytest.raises(PackError, match="exists"):
        pack_dataset(tmp_path / "source", small_pack.path)
    small_pack.verify()


def test_an_interrupted_import_leaves_nothing(tmp_path: Path, walk: Walk) -> None:
    for i in range(5):
        write_pickle(tmp_path / f"source/{i:03}/nm/090/090.pkl", walk(i, 3))

    def interrupt(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    out = tmp_path / "out.pack"
    with pytest.raises(KeyboardInterrupt):
        pack_dataset(tmp_path / "source", out, progress=interrupt)
    assert nothing_is_left(out)
