from __future__ import annotations

from pathlib import Path

import pytest

from training.data import PackError, Partition
from training.data.partitions import PARTITIONS, partition_named


@pytest.mark.parametrize(
    ("name", "train", "test", "ends"),
    [
        ("casia-b", 74, 50, ("001", "074", "075", "124")),
        ("casia-e", 200, 814, ("001", "200", "201", "1014")),
        ("ccpg", 100, 100, ("000", "099", "100", "199")),
        ("grew", 20_000, 6_000, ("00001train", "20000train", "00001", "06000")),
        ("ou-mvlp", 5_153, 5_154, ("00001", "10305", "00002", "10307")),
    ],
)
def test_plain_partitions_have_the_fields_sizes_and_nobody_twice(
    name: str, train: int, test: int, ends: tuple[str, ...]
) -> None:
    partition = partition_named(name)
    assert (len(partition.train), len(partition.test)) == (train, test)
    assert (*partition.train[:: train - 1], *partition.test[:: test - 1]) == ends
    assert len({*partition.train, *partition.test}) == train + test


def test_ou_mvlp_trains_on_odd_subjects_and_tests_on_even_ones_and_the_last() -> None:
    partition = PARTITIONS["ou-mvlp"]
    assert all(int(subject) % 2 == 1 for subject in partition.train)
    assert [subject for subject in partition.test if int(subject) % 2] == ["10307"]


def test_any_other_partition_is_a_file(tmp_path: Path) -> None:
    partition = Partition(train=("a",), test=("b",), gallery=("b-nm-090",))
    partition.save(tmp_path / "field.json")
    assert partition_named(str(tmp_path / "field.json")) == partition
    with pytest.raises(PackError, match=r"neither a file nor .*casia-b, .*ou-mvlp"):
        partition_named(str(tmp_path / "casia-c"))
