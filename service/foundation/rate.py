"""A rate of requests as settings and keys have it, such as `120/minute`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Self

UNLIMITED: Final = "unlimited"
_PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(rf"([1-9][0-9]{{0,6}})/({'|'.join(_PERIODS)})")


@dataclass(frozen=True, slots=True)
class Rate:
    """A number of requests in a number of seconds."""

    requests: int
    seconds: int

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read `120/minute`; returns None for `unlimited`, and raises `ValueError` for the rest."""
        if text == UNLIMITED:
            return None
        found = _RATE.fullmatch(text)
        if found is None:
            raise ValueError(
                f"a rate is a number a second, minute, hour or day, such as 120/minute, "
                f"or {UNLIMITED}"
            )
        return cls(int(found[1]), _PERIODS[found[2]])
