"""Marks as slow what starts processes, trains or drives a browser: `make quick` leaves it out."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent

SLOW_PLACES = ("e2e", "service/test_crashes.py", "service/job_types/test_activation_crashes.py")
SLOW_FIXTURES = {"start_worker", "running", "learning", "distil", "worker"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(_HERE).as_posix()
        fixtures = set(getattr(item, "fixturenames", ()))
        if place.startswith(SLOW_PLACES) or fixtures & SLOW_FIXTURES:
            item.add_marker(pytest.mark.slow)
