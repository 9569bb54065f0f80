"""How similar strangers are in a gallery that is compared by a scene transform.

Who took part in a fit is told from others too easily, so what such people meet promises too much.
A stranger is played by somebody who was left out of the fit, in groups of which there are `FOLDS`
at most: with more people than that a stranger meets up to a `FOLDS`-th fewer than are enrolled. How
strong the fit is was chosen with them, one of a few numbers for all, which tells of nobody.

A gallery that is too small to show a rate by itself has the thresholds of the model's card, which
are of plain similarities, carried over: as many standard deviations above what strangers meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine

from models.card import CardThreshold
from models.comparison.scene import SceneFit, SceneSums, refit
from models.comparison.several import subject_scores
from models.comparison.similarity import index_vectors
from models.thresholds.calibration import CannotCalibrate
from service.gallery.reading import MOST_SEQUENCES, EmbeddedSequences, drawn_subjects
from service.gallery.records import Progress
from service.gallery.scenes import transformed
from service.job_types.threshold_transfer import transferred_threshold

FOLDS: Final = 25
_BLOCK = 512  # walks that are searched at once


def taught(engine: Engine, gallery_id: str, enrolled: EmbeddedSequences) -> NDArray[np.bool_]:
    """What a fit takes [n]: everything, or of a large gallery as many whole subjects as it can."""
    if len(enrolled.subject_ids) <= MOST_SEQUENCES:
        return np.ones(len(enrolled.subject_ids), np.bool_)
    drawn = set(drawn_subjects(engine, gallery_id))
    return np.array([name in drawn for name in enrolled.subject_ids], np.bool_)


def strangers_left_out(
    enrolled: EmbeddedSequences,
    takes_part: NDArray[np.bool_],
    cohort: SceneSums | None,
    chosen: SceneFit,
    progress: Progress = lambda _done, _total: None,
) -> NDArray[np.float64]:
    """The highest score of each sequence among other subjects, by a fit without its own.

    Args:
        enrolled: n sequences.
        takes_part: of a fit, unless it is left out [n].
        cohort: sums that may take part.
        chosen: the fit with everybody, which says how strong.
        progress: told how many groups are done.

    Returns:
        float64 [n], as `scenes.scored`.

    Raises:
        CannotCalibrate: fewer than two subjects take part.
    """
    names, subjects = enrolled.subjects()
    if len(np.unique(subjects[takes_part])) < 2:
        raise CannotCalibrate("a stranger is somebody else; enrol two subjects at least")
    folds = min(len(names), FOLDS)
    fold_of = (np.random.default_rng(0).permutation(len(names)) % folds)[subjects]
    found = np.full(len(subjects), np.nan)
    for fold in range(folds):
        progress(fold, folds)
        left_out = fold_of == fold
        rows = np.flatnonzero(takes_part & ~left_out)
        taught_by = [enrolled.subject_ids[row] for row in rows]
        transform = refit(chosen, enrolled.embeddings[rows], taught_by, cohort=cohort)
        vectors = index_vectors(transformed(transform, enrolled.embeddings))
        met, whose = vectors[~left_out].T, subjects[~left_out]
        asked = np.flatnonzero(left_out)
        for start in range(0, len(asked), _BLOCK):
            some = asked[start : start + _BLOCK]
            found[some] = subject_scores(vectors[some] @ met, whose, len(names)).max(axis=1)
    return found


def carried_over(
    thresholds: Sequence[CardThreshold],
    plain: NDArray[np.float64],
    strangers: NDArray[np.float64],
) -> list[CardThreshold]:
    """A card's thresholds for transformed similarities, given what strangers meet in both [n]."""
    return [
        item.model_copy(
            update={"threshold": transferred_threshold(item.threshold, plain, strangers)}
        )
        for item in thresholds
    ]
