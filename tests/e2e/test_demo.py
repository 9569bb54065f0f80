import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.foundation.settings import Settings


@pytest.mark.slow
def test_the_demo_shows_everything_and_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = Settings()
    if not (settings.shipped_models_dir / settings.model / "card.json").is_file():
        pytest.skip("no checkpoint ships with this tree: train models/checkpoints/default first")
    answer = subprocess.run(
        [sys.executable, "-m", "service", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path), "GAITID_DATABASE_URL": "sqlite:////nowhere/x"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "no_match" in answer.stdout
    assert "succeeded" in answer.stdout
    assert list(tmp_path.glob("gaitid-demo-*")) == []
