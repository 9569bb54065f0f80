"""Partitions of the field that are plain rules; others come as files with their data sets.

The ids are those of folders as the field prepares them; OpenGait's lists say the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from training.data.pack import PackError, Partition


def _ids(numbers: Iterable[int], digits: int, suffix: str = "") -> tuple[str, ...]:
    return tuple(f"{number:0{digits}}{suffix}" for number in numbers)


PARTITIONS: Final[dict[str, Partition]] = {
    "casia-b": Partition(train=_ids(range(1, 75), 3), test=_ids(range(75, 125), 3)),
    "casia-e": Partition(train=_ids(range(1, 201), 3), test=_ids(range(201, 1015), 3)),
    "ccpg": Partition(train=_ids(range(100), 3), test=_ids(range(100, 200), 3)),
    "grew": Partition(train=_ids(range(1, 20_001), 5, "train"), test=_ids(range(1, 6_001), 5)),
    # Odd numbers train and even ones test, but for the last odd one.
    "ou-mvlp": Partition(
        train=_ids(range(1, 10_306, 2), 5), test=_ids((*range(2, 10_307, 2), 10_307), 5)
    ),
}


def partition_named(text: str) -> Partition:
    """A partition by its name in `PARTITIONS`, or else from a file.

    Raises:
        PackError: neither; the text lists the names.
    """
    if text in PARTITIONS:
        return PARTITIONS[text]
    path = Path(text)
    if not path.is_file():
        known = ", ".join(sorted(PARTITIONS))
        raise PackError(f"{text}: neither a file nor a partition of the field ({known})")
    return Partition.load(path)
