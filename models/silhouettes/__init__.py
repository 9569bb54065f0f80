"""Silhouettes: decode, clean, normalise, judge."""

from models.silhouettes.budget import DecodeLimits
from models.silhouettes.cleaning import Cleaned, clean
from models.silhouettes.decode import decode
from models.silhouettes.errors import (
    MalformedSequence,
    PoorSequence,
    SequenceError,
    SequenceTooLarge,
    UnsupportedSequence,
)
from models.silhouettes.normalise import cut, gait_energy_image, normalise, pad
from models.silhouettes.prepare import Prepared, is_prepared, prepare, prepare_upload
from models.silhouettes.quality import EXPLANATIONS, LEAST_FRAMES, judge
from models.silhouettes.types import Frame, Quality, Silhouettes

__all__ = [
    "EXPLANATIONS",
    "LEAST_FRAMES",
    "Cleaned",
    "DecodeLimits",
    "Frame",
    "MalformedSequence",
    "PoorSequence",
    "Prepared",
    "Quality",
    "SequenceError",
    "SequenceTooLarge",
    "Silhouettes",
    "UnsupportedSequence",
    "clean",
    "cut",
    "decode",
    "gait_energy_image",
    "is_prepared",
    "judge",
    "normalise",
    "pad",
    "prepare",
    "prepare_upload",
]
