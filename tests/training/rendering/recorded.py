"""Made-up recordings: a stick figure that walks, in the files the two collections use."""

from __future__ import annotations

from pathlib import Path

import numpy as np

Tree = tuple[str, tuple[float, float, float], tuple["Tree", ...]]
_SIDES = ("Right", "Left")


def walking_bvh(
    *,
    fps: float = 60.0,
    seconds: float = 4.0,
    period: float = 1.1,
    speed: float = 1.3,
    heading: float = 0.0,
    hip: float = 25.0,
) -> str:
    """A walk on the skeleton of Rueangsirarak 2018 (centimetres, y up, facing z).

    Args:
        fps: frames a second.
        seconds: length.
        period: seconds of a gait cycle.
        speed: metres a second.
        heading: degrees by which the whole walk is turned about the vertical.
        hip: degrees of hip flexion to either side.
    """
    time = np.arange(round(fps * seconds)) / fps
    phase = 2 * np.pi * time / period
    turn = np.deg2rad(heading)
    way = 100 * speed * time
    columns = {
        "Hips": np.stack(
            [
                np.sin(turn) * way,
                np.full_like(way, 95.0),
                np.cos(turn) * way,
                0 * way,
                0 * way,
                np.full_like(way, heading),
            ],
            axis=1,
        )
    }
    for side, sign in zip(_SIDES, (1.0, -1.0), strict=True):
        flexion = -hip * np.sin(phase) * sign  # about x, to the left: ahead is negative
        knee = 30 + 25 * np.cos(phase) * sign
        columns[f"{side}UpLeg"] = np.stack([0 * time, flexion, 0 * time], axis=1)
        columns[f"{side}Leg"] = np.stack([0 * time, knee, 0 * time], axis=1)
    lines, order = _skeleton()
    lines += ["MOTION", f"Frames: {len(time)}", f"Frame Time: {1 / fps:.7f}"]
    still = np.zeros((len(time), 3))
    values = np.concatenate([columns.get(joint, still) for joint in order], axis=1)
    lines += [" ".join(f"{value:.5f}" for value in row) for row in values]
    return "\n".join(lines) + "\n"


def _skeleton() -> tuple[list[str], list[str]]:
    """The lines of the HIERARCHY section, and its joints in their order."""
    lines, order = ["HIERARCHY"], []

    def add(tree: Tree) -> None:
        name, (x, y, z), children = tree
        order.append(name)
        root = name == "Hips"
        lines.extend([f"{'ROOT' if root else 'JOINT'} {name}", "{", f"OFFSET {x} {y} {z}"])
        position = "6 Xposition Yposition Zposition" if root else "3"
        lines.append(f"CHANNELS {position} Zrotation Xrotation Yrotation")
        for child in children:
            add(child)
        if not children:
            lines.extend(["End Site", "{", "OFFSET 0 0 5", "}"])
        lines.append("}")

    add(_tree())
    return lines, order


def _tree() -> Tree:
    def leg(side: str, x: float) -> Tree:
        foot: Tree = (f"{side}Foot", (0, -42, 0), ((f"{side}Toes", (0, -4, 9), ()),))
        return f"{side}UpLeg", (x, -9, 0), ((f"{side}Leg", (0, -44, 0), (foot,)),)

    def arm(side: str, shoulder: str, x: float) -> Tree:
        fore: Tree = (f"{side}ForeArm", (x * 33, 0, 0), ((f"{side}Hand", (x * 27, 0, 0), ()),))
        return shoulder, (x * 9, 0, 0), ((f"{side}Arm", (x * 10, 0, 0), (fore,)),)

    above: tuple[Tree, ...] = (
        ("HEad", (0, 9, 0), ()),
        arm("Left", "LeftShoulder1", 1.0),
        arm("Right", "RightShoulder", -1.0),
    )
    spine: Tree = ("Spine", (0, 12, 0), (("Spine1", (0, 26, 0), above),))
    return "Hips", (0, 95, 0), (leg("Right", -9), spine, leg("Left", 9))


def write_walkers(folder: Path, people: int) -> Path:
    """Files `SubjectX1_Cycle1.bvh` … of so many people who walk differently."""
    folder.mkdir(parents=True, exist_ok=True)
    for person in range(people):
        text = walking_bvh(period=0.95 + 0.07 * person, hip=20.0 + 3 * person)
        (folder / f"SubjectX{person + 1}_Cycle1.bvh").write_text(text)
    return folder


ASF = """
:version 1.10
:bonedata
  begin
    name lfemur
    direction 0 -1 0
    length 7.0
    axis 0 0 20 XYZ
    dof rx ry rz
  end
  begin
    name ltibia
    direction 0 -1 0
    length 7.0
    axis 0 0 20 XYZ
    dof rx
  end
:hierarchy
  begin
    root lfemur
    lfemur ltibia
  end
"""
