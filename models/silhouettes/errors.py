"""Why a sequence was refused.

SequenceError (ValueError)
├── MalformedSequence      broken bytes, or content that cannot be a sequence   (HTTP 400)
├── UnsupportedSequence    a kind of file that is not accepted                  (HTTP 415)
├── SequenceTooLarge       over a limit of `DecodeLimits`                       (HTTP 413)
└── PoorSequence           readable, but no gait can be recognised in it        (HTTP 422)
"""

from __future__ import annotations

from models.silhouettes.types import Quality


class SequenceError(ValueError):
    """A sequence was refused.

    Attributes:
        where: the archive member or frame at fault; empty when it is the file as a whole.
        reason: one sentence for the person who sent it, saying what to do.
    """

    def __init__(self, reason: str, *, where: str = "") -> None:
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.where = where


class MalformedSequence(SequenceError):
    """The bytes are broken, or hold what cannot be a sequence of silhouettes."""


class UnsupportedSequence(SequenceError):
    """The bytes are of a kind that is not accepted."""


class SequenceTooLarge(SequenceError):
    """The sequence is over a limit."""


class PoorSequence(SequenceError):
    """The sequence can be read, but no gait can be recognised in it.

    Attributes:
        reasons: the codes of what is wrong, keys of `quality.EXPLANATIONS`; never empty.
        quality: the whole judgement, with the frames dropped and why.
    """

    def __init__(self, reason: str, *, reasons: tuple[str, ...], quality: Quality) -> None:
        super().__init__(reason)
        self.reasons = reasons
        self.quality = quality
