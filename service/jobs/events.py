"""What a training run prints with `--json`: one event a line, parsed without trusting it.

The events are a contract with `python -m training` (docs/architecture.md, "A training run").
"""

from __future__ import annotations

import json
import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from service.jobs.job import JsonObject

_Count = Annotated[int, Field(ge=0, le=2**53)]


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Start(_Event):
    """The run begins, or resumes where `step` > 0."""

    event: Literal["start"]
    total_steps: _Count
    step: _Count = 0


class Progress(_Event):
    """`step` of `total_steps` is done, about `eta_s` seconds are left."""

    event: Literal["progress"]
    step: _Count
    total_steps: _Count
    eta_s: float | None = None
    metrics: JsonObject = Field(default_factory=dict)


class Evaluation(_Event):
    """Metrics of an evaluation during or after the run."""

    event: Literal["evaluation"]
    metrics: JsonObject


class Done(_Event):
    """The run has ended well."""

    event: Literal["done"]
    checkpoint: str | None = None
    metrics: JsonObject = Field(default_factory=dict)


class Failed(_Event):
    """The run gives up, and says why in one sentence."""

    event: Literal["failed"]
    reason: str


RunEvent = Start | Progress | Evaluation | Done | Failed
_ADAPTER: TypeAdapter[RunEvent] = TypeAdapter(Annotated[RunEvent, Field(discriminator="event")])


def _finite(text: str) -> float | None:
    """JSON knows no NaN or infinity; a loss that is one must still reach the client as JSON."""
    value = float(text)
    return value if math.isfinite(value) else None


def parse(line: str) -> RunEvent | None:
    """Read one line of a run's standard output; None when it is not an event."""
    try:
        content = json.loads(line, parse_float=_finite, parse_constant=lambda _name: None)
        return _ADAPTER.validate_python(content)
    except (ValueError, RecursionError):  # a ValidationError is a ValueError
        return None
