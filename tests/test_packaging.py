"""The package takes along what the code reads beside itself."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_pattern_of_packaged_files_finds_some() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for package, patterns in project["tool"]["setuptools"]["package-data"].items():
        for pattern in patterns:
            assert any((ROOT / package).glob(pattern)), f"{package}: {pattern}"
