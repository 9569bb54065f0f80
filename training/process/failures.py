"""Turn an exception into one sentence and say whether the input was at fault.

Imports no torch: most failures come before it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

_OURS = ("models", "training")


@dataclass(frozen=True)
class Failure:
    """Why a command failed.

    Attributes:
        reason: one sentence for people.
        bad_input: what was asked for cannot be done; asking again will not help.
        unexpected: not one of the known errors; the traceback is worth printing.
    """

    reason: str
    bad_input: bool
    unexpected: bool


def explain(error: Exception) -> Failure:
    """Classify an exception.

    Our domain errors are ValueErrors when the input is at fault and RuntimeErrors when the run is,
    and carry a sentence made for people.
    """
    ours = type(error).__module__.split(".")[0] in _OURS
    sentence = " ".join(str(error).split()) or type(error).__name__
    if ours and isinstance(error, ValueError):
        return Failure(sentence, bad_input=True, unexpected=False)
    if ours and isinstance(error, RuntimeError):
        return Failure(sentence, bad_input=False, unexpected=False)
    if isinstance(error, OSError):
        return Failure(sentence, bad_input=False, unexpected=False)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        advice = "lower batch.subjects, batch.sequences or the clip's frames"
        return Failure(f"the device is out of memory: {advice}", bad_input=False, unexpected=False)
    return Failure(f"{type(error).__name__}: {sentence}", bad_input=False, unexpected=True)
