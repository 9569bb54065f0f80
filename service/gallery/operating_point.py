"""What calibrating a gallery found: its threshold, what that promises, and when it is stale."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from models.thresholds.calibration import Calibration, Method

GROWTH = 1.2
"""A gallery that has this many times the subjects is stale: so is its rate of false matches."""

_Count = Annotated[int, Field(ge=0, le=2**53)]  # of an import as well
_UNSHOWN = {"threshold", "digest", "curve", "rerun", "scene"}
_LONGEST_CURVE = 16  # of an import; a calibration makes seven at most


class Rerun(BaseModel):
    """What a gallery was like when its calibration was last queued again by itself."""

    model_config = ConfigDict(frozen=True)

    subjects: _Count
    digest: str


class CurvePoint(BaseModel):
    """The threshold that one calibration found for one rate.

    Attributes:
        target_fpir: the rate.
        threshold: similarity.
        low: where its interval begins; None with fewer than 3 subjects.
        high: where it ends.
        method: how it was found; another rate may take another method.
    """

    model_config = ConfigDict(frozen=True)

    target_fpir: float
    threshold: float
    low: float | None
    high: float | None
    method: Method

    @classmethod
    def of(cls, target_fpir: float, found: Calibration) -> Self:
        """From what was found for a rate."""
        low, high = found.interval or (None, None)
        return cls(
            target_fpir=target_fpir,
            threshold=found.threshold,
            low=low,
            high=high,
            method=found.method,
        )


class OperatingPoint(BaseModel):
    """A gallery's threshold as it is kept.

    Attributes:
        threshold: similarity from which on a search answers with a match.
        interval: of the threshold; None with fewer than 3 subjects.
        confidence: of the interval.
        method: how it was found, see `models.thresholds.calibration`, or that it was carried over
            from another model, see `service.job_types.threshold_transfer`.
        target_fpir: the promised rate; of a threshold that was carried over, the rate to promise.
        gallery_subjects: how many were enrolled.
        gallery_sequences: how many sequences they had.
        calibrated_at: when.
        digest: of the checkpoint whose similarities these are; it says nothing of any other's.
        scene: version of the scene transform that they went through; it says nothing of others.
        curve: thresholds for other rates, highest rate first, and for this one; only those that the
            gallery or the card can show. Empty where it was found by an earlier version.
        rerun: set when it was found stale and a job was queued.
    """

    model_config = ConfigDict(frozen=True)

    threshold: float
    interval: tuple[float, float] | None
    confidence: float
    method: Method | Literal["carried"]
    target_fpir: float
    gallery_subjects: _Count
    gallery_sequences: _Count
    calibrated_at: datetime
    digest: str
    scene: str | None = None
    curve: Annotated[tuple[CurvePoint, ...], Field(max_length=_LONGEST_CURVE)] = ()
    rerun: Rerun | None = None

    @classmethod
    def of(cls, kept: dict[str, Any] | None) -> Self | None:
        """From a gallery's row."""
        return None if kept is None else cls.model_validate(kept)

    def kept(self) -> dict[str, Any]:
        """For a gallery's row; without curve and scene as it was kept before there were any."""
        absent = {name for name in ("curve", "scene") if not getattr(self, name)}
        return self.model_dump(mode="json", exclude=absent)

    def stale(self, digest: str, subjects: int) -> bool:
        """Whether the model is another now, or the gallery has grown by a fifth."""
        return digest != self.digest or subjects >= GROWTH * self.gallery_subjects

    def due(self, digest: str, subjects: int) -> bool:
        """Whether it is stale, and no calibration of the gallery as it is now was queued yet."""
        if not self.stale(digest, subjects):
            return False
        last = self.rerun
        return last is None or digest != last.digest or subjects >= GROWTH * last.subjects

    def result(self) -> dict[str, Any]:
        """For clients, as the result of the job that found it."""
        return self.model_dump(mode="json", exclude={"rerun", "scene"})

    def shown(self, digest: str, subjects: int) -> dict[str, Any]:
        """For clients, beside the threshold that it made."""
        content = self.model_dump(mode="json", exclude=_UNSHOWN)
        return {**content, "stale": self.stale(digest, subjects)}
