from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from models.silhouettes import normalise, prepare
from training.data import (
    LeftOut,
    Pack,
    PackError,
    Partition,
    Progress,
    SourceError,
    pack_dataset,
    sources,
)

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


def packed(source: Path, out: Path, **how: Any) -> tuple[Pack, dict[str, str]]:
    """The pack, and why each thing was left out, by its place in the source."""
    told: list[LeftOut] = []
    pack = pack_dataset(source, out, left_out=told.append, **how)
    place = f"{source}/"
    return pack, {name.removeprefix(place): reason for name, reason in told}


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
    (source / "2/090_1.zip").write_bytes(b"no archive")
    told: dict[int, list[Progress | LeftOut]] = {1: [], 2: []}
    packs = [
        pack_dataset(
            source,
            tmp_path / f"{n}.pack",
            workers=n,
            progress=told[n].append,
            left_out=told[n].append,
        )
        for n in (1, 2)
    ]
    assert packs[0].content_hash == packs[1].content_hash
    assert told[1] == told[2]
    left_out = [Path(each.name).parts[-2:] for each in told[2] if isinstance(each, LeftOut)]
    assert left_out == [("1", "090_2.zip"), ("2", "090_1.zip")]


@pytest.mark.slow
def test_raw_walks_are_prepared_in_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_zip(tmp_path / "source/1/090_1.zip", walker())
    write_zip(tmp_path / "source/1/090_2.zip", walker(phase=1))
    monkeypatch.setattr(sources, "prepare", None)  # which another process does not see
    with pytest.raises(TypeError):
        pack_dataset(tmp_path / "source", tmp_path / "one.pack")
    assert len(pack_dataset(tmp_path / "source", tmp_path / "two.pack", workers=2)) == 2


def test_silhouettes_are_found_beside_other_pickles(tmp_path: Path, walk: Walk) -> None:
    folder = tmp_path / "source/001/nm/090"
    write_pickle(folder / "0_depth.pkl", np.zeros((4, 2, 64, 64), np.float32))
    write_pickle(folder / "1_sil.pkl", walk(0, 4))
    pack = pack_dataset(tmp_path / "source", tmp_path / "out.pack")
    np.testing.assert_array_equal(pack.silhouettes(0), walk(0, 4))


def heat_maps(seed: int, frames: int, side: int = 64) -> Silhouettes:
    """Uint8 [s, 2, side, side], as SkeletonGait's preparation keeps them."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (frames, 2, side, side), dtype=np.uint8)


def test_heat_maps_beside_silhouettes_become_pose_maps(tmp_path: Path, walk: Walk) -> None:
    for person, frames in (("001", 9), ("002", 4)):
        folder = tmp_path / "source" / person / "nm-01/090"
        write_pickle(folder / "0_heatmap.pkl", heat_maps(frames, frames))
        write_pickle(folder / "1_sil.pkl", walk(frames, frames)[..., 10:54])
    pack, told = packed(tmp_path / "source", tmp_path / "out.pack")
    assert pack.has_pose
    assert told == {}
    for i, frames in enumerate((9, 4)):
        np.testing.assert_array_equal(pack.pose_maps(i), heat_maps(frames, frames))
        np.testing.assert_array_equal(
            pack.silhouettes(i)[..., 10:54], walk(frames, frames)[..., 10:54]
        )
    alone, told = packed(tmp_path / "source", tmp_path / "alone.pack", pose_maps="none")
    assert not alone.has_pose
    assert told == {"#_heatmap.pkl": "#_sil.pkl beside it is read (2 files)"}


def test_heat_maps_in_a_folder_of_their_own_are_paired_by_walk(tmp_path: Path, walk: Walk) -> None:
    for person in ("001", "002"):
        write_pickle(tmp_path / f"source/{person}/nm-01/090/090.pkl", walk(1, 5))
    for person in ("001", "003"):
        write_pickle(tmp_path / f"maps/{person}/nm-01/090/whatever.pkl", heat_maps(1, 5))
    for name in ("a", "b"):
        write_pickle(tmp_path / f"maps/004/nm-01/090/{name}.pkl", heat_maps(1, 5))
    maps = tmp_path / "maps"
    pack, told = packed(tmp_path / "source", tmp_path / "out.pack", pose_maps=maps)
    assert keys(pack) == [("001", "nm-01", "090")]
    np.testing.assert_array_equal(pack.pose_maps(0), heat_maps(1, 5))
    assert told == {
        "002/nm-01/090/090.pkl": f"no pose maps of it in {maps}",
        f"{maps}/003/nm-01/090/whatever.pkl": f"pose maps of no walk in {tmp_path / 'source'}",
        f"{maps}/004/nm-01/090": "several .pkl in it, where one of pose maps is",
    }


def test_larger_and_narrower_heat_maps_become_64_squared(tmp_path: Path, walk: Walk) -> None:
    maps, large = heat_maps(1, 4), heat_maps(1, 4).repeat(2, 2).repeat(2, 3)
    for person, stored in (("001", large), ("002", maps[..., 10:54])):
        write_pickle(tmp_path / f"source/{person}/nm/090/skeleton.pkl", stored)
        write_pickle(tmp_path / f"source/{person}/nm/090/090.pkl", walk(0, 4))
    pack = pack_dataset(tmp_path / "source", tmp_path / "out.pack", pose_maps="skel*")
    np.testing.assert_array_equal(pack.pose_maps(0), maps)
    np.testing.assert_array_equal(pack.pose_maps(1)[..., 10:54], maps[..., 10:54])
    assert not pack.pose_maps(1)[..., :10].any()
    assert not pack.pose_maps(1)[..., 54:].any()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros((5, 2, 64, 64), np.uint8), "4 silhouettes, but pose maps of 5"),
        (np.zeros((0, 2, 64, 64), np.uint8), "no frames"),
        (np.zeros((4, 3, 64, 64), np.uint8), r"limbs and joints, not \[4, 3, 64, 64\]"),
        (np.zeros((4, 64, 64), np.uint8), r"limbs and joints, not \[4, 64, 64\]"),
        (np.zeros((4, 2, 100, 100), np.uint8), r"not \[8, 100, 100\]"),
        (np.zeros((4, 2, 64, 64), np.float32), "an array of bytes"),
        ([np.zeros((2, 64, 64), np.uint8)] * 4, "not an array"),
        (print, "it names builtins.print"),
        (Path("HACKED"), "it names pathlib"),
        (None, "no pose maps, which other walks have; --pose-maps none"),
    ],
    ids=lambda thing: thing if isinstance(thing, str) else type(thing).__name__,
)
def test_a_walk_without_right_heat_maps_is_named_and_the_others_are_packed(
    tmp_path: Path, walk: Walk, content: object, reason: str
) -> None:
    source = tmp_path / "source"
    if content is not None:
        write_pickle(source / "001/nm/090/0_heatmap.pkl", content)
    write_pickle(source / "001/nm/090/1_sil.pkl", walk(0, 4))
    write_pickle(source / "002/nm/090/0_heatmap.pkl", heat_maps(0, 4))
    write_pickle(source / "002/nm/090/1_sil.pkl", walk(0, 4))
    pack, told = packed(source, tmp_path / "out.pack")
    assert keys(pack) == [("002", "nm", "090")]
    assert pack.has_pose
    ((name, why),) = told.items()
    assert name == "001/nm/090/1_sil.pkl"
    assert re.search(reason, why)


@pytest.mark.parametrize(
    "damaged",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"K\x40K\x40", b"K\x40K\xff"),  # more than its bytes fill
        lambda data: b"cos\nsystem\n(X\x0c\x00\x00\x00touch HACKEDtR.",
        lambda data: b"",
    ],
    ids=["cut off", "another shape", "a program", "empty"],
)
def test_a_hostile_heat_map_is_named_and_not_run(
    tmp_path: Path, walk: Walk, damaged: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = pickle.dumps(heat_maps(0, 4))
    for person, data in (("001", damaged(good)), ("002", good)):
        write_pickle(tmp_path / f"source/{person}/nm/090/1_sil.pkl", walk(0, 4))
        (tmp_path / f"source/{person}/nm/090/0_heatmap.pkl").write_bytes(data)
    pack, told = packed(tmp_path / "source", tmp_path / "out.pack")
    assert keys(pack) == [("002", "nm", "090")]
    assert list(told) == ["001/nm/090/1_sil.pkl"]
    assert "its pose maps in 0_heatmap.pkl: " in told["001/nm/090/1_sil.pkl"]
    assert not (tmp_path / "HACKED").exists()


def test_heat_maps_that_lead_nowhere_or_lie_alone_are_named(tmp_path: Path, walk: Walk) -> None:
    source = tmp_path / "source"
    for person in ("001", "002"):
        write_pickle(source / person / "nm/090/1_sil.pkl", walk(0, 4))
    (source / "001/nm/090/0_heatmap.pkl").symlink_to(tmp_path / "gone.pkl")
    write_pickle(source / "002/nm/090/0_heatmap.pkl", heat_maps(0, 4))
    write_pickle(source / "003/nm/090/0_heatmap.pkl", heat_maps(0, 4))
    write_pickle(source / "004/nm/090/004.pkl", heat_maps(0, 4))  # of a tree of heat maps only
    write_pickle(source / "004/nm/090/0_heatmap.pkl", heat_maps(0, 4))
    _, told = packed(source, tmp_path / "out.pack")
    assert told == {
        "003/nm/090": "no silhouettes beside the pose maps in it",
        "001/nm/090/1_sil.pkl": "its pose maps in 0_heatmap.pkl: the file does not exist",
        "004/nm/090/004.pkl": "pose maps, not silhouettes",
    }


def test_pose_maps_that_cannot_be_chosen_end_the_import(tmp_path: Path, walk: Walk) -> None:
    source = tmp_path / "source"
    write_pickle(source / "001/nm/090/1_sil.pkl", walk(0, 4))
    for kind in ("heatmap", "heatmap_flipped"):
        write_pickle(source / f"001/nm/090/{kind}.pkl", heat_maps(0, 4))
    out = tmp_path / "out.pack"
    with pytest.raises(SourceError, match=r"which \.pkl holds the pose maps.*--pose-maps PATTERN"):
        pack_dataset(source, out)
    with pytest.raises(SourceError, match="with images"):
        pack_dataset(source, out, "images", pose_maps="*")
    with pytest.raises(SourceError, match=r"no \.pkl beside it is named skeleton"):
        pack_dataset(source, out, pose_maps="skeleton*", silhouettes="*sil*")
    assert nothing_is_left(out)
    assert pack_dataset(source, out, pose_maps="heatmap.*", silhouettes="*sil*").has_pose


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.zeros((4, 100, 100), np.uint8), r"not \[4, 100, 100\]"),
        (np.zeros((4, 128, 64), np.uint8), r"not \[4, 128, 64\]"),
        (np.zeros((4, 0, 0), np.uint8), r"not \[4, 0, 0\]"),
        (np.zeros((64, 64), np.uint8), r"not \[64, 64\]"),
        (np.zeros((0, 64, 64), np.uint8), "no frames"),
        (np.zeros((4, 64, 64), np.float32), "uint8"),
        (np.array([None]), "an array of bytes"),
        (print, "print"),
    ],
)
def test_a_wrong_pickle_is_named_and_the_others_are_packed(
    tmp_path: Path, walk: Walk, content: object, reason: str
) -> None:
    write_pickle(tmp_path / "source/001/nm/090/090.pkl", content)
    write_pickle(tmp_path / "source/002/nm/090/090.pkl", walk(0, 4))
    told: list[LeftOut] = []
    pack = pack_dataset(tmp_path / "source", tmp_path / "out.pack", left_out=told.append)
    assert keys(pack) == [("002", "nm", "090")]
    ((name, why),) = told
    assert name.endswith("001/nm/090/090.pkl")
    assert re.search(reason, why)


def test_a_source_of_nothing_but_wrong_pickles_is_refused_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    write_pickle(tmp_path / "source/001/nm/090/090.pkl", np.zeros((4, 9, 9), np.uint8))
    write_pickle(tmp_path / "source/002/nm/090/090.pkl", print)
    out = tmp_path / "out.pack"
    with pytest.raises(
        SourceError, match=r"2 left out; the first is .*001/nm/090/090\.pkl: .*9, 9"
    ):
        pack_dataset(tmp_path / "source", out)
    assert nothing_is_left(out)


def test_frames_of_128_rows_are_averaged_to_64(tmp_path: Path, walk: Walk) -> None:
    fine = np.random.default_rng(3).integers(0, 256, (5, 128, 128), dtype=np.uint8)
    write_pickle(tmp_path / "source/0000/0/default/0.pkl", fine)
    write_pickle(tmp_path / "source/0001/0/default/0.pkl", fine[..., 20:108])
    write_pickle(tmp_path / "source/0002/0/default/0.pkl", walk(1, 4).repeat(4, 1).repeat(4, 2))
    pack, told = packed(tmp_path / "source", tmp_path / "out.pack")
    assert told == {}
    blocks = fine.reshape(5, 64, 2, 64, 2).astype(int).sum((2, 4))
    whole, narrow = pack.silhouettes(0), pack.silhouettes(1)
    np.testing.assert_allclose(whole, blocks / 4, atol=0.5)
    np.testing.assert_array_equal(narrow[..., 10:54], whole[..., 10:54])
    assert not narrow[..., :10].any()
    assert not narrow[..., 54:].any()
    np.testing.assert_array_equal(pack.silhouettes(2), walk(1, 4))


BESIDE = {
    "CCPG": (
        "00_0",
        ["00_0-aligned-sils", "00_0-ratios", "00_0-rgbs", "00_0-sils"],
        "00_0-aligned-sils",
        {"*-ratios.pkl", "*-rgbs.pkl", "*-sils.pkl"},
    ),
    "SUSTech1K": (
        "000-near",
        [
            "00-000-near-LiDAR-PCDs",
            "02-000-near-LiDAR-PCDs_sils",
            "03-000-near-Camera-Pose",
            "06-000-near-Camera-Sils_aligned",
            "07-000-near-Camera-Sils_raw",
            "10-sync-000-near-LiDAR-PCDs_sils",
            "14-sync-000-near-Camera-Sils_aligned",
            "15-sync-000-near-Camera-Sils_raw",
        ],
        "06-000-near-Camera-Sils_aligned",
        {
            "#-*-LiDAR-PCDs.pkl",
            "#-*-LiDAR-PCDs_sils.pkl",
            "#-*-Camera-Pose.pkl",
            "#-*-Camera-Sils_raw.pkl",
            "#-sync-*-LiDAR-PCDs_sils.pkl",
            "#-sync-*-Camera-Sils_aligned.pkl",
            "#-sync-*-Camera-Sils_raw.pkl",
        },
    ),
    "CCGR-Mini": (
        "over.avi",
        ["000-overratios_HW-0", "001-overrgb_f-0", "002-oversil-0", "003-overpar-0"],
        "002-oversil-0",
        {"#-overratios_HW-#.pkl", "#-overrgb_f-#.pkl", "#-overpar-#.pkl"},
    ),
}


@pytest.mark.parametrize("name", sorted(BESIDE))
def test_silhouettes_are_told_from_what_the_field_keeps_beside_them(
    tmp_path: Path, walk: Walk, name: str
) -> None:
    view, names, chosen, others = BESIDE[name]
    for subject in ("000", "001"):
        for stem in names:
            content = walk(0, 4) if stem == chosen else np.zeros((4, 7), np.float32)
            write_pickle(tmp_path / f"source/{subject}/one/{view}/{stem}.pkl", content)
    pack, told = packed(tmp_path / "source", tmp_path / "out.pack")
    assert keys(pack) == [("000", "one", view), ("001", "one", view)]
    np.testing.assert_array_equal(pack.silhouettes(1), walk(0, 4))
    assert told.keys() == others
    assert all(reason.endswith("beside it is read (2 files)") for reason in told.values())


def test_a_pattern_chooses_the_silhouettes(tmp_path: Path, walk: Walk) -> None:
    for number, kind in enumerate(("aligned-sils", "sils")):
        for view in ("00_0", "00_1"):
            write_pickle(tmp_path / f"source/0/U0_D0/{view}/{view}-{kind}.pkl", walk(number, 4))
    write_pickle(tmp_path / "source/1/U0_D0/00_0/00_0-other.pkl", walk(3, 4))
    pack, told = packed(tmp_path / "source", tmp_path / "out.pack", silhouettes="*_?-sils.pkl")
    assert len(pack) == 2
    np.testing.assert_array_equal(pack.silhouettes(0), walk(1, 4))
    assert told == {
        "*-aligned-sils.pkl": "*-sils.pkl beside it is read (2 files)",
        "1/U0_D0/00_0": "no .pkl in it is named *_?-sils.pkl",
    }


@pytest.mark.parametrize(
    ("names", "pattern"),
    [(("a", "b"), None), (("a-sil", "b-sil"), None), (("sil-a", "sil-b"), "sil*")],
)
def test_silhouettes_that_could_be_several_files_are_asked_for(
    tmp_path: Path, walk: Walk, names: tuple[str, ...], pattern: str | None
) -> None:
    for name in names:
        write_pickle(tmp_path / f"source/0/nm/090/{name}.pkl", walk(0, 4))
    out = tmp_path / "out.pack"
    reason = rf"0/nm/090: which \.pkl .*{names[0]}\.pkl, {names[1]}\.pkl; .*--silhouettes"
    with pytest.raises(SourceError, match=reason):
        pack_dataset(tmp_path / "source", out, silhouettes=pattern)
    assert nothing_is_left(out)


@pytest.mark.parametrize("format", ["walks", "gallery"])
def test_a_pattern_is_refused_where_there_is_nothing_to_choose(
    tmp_path: Path, walk: Walk, format: str
) -> None:
    source = tmp_path / "source"
    if format == "walks":
        write_zip(source / "ann/090_1.zip", walker())
    else:
        write_export(source, export_members(walk))
    with pytest.raises(SourceError, match="no files to choose"):
        pack_dataset(source, tmp_path / "out.pack", silhouettes="*.png")
    assert nothing_is_left(tmp_path / "out.pack")


@pytest.mark.parametrize("kind", ["pickles", "images"])
def test_what_strays_in_a_dataset_is_named_with_the_reason(
    tmp_path: Path, walk: Walk, kind: str
) -> None:
    source = tmp_path / "source"
    for subject in ("000", "002"):
        if kind == "pickles":
            write_pickle(source / subject / "nm-01/000/000.pkl", walk(0, 4))
        else:
            write_images(source / subject / "nm-01/000", walker())
    (source / "000/nm-01/.ipynb_checkpoints").mkdir()
    (source / "000/nm-01/.ipynb_checkpoints/000.pkl").write_bytes(b"")
    (source / "__MACOSX").mkdir()
    (source / "001").mkdir()
    (source / "003/nm-01").mkdir(parents=True)
    (source / "004/nm-01/090").mkdir(parents=True)
    (source / "005/nm-01/090").mkdir(parents=True)
    (source / "005/nm-01/090/Thumbs.db").write_bytes(b"")
    (source / "readme.txt").write_text("hello")
    (source / "000/000_gei.png").write_bytes(png(walker()[0]))
    (source / "000/nm-01/000/notes.txt").write_text("hello")
    (source / "006/nm-01/000").mkdir(parents=True)
    name = "000.pkl" if kind == "pickles" else "000.png"
    (source / "006/nm-01/000" / name).symlink_to(tmp_path / "nowhere")
    pack, told = packed(source, tmp_path / "out.pack")
    assert keys(pack) == [("000", "nm-01", "000"), ("002", "nm-01", "000")]
    stray = "hidden, or left by another program"
    assert told["000/nm-01/.ipynb_checkpoints"] == told["__MACOSX"] == stray
    assert told["001"] == told["003/nm-01"] == told["004/nm-01/090"] == "an empty folder"
    assert told["readme.txt"] == "a file where folders of subjects are"
    assert told["000/000_gei.png"] == "a file where folders of conditions are"
    missing = "006/nm-01/000/000.pkl" if kind == "pickles" else "006/nm-01/000"
    assert told[missing] == "the file does not exist"
    if kind == "pickles":
        assert told["005/nm-01/090"] == "no .pkl in it"
        assert told["notes.txt"] == "*.pkl beside it is read (1 file)"
    else:
        assert told["005/nm-01/090"] == "no image of a frame in it"
        assert told["notes.txt"] == told["Thumbs.db"] == "not an image (1 file)"


def test_names_that_are_no_text_are_left_out(tmp_path: Path, walk: Walk) -> None:
    for name in (b"001", b"\xff", b"002\n{}", b"003\x1b[31m"):
        folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/source/" + name + b"/nm/090"))
        write_pickle(folder / "090.pkl", walk(0, 4))
    pack, told = packed(tmp_path / "source", tmp_path / "out.pack")
    assert pack.subjects == ("001",)
    assert len(told) == 3
    assert set(told.values()) == {"its name is no plain text"}


# Images and walks


def test_frames_are_chosen_by_a_pattern_and_energy_images_are_none(tmp_path: Path) -> None:
    folder = tmp_path / "source/001/nm-01/090"
    write_images(folder, walker())
    for number in range(40):
        (folder / f"{number}.jpg").write_bytes(b"colours")
    (folder / "090_gei.png").write_bytes(png(walker()[0]))
    pack, told = packed(tmp_path / "source", tmp_path / "out.pack", silhouettes="*.png")
    np.testing.assert_array_equal(
        pack.silhouettes(0), prepare(list(walker()), clean=True).silhouettes
    )
    assert told == {
        "#.jpg": "not named *.png (40 files)",
        "*_gei.png": "a mean over frames (1 file)",
    }


def test_raw_ou_mvlp_is_packed_as_the_field_prepares_it(tmp_path: Path) -> None:
    source, prepared = tmp_path / "OUMVLP-raw", tmp_path / "OUMVLP-pkl"
    empty = np.zeros_like(walker())[:1]
    for view, number, subject in (
        ("015", "01", "00001"),
        ("000", "00", "00002"),
        ("000", "00", "00001"),
        ("015", "00", "00001"),
    ):
        frames = np.concatenate([empty, walker(12, phase=float(view) + float(subject))])
        write_images(source / f"Silhouette_{view}-{number}/{subject}", frames)
        kept = [frame for frame in map(normalise, frames) if frame is not None]
        assert len(kept) == 12
        write_pickle(prepared / subject / number / view / f"{view}.pkl", np.stack(kept))
    write_images(source / "Silhouette_000-01/00009", empty)
    (source / "Silhouette_030-00").mkdir()
    (source / "Silhouette_030-01.7z").write_bytes(b"")
    (source / "Poses").mkdir()
    pack, told = packed(source, tmp_path / "raw.pack")
    assert keys(pack) == [
        ("00001", "00", "000"),
        ("00001", "00", "015"),
        ("00001", "01", "015"),
        ("00002", "00", "000"),
    ]
    assert pack.content_hash == pack_dataset(prepared, tmp_path / "pkl.pack").content_hash
    assert told == {
        "Poses": "not named Silhouette_VIEW-WALK",
        "Silhouette_000-01/00009": "no frame shows a person",
        "Silhouette_030-00": "an empty folder",
        "Silhouette_030-01.7z": "a file where folders of views and walks are",
    }


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
    left_out: list[LeftOut] = []
    pack = pack_dataset(
        tmp_path / "source", tmp_path / "out.pack", progress=told.append, left_out=left_out.append
    )
    assert keys(pack) == [("ann", "1", "090")]
    assert [(p.done, p.total) for p in told] == [(1, 2), (2, 2)]
    ((name, why),) = left_out
    assert name.endswith("ann/090_2.zip")
    assert why


def test_what_is_no_walk_is_named_beside_walks(tmp_path: Path) -> None:
    write_zip(tmp_path / "source/ann/090_1.zip", walker())
    (tmp_path / "source/ann/090_2.zip").write_bytes(b"PK\x03\x04 not really")
    (tmp_path / "source/ann/notes.txt").write_text("hello")
    (tmp_path / "source/ann/.DS_Store").write_bytes(b"")
    (tmp_path / "source/ann/090_3.zip").mkdir()
    (tmp_path / "source/bob").mkdir()
    pack, told = packed(tmp_path / "source", tmp_path / "out.pack")
    assert keys(pack) == [("ann", "1", "090")]
    assert told["ann/090_2.zip"]
    assert "VIEW_CONDITION" in told["ann/notes.txt"]
    assert "hidden" in told["ann/.DS_Store"]
    assert told["ann/090_3.zip"] == "not a file with a plain name"
    assert told.keys() == {
        "ann/.DS_Store", "ann/090_2.zip", "ann/090_3.zip", "ann/notes.txt", "bob"
    }  # fmt: skip


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
        told: list[LeftOut] = []
        pack = pack_dataset(
            source, Path(folder) / "real.pack", "walks", workers=2, left_out=told.append
        )
        assert told == []
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
    for format in ("walks", "pickles", "images", "ou-mvlp"):
        with pytest.raises(SourceError, match=r"1 left out.*an empty folder"):
            pack_dataset(tmp_path / "empty", tmp_path / "out.pack", format)


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
