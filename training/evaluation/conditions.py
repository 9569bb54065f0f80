"""Which walks are asked and which are enrolled for them, by the names of their conditions.

A rule makes questions of the conditions that a data set has. Those of the field's data sets follow
its evaluators (OpenGait's `evaluator.py`), those of rendered walks and of a person's own are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SHOWN = 20


class ProtocolMismatch(ValueError):
    """The data set does not have what the protocol needs; the text says what."""


class Question(NamedTuple):
    """What is asked of which gallery.

    Attributes:
        name: that it is reported by.
        probes: conditions of the walks that are asked.
        gallery: conditions of the walks that are enrolled.
    """

    name: str
    probes: frozenset[str]
    gallery: frozenset[str]


Questions = tuple[Question, ...]
QuestionRule = Callable[[NDArray[np.str_]], Questions]


def named_conditions(gallery: str, **probes: str) -> QuestionRule:
    """A rule that names conditions outright, separated by blanks, with one gallery for all."""
    return paired_conditions(**{name: (text, gallery) for name, text in probes.items()})


def paired_conditions(**questions: tuple[str, str]) -> QuestionRule:
    """The same with a gallery for each question: conditions of its probes, of its gallery."""
    named = tuple(
        Question(name, frozenset(probes.split()), frozenset(gallery.split()))
        for name, (probes, gallery) in questions.items()
    )
    return lambda _: named


def containing(gallery: str, **probes: str) -> QuestionRule:
    """A rule by what names of conditions contain, any of some pieces separated by blanks.

    A walk may belong to several questions, as one at night with a bag.
    """

    def rule(conditions: NDArray[np.str_]) -> Questions:
        names = _distinct(conditions)

        def with_any(pieces: str) -> frozenset[str]:
            return frozenset(name for name in names if any(p in name for p in pieces.split()))

        enrolled = with_any(gallery)
        return tuple(Question(name, with_any(text), enrolled) for name, text in probes.items())

    return rule


def own_conditions(enrolled: Sequence[str], asked: Mapping[str, Sequence[str]]) -> QuestionRule:
    """A person's own rule: patterns of names (`*`, `?`, `[…]`), enrolled and asked.

    Args:
        enrolled: patterns of the conditions that make the gallery.
        asked: by the name it is reported under, patterns of conditions that are asked.

    The rule raises `ProtocolMismatch` if a pattern fits no condition, or a condition would be asked
    of itself.
    """

    def rule(conditions: NDArray[np.str_]) -> Questions:
        names = _distinct(conditions)
        gallery = _fitting(enrolled, names)
        questions = tuple(
            Question(name, _fitting(patterns, names), gallery) for name, patterns in asked.items()
        )
        for question in questions:
            both = sorted(question.probes & gallery)
            if both:
                raise ProtocolMismatch(f"{both[0]!r} is both enrolled and asked")
        return questions

    return rule


def rendered_conditions(conditions: NDArray[np.str_]) -> Questions:
    """The rule for data sets without a protocol of their own, as our rendered ones.

    A condition is a kind and, if the kind was walked more than once, a number: `normal-03`,
    `nm-01`, `coat`. The earlier half of the normal walks (rounded up, but not the last one) is the
    gallery; every other walk is a probe, reported under its kind.

    Raises:
        ProtocolMismatch: no condition is `normal` or `nm`.
    """
    kinds: dict[str, list[str]] = {}
    for condition in _distinct(conditions):
        kinds.setdefault(kind(condition), []).append(condition)
    normal = next((name for name in ("normal", "nm") if name in kinds), None)
    if normal is None:
        raise ProtocolMismatch(
            f"no condition is 'normal' or 'nm', so nothing is enrolled; found: {listed(kinds)}"
        )
    walks = kinds.pop(normal)
    enrolled = frozenset(walks[: max(1, min((len(walks) + 1) // 2, len(walks) - 1))])
    asked = kinds if len(walks) == 1 else {str(normal): walks[len(enrolled) :], **kinds}
    return tuple(Question(name, frozenset(names), enrolled) for name, names in asked.items())


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key in which `walk-10` follows `walk-9`."""
    return [(int(piece) if piece.isdigit() else -1, piece) for piece in re.split(r"(\d+)", name)]


def kind(condition: str) -> str:
    """`coat-02` → `coat`; a condition that is only a number is its own kind."""
    return re.sub(r"[-_ ]*\d+$", "", condition) or condition


def listed(names: Iterable[str]) -> str:
    """Names for a sentence, of very many the first."""
    ordered = sorted(names, key=natural)
    more = len(ordered) - _SHOWN
    return ", ".join(ordered[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _distinct(conditions: NDArray[np.str_]) -> list[str]:
    return sorted({str(condition) for condition in conditions}, key=natural)


def _fitting(patterns: Sequence[str], names: Sequence[str]) -> frozenset[str]:
    found: set[str] = set()
    for pattern in patterns:
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting:
            raise ProtocolMismatch(f"no condition is {pattern!r}; found: {listed(names)}")
        found.update(fitting)
    return frozenset(found)


def _casia_e(*scenes: str, kind: str) -> str:
    """Walks 1 and 2 of a kind in these scenes, seen from high and low cameras."""
    walks = [f"{height}-{scene}-{kind}-" for scene in scenes for height in "HL"]
    return " ".join(f"{walk}{number}" for walk in walks for number in (1, 2))


CASIA_E: Final = named_conditions(
    _casia_e("scene1", kind="nm"),
    NM=_casia_e("scene2", "scene3", "scene3_s", kind="nm"),
    BG=_casia_e("scene2", "scene3", "scene3_s", kind="bg"),
    CL=_casia_e("scene2", "scene3", "scene3_s", kind="cl"),
)
CCPG: Final = paired_conditions(
    CL=("U0_D0_BG U0_D0", "U1_D1 U2_D2 U3_D3"),
    UP=("U3_D3", "U0_D3"),
    DN=("U1_D0", "U1_D1"),
    BG=("U0_D0_BG", "U0_D0"),
)
SUSTECH1K: Final = containing(
    "00-nm",
    Normal="01-nm",
    Bag="bg",
    Clothing="cl",
    Carrying="cr",
    Umbrella="ub",
    Uniform="uf",
    Occlusion="oc",
    Night="nt",
    Overall="01 02 03 04",
)
