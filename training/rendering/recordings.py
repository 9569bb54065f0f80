"""Motion-capture files (ASF/AMC, BVH) to poses on the shared skeleton.

ASF/AMC is the format of the CMU database (degrees, lengths in inches / 0.45, 120 frames a second);
BVH comes from two skeletons: CMU's conversions (same units, a T-pose as first frame) and
Rueangsirarak 2018 (centimetres, 60 frames a second).
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from training.rendering.skeleton import (
    BONES,
    LIMBS,
    PARENTS,
    Floats,
    from_angles,
    shortest_rotation,
)

_CMU_METRES: Final = 0.0254 / 0.45
_CMU_FPS: Final = 120.0
# Both collections are y up with x to the walker's left and z ahead.
_AXES: Final = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])

_ASF_NAMES: Final[dict[str, str]] = {
    "hips": "root",
    "waist": "lowerback",
    "spine": "upperback",
    "chest": "thorax",
    "neck": "lowerneck",
    "head": "head",
    **{
        f"{side}_{ours}": f"{side[0]}{theirs}"
        for side in ("left", "right")
        for ours, theirs in {
            "shoulder": "clavicle",
            "arm": "humerus",
            "forearm": "radius",
            "hand": "hand",
            "thigh": "femur",
            "shank": "tibia",
            "foot": "foot",
            "toes": "toes",
        }.items()
    },
}
_BVH_LIMBS: Final[dict[str, str]] = {
    "arm": "Arm",
    "forearm": "ForeArm",
    "hand": "Hand",
    "thigh": "UpLeg",
    "shank": "Leg",
    "foot": "Foot",
}
_BVH_LIMB_NAMES: Final[dict[str, str]] = {
    f"{side}_{ours}": f"{side.title()}{theirs}"
    for side in ("left", "right")
    for ours, theirs in _BVH_LIMBS.items()
}
_BVH_CMU_NAMES: Final[dict[str, str]] = {
    "hips": "Hips",
    "waist": "LowerBack",
    "spine": "Spine",
    "chest": "Spine1",
    "neck": "Neck",
    "head": "Head",
    "left_shoulder": "LeftShoulder",
    "right_shoulder": "RightShoulder",
    "left_toes": "LeftToeBase",
    "right_toes": "RightToeBase",
    **_BVH_LIMB_NAMES,
}
_BVH_RUEANGSIRARAK_NAMES: Final[dict[str, str]] = {
    "hips": "Hips",
    "spine": "Spine",
    "chest": "Spine1",
    "head": "HEad",
    "left_shoulder": "LeftShoulder1",
    "right_shoulder": "RightShoulder",
    "left_toes": "LeftToes",
    "right_toes": "RightToes",
    **_BVH_LIMB_NAMES,
}


class UnreadableRecording(ValueError):
    """A motion-capture file that is not what its name says."""


@dataclass(frozen=True)
class Recording:
    """One clip of one person.

    Attributes:
        walker: who walks, unique over collections (`cmu-07`, `rueangsirarak-A11`).
        clip: the clip's name, unique for its walker.
        fps: frames a second.
        rotations: world rotations from the reference stance, `[t, b, 3, 3]`.
        root: path of the hips in metres, `[t, 3]`.
        joints: the recorded person's joints in the reference stance, hips at the origin, `[b, 3]`.
    """

    walker: str
    clip: str
    fps: float
    rotations: Floats
    root: Floats
    joints: Floats


def read_asf(text: str) -> tuple[dict[str, dict[str, list[str]]], dict[str, str]]:
    """Read the skeleton of an ASF file: the fields of each bone, and each bone's parent."""
    bones: dict[str, dict[str, list[str]]] = {}
    parents: dict[str, str] = {}
    section = ""
    current: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.split()
        if not words:
            continue
        if words[0].startswith(":"):
            section = words[0]
        elif section == ":bonedata":
            if words[0] == "begin":
                current = {}
            elif words[0] == "end":
                bones[current["name"][0]] = current
            else:
                current[words[0]] = words[1:]
        elif section == ":hierarchy" and words[0] not in ("begin", "end"):
            parents.update(dict.fromkeys(words[1:], words[0]))
    return bones, parents


def read_amc(text: str) -> dict[str, Floats]:
    """Read the channels of an AMC file, `[t, channels of that bone]` each."""
    frames: list[dict[str, list[float]]] = []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0][0] in "#:":
            continue
        if len(words) == 1 and words[0].isdigit():
            frames.append({})
        elif frames:
            frames[-1][words[0]] = [float(word) for word in words[1:]]
    if not frames:
        raise UnreadableRecording("no frames")
    return {name: np.array([frame[name] for frame in frames]) for name in frames[0]}


def from_asf_amc(asf: str, amc: str, *, walker: str, clip: str) -> Recording:
    """Pose the ASF skeleton by the AMC channels."""
    bones, parents = read_asf(asf)
    channels = read_amc(amc)
    length = len(channels["root"])
    # ASF turns about fixed axes, x first.
    world = {"root": from_angles("zyx", channels["root"][:, :2:-1])}

    def rotation(name: str) -> Floats:
        if name not in world:
            fields = bones[name]
            angles = np.zeros((length, 3))
            for column, axis in enumerate(fields.get("dof", []) if name in channels else []):
                angles[:, "xyz".index(axis[1])] = channels[name][:, column]
            axis_angles = np.array([float(word) for word in fields["axis"][:3]])
            frame = from_angles("zyx", axis_angles[::-1])
            local = from_angles("zyx", angles[:, ::-1])
            world[name] = rotation(parents[name]) @ frame @ local @ frame.T
        return world[name]

    def vector(name: str) -> Floats:
        return np.asarray(_AXES @ [float(word) for word in bones[name]["direction"]])

    lengths = {name: float(fields["length"][0]) * _CMU_METRES for name, fields in bones.items()}
    heads: dict[str, Floats] = {"root": np.zeros(3)}

    def head(name: str) -> Floats:
        if name not in heads:
            parent = parents[name]
            tail = vector(parent) * lengths[parent] if parent != "root" else np.zeros(3)
            heads[name] = head(parent) + tail
        return heads[name]

    return _recording(
        walker,
        clip,
        _CMU_FPS,
        rotations={ours: rotation(theirs) for ours, theirs in _ASF_NAMES.items()},
        directions={ours: vector(_ASF_NAMES[ours]) for ours in LIMBS},
        heads={ours: head(theirs) for ours, theirs in _ASF_NAMES.items()},
        root=channels["root"][:, :3] * _CMU_METRES,
    )


def from_bvh(text: str, *, walker: str, clip: str) -> Recording:
    """Pose the skeleton of a BVH file by its own channels."""
    header, found, motion = text.partition("MOTION")
    if not found:
        raise UnreadableRecording("no MOTION section")
    parents: dict[str, str | None] = {}
    offsets: dict[str, Floats] = {}
    channels: list[tuple[str, list[str]]] = []
    stack: list[str] = []
    for line in header.splitlines():
        words = line.split()
        if not words:
            continue
        if words[0] in ("ROOT", "JOINT"):
            parents[words[1]] = stack[-1] if stack else None
            stack.append(words[1])
        elif words[0] == "End":
            stack.append("")
        elif words[0] == "OFFSET" and stack[-1]:
            offsets[stack[-1]] = np.array([float(word) for word in words[1:4]])
        elif words[0] == "CHANNELS":
            channels.append((stack[-1], words[2:]))
        elif words[0] == "}":
            stack.pop()
    rate = re.search(r"Frame Time:\s*([0-9.eE+-]+)", motion)
    if rate is None:
        raise UnreadableRecording("no Frame Time")
    values = np.loadtxt(io.StringIO(motion[rate.end() :]), ndmin=2)
    cmu = "LowerBack" in parents
    names = _BVH_CMU_NAMES if cmu else _BVH_RUEANGSIRARAK_NAMES
    missing = sorted(set(names.values()) - parents.keys())
    if missing:
        raise UnreadableRecording(f"no joint {missing[0]}; neither of the two known skeletons")
    metres = _CMU_METRES if cmu else 0.01
    values = values[1:] if cmu else values
    rotations: dict[str, Floats] = {}
    heads: dict[str, Floats] = {}
    root = np.zeros((len(values), 3))
    column = 0
    for name, order in channels:
        block = values[:, column : column + len(order)]
        column += len(order)
        if len(order) == 6:
            root, block, order = block[:, :3] * metres, block[:, 3:], order[3:]
        local = from_angles("".join(axis[0].lower() for axis in order), block)
        parent = parents[name]
        if parent is None:
            rotations[name], heads[name] = local, np.zeros(3)
        else:
            rotations[name] = rotations[parent] @ local
            heads[name] = heads[parent] + _AXES @ offsets[name] * metres
    tips = {"arm": "ForeArm", "forearm": "Hand", "thigh": "Leg", "shank": "Foot"}
    directions: dict[str, Floats] = {}
    for limb in LIMBS:
        side, _, part = limb.partition("_")
        # A hand runs on in the direction of the forearm.
        directions[limb] = _AXES @ offsets[f"{side.title()}{tips.get(part, 'Hand')}"]
    return _recording(
        walker,
        clip,
        1.0 / float(rate.group(1)),
        rotations={ours: rotations[theirs] for ours, theirs in names.items()},
        directions=directions,
        heads={ours: heads[theirs] for ours, theirs in names.items()},
        root=root,
    )


def _recording(
    walker: str,
    clip: str,
    fps: float,
    *,
    rotations: dict[str, Floats],
    directions: dict[str, Floats],
    heads: dict[str, Floats],
    root: Floats,
) -> Recording:
    """Rotations from the rest pose (y up) to rotations from the reference stance (z up)."""
    world = np.empty((len(root), len(BONES), 3, 3))
    joints = np.zeros((len(BONES), 3))
    for bone, (name, parent) in enumerate(zip(BONES, PARENTS, strict=True)):
        if name not in rotations:  # a skeleton with fewer joints: the bone follows its parent
            world[:, bone] = world[:, parent]
            joints[bone] = joints[parent]
            continue
        turned = _AXES @ rotations[name] @ _AXES.T
        if name in LIMBS:
            turned = turned @ shortest_rotation(LIMBS[name], directions[name])
        world[:, bone] = turned
        if parent >= 0:
            # Bones between two of ours are rigid to our parent; straighten limbs to the reference
            # stance.
            known = next(p for p in _ancestors(bone) if BONES[p] in heads)
            offset = heads[name] - heads[BONES[known]]
            if BONES[known] in LIMBS:
                offset = LIMBS[BONES[known]] * np.linalg.norm(offset)
            joints[bone] = joints[known] + offset
    return Recording(walker, clip, fps, world, root @ _AXES.T, joints)


def _ancestors(bone: int) -> Iterator[int]:
    while PARENTS[bone] >= 0:
        bone = PARENTS[bone]
        yield bone


def load_recordings(folder: Path) -> list[Recording]:
    """Read every recording under a folder, zip archives included.

    File names say who walks: `07_01.amc` beside `07.asf` (CMU subject 07), `07_01.bvh`,
        `SubjectA1_Cycle2.bvh`. Where a
    clip is there as AMC and BVH, the AMC counts.

    Raises:
        FileNotFoundError: the folder holds no recording.
        UnreadableRecording: a file is damaged; the message names it.
    """
    files = dict(_texts(folder))
    asf = {PurePosixPath(path).stem: text for path, text in files.items() if path.endswith(".asf")}
    recordings: dict[tuple[str, str], Recording] = {}
    for path in sorted(files, key=lambda path: (not path.endswith(".amc"), path)):
        stem, suffix = PurePosixPath(path).stem, PurePosixPath(path).suffix
        if suffix not in (".amc", ".bvh"):
            continue
        walker, clip = _who(stem)
        if (walker, clip) in recordings:
            continue
        try:
            if suffix == ".bvh":
                recording = from_bvh(files[path], walker=walker, clip=clip)
            else:
                subject = stem.partition("_")[0]
                if subject not in asf:
                    raise UnreadableRecording(f"no {subject}.asf for it")
                recording = from_asf_amc(asf[subject], files[path], walker=walker, clip=clip)
        except (ValueError, KeyError, IndexError) as error:
            raise UnreadableRecording(f"{path}: {error}") from error
        recordings[walker, clip] = recording
    if not recordings:
        raise FileNotFoundError(f"no .amc or .bvh recordings in {folder}")
    return list(recordings.values())


_SAME_PERSON: Final = {"105": "91", "103": "93"}


def _who(stem: str) -> tuple[str, str]:
    patient = re.fullmatch(r"Subject([A-Z]\d+)_(\w+)", stem)
    if patient:
        return f"rueangsirarak-{patient[1]}", patient[2]
    subject, _, clip = stem.partition("_")
    # Some people are in the database under two numbers.
    return (
        f"cmu-{_SAME_PERSON.get(subject, subject)}",
        clip if subject not in _SAME_PERSON else stem,
    )


def _texts(folder: Path) -> Iterable[tuple[str, str]]:
    suffixes = (".asf", ".amc", ".bvh")
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if name.endswith(suffixes):
                        yield name, archive.read(name).decode("utf-8", errors="replace")
        elif path.suffix in suffixes:
            yield path.relative_to(folder).as_posix(), path.read_text("utf-8", errors="replace")
