"""Label maps: frames whose few values number people, or the parts of one.

Who has a number of their own is somebody, if it reaches over most of the height of what is
connected to it and lies beside another such number; skin and clothes lie over each other.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from models.silhouettes.budget import Budget
from models.silhouettes.cleaning import Person, find_people
from models.silhouettes.colours import MOST_LABELS
from models.silhouettes.pieces import Box
from models.silhouettes.types import Frame

_WHITE: Final = 250  # silhouettes reach this
_WHOLE: Final = 0.75  # of the height of what is connected
_ASIDE: Final = 0.5  # of the narrower one's columns are shared, at most


def list_labels(frame: Frame) -> list[int]:
    """The values of a frame that holds labels, uint8 `[h, w]`; none if it is a silhouette."""
    if int(frame.max()) >= _WHITE:
        return []
    counts = np.asarray(cv2.calcHist([frame], [0], None, [256], [0, 256]), np.float32).ravel()
    values: list[int] = (np.flatnonzero(counts[1:]) + 1).tolist()
    return values if 1 < len(values) <= MOST_LABELS else []


def part_people(
    people: list[Person | str], frame: Frame, labels: list[int], budget: Budget
) -> list[Person | str]:
    """People found in a frame, with those apart whom their labels tell apart.

    Args:
        people: as found in the frame with all labels white.
        frame: uint8 `[h, w]`, 0 where nobody is.
        labels: values in it.
        budget: whose time to keep to.
    """
    numbered = []
    for label in labels:
        found = find_people(np.asarray(cv2.inRange(frame, label, label), np.uint8), budget)[0]
        if isinstance(found, Person):
            numbered.append(found)
    apart: list[Person | str] = []
    for person in people:
        if isinstance(person, str):
            apart.append(person)
            continue
        whole = [
            one
            for one in numbered
            if _is_within(one.place, person.place)
            and one.size.height >= _WHOLE * person.size.height
        ]
        whole.sort(key=lambda one: -one.size.area)
        beside = whole[:1]
        beside += [one for one in whole[1:] if all(_are_aside(one, other) for other in beside)]
        apart += beside if len(beside) > 1 else [person]
    return apart


def _is_within(one: Box, other: Box) -> bool:
    column, row = (one.left + one.right) / 2, (one.top + one.bottom) / 2
    return other.left <= column <= other.right and other.top <= row <= other.bottom


def _are_aside(one: Person, other: Person) -> bool:
    shared = min(one.place.right, other.place.right) - max(one.place.left, other.place.left)
    return shared <= _ASIDE * min(one.place.width, other.place.width)
