from pathlib import Path

import numpy as np
import pytest

from tests.training.rendering.recorded import ASF, walking_bvh, write_walkers
from training.rendering.recordings import (
    UnreadableRecording,
    from_bvh,
    load_recordings,
    read_amc,
    read_asf,
)
from training.rendering.skeleton import BONE, joint_positions

MOCAP = Path(__file__).parents[3] / "../shared/data/mocap"


def test_a_bvh_stands_in_metres_with_its_left_on_the_left_and_goes_ahead() -> None:
    recording = from_bvh(walking_bvh(speed=1.5, seconds=2.0), walker="x", clip="1")
    assert recording.joints[BONE["left_thigh"]] == pytest.approx([0, 0.09, -0.09])
    assert recording.joints[BONE["left_foot"], 2] == pytest.approx(-0.95)
    way = recording.root[-1] - recording.root[0]
    assert way[0] == pytest.approx(1.5 * 2.0, rel=0.02)
    assert recording.fps == pytest.approx(60, rel=1e-4)


def test_arms_of_a_t_pose_hang_in_the_reference_stance() -> None:
    recording = from_bvh(walking_bvh(hip=0.0, speed=0.0), walker="x", clip="1")
    # The T-pose is a rotation away from hanging arms: its upper arm points to the left.
    down = np.array([0.0, 0.0, -1.0])
    pointing = recording.rotations[0, BONE["left_arm"]] @ down
    assert pointing == pytest.approx([0, 1, 0], abs=1e-9)
    assert recording.joints[BONE["left_hand"], 2] < recording.joints[BONE["left_forearm"], 2]


def test_a_flexed_hip_brings_the_knee_ahead() -> None:
    recording = from_bvh(walking_bvh(hip=30.0), walker="x", clip="1")
    joints = joint_positions(recording.rotations, recording.joints)
    ahead = joints[:, BONE["left_shank"], 0]
    assert ahead.max() == pytest.approx(0.44 * np.sin(np.deg2rad(30)), rel=0.02)


def test_an_asf_gives_bones_and_parents_and_an_amc_its_channels() -> None:
    bones, parents = read_asf(ASF)
    assert parents == {"lfemur": "root", "ltibia": "lfemur"}
    assert bones["lfemur"]["dof"] == ["rx", "ry", "rz"]
    channels = read_amc(
        "#!OML\n:DEGREES\n1\nroot 1 2 3 4 5 6\nltibia 7\n2\nroot 0 0 0 0 0 0\nltibia 8\n"
    )
    assert channels["ltibia"][:, 0].tolist() == [7, 8]
    assert channels["root"].shape == (2, 6)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    write_walkers(tmp_path, 1)
    (tmp_path / "SubjectX9_Cycle1.bvh").write_text("HIERARCHY\nnothing here\n")
    with pytest.raises(UnreadableRecording, match=r"SubjectX9_Cycle1\.bvh: no MOTION"):
        load_recordings(tmp_path)


def test_an_amc_without_its_skeleton_is_refused(tmp_path: Path) -> None:
    (tmp_path / "07_01.amc").write_text("1\nroot 0 0 0 0 0 0\n")
    with pytest.raises(UnreadableRecording, match=r"no 07\.asf"):
        load_recordings(tmp_path)


def test_a_folder_without_recordings_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no \.amc or \.bvh"):
        load_recordings(tmp_path)


def test_a_person_with_two_numbers_in_the_cmu_database_is_one_walker(tmp_path: Path) -> None:
    for name in ("91_01", "105_01"):
        (tmp_path / f"{name}.bvh").write_text(walking_bvh())
    recordings = load_recordings(tmp_path)
    assert {recording.walker for recording in recordings} == {"cmu-91"}
    assert len(recordings) == 2


@pytest.mark.skipif(not MOCAP.exists(), reason="the shared motion capture is not here")
def test_amc_and_bvh_of_one_cmu_trial_are_the_same_walk(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(MOCAP / "cmu-walks.zip") as archive:
        for name in ("amc/07/07.asf", "amc/07/07_01.amc", "bvh/07_01.bvh"):
            folder = tmp_path / Path(name).parts[0]
            folder.mkdir(exist_ok=True)
            (folder / Path(name).name).write_bytes(archive.read(name))
    (amc,) = load_recordings(tmp_path / "amc")
    (bvh,) = load_recordings(tmp_path / "bvh")
    joints = [joint_positions(one.rotations, amc.joints) for one in (amc, bvh)]
    frames = min(map(len, joints))
    feet = [BONE["left_foot"], BONE["right_hand"]]
    apart = np.linalg.norm(joints[0][:frames, feet] - joints[1][:frames, feet], axis=-1)
    assert np.median(apart) < 0.05
