"""Marks as slow what starts a server, a child process, a worker or a training run.

`make quick` leaves slow tests out. Which they are is read from the code of each test, of the
fixtures that are made for it alone, and of the functions of `tests` that those call; what is slow
for another reason is marked by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from inspect import isclass, isfunction, unwrap
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

SLOW_PLACES = (
    "e2e",
    "service/test_crashes.py",
    "service/job_types/test_activation_crashes.py",
    "service/cli/test_cli.py",
    "service/http/test_refusals.py",
)
SLOW_NAMES = {
    "DecoderPool",
    "Popen",
    "Worker",
    "get_context",
    "run_recipe",
    "serving",
    "subprocess",
    "working",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(here).as_posix()
        if place.startswith(SLOW_PLACES) or any(uses_slow(code) for code in functions_of(item)):
            item.add_marker(pytest.mark.slow)


def functions_of(item: Any) -> Iterator[Any]:
    """The test's function, and those of its fixtures that are not shared with other tests."""
    yield item.function
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        for fixture in definitions:
            if fixture.scope == "function":
                yield fixture.func


@cache
def uses_slow(found: Any) -> bool:
    """Whether a function or class of `tests` names something slow, or something that does."""
    if not getattr(found, "__module__", "").startswith("tests."):
        return False
    if isclass(found):
        return any(uses_slow(member) for member in vars(found).values() if isfunction(member))
    if not isfunction(found := unwrap(found)):
        return False
    names = names_in(found.__code__)
    return bool(names & SLOW_NAMES) or any(
        uses_slow(found.__globals__[name])
        for name in names & found.__globals__.keys()
        if name != found.__name__ and callable(found.__globals__[name])
    )


def names_in(code: CodeType) -> set[str]:
    """Every global name and attribute that code uses, also in what is defined inside it."""
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return set(code.co_names).union(*(names_in(one) for one in inner))
