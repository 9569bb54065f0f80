"""The walkers that ship with the service are what a user may upload."""

from pathlib import Path

import pytest

from models.silhouettes import DecodeLimits, decode
from models.silhouettes.prepare import prepare

WALKS = Path(__file__).parents[3] / "service/cli/demo_walks"
FILES = sorted(WALKS.glob("*/*.zip"))


def test_six_people_walk_three_times_and_two_strangers_once() -> None:
    people = {folder.name: len(list(folder.iterdir())) for folder in WALKS.glob("[!_]*/")}
    assert people == {**{f"person-{number}": 3 for number in range(1, 7)}, "stranger": 2}
    assert sum(path.stat().st_size for path in FILES) < 500_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_walk_is_accepted(path: Path) -> None:
    prepared = prepare(decode(path.read_bytes(), DecodeLimits()))
    assert len(prepared.silhouettes) >= 20
