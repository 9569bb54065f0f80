"""What comparing a new model with a gallery's own came to (see `service.job_types.gate`)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Verdict(BaseModel):
    """What a comparison came to, and with which model.

    Attributes:
        better: whether the new model is to be activated.
        reason: why, or why not, in one sentence.
        against: name and digest of the gallery's own model.
        comparison: the figures; None when nobody could be asked.
    """

    model_config = ConfigDict(frozen=True)

    gallery_id: str
    better: bool
    reason: str
    against: dict[str, str]
    comparison: dict[str, Any] | None
