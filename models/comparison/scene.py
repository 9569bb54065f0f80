"""Scene transforms: what makes one view of a place alike, taken out of the comparison.

Walks filmed by one camera resemble each other more than walks of one person from two sides. What
walks of a person have in different views (their covariance within persons) is learnt in closed
form from a gallery's own walks and whitened away, where people who took no part say it helps.
Only numpy.

Shapes: n walks, p parts, c channels as the network made them; d = p*c; q parts, k channels after a
transform.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from models.comparison.similarity import index_vectors
from models.files.array_file import read_array

PRIOR: Final = "scene.npz"
"""Of a checkpoint's folder: the statistics of rendered people."""
LEAST_SUBJECTS: Final = 5
"""Fewer persons with several walks show nothing about anybody else."""

_CONFIDENCE: Final = 0.95
_REPLICATES: Final = 2000
_FOLDS: Final = 5
_STRENGTHS: Final = (0.5, 0.8, 0.95)
_MAX_BYTES: Final = 1 << 26

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SceneTransform:
    """An affine map of whole embeddings, with their parts at unit length before and after it.

    Attributes:
        mean: taken off, float32 [d].
        matrix: then multiplied by, float32 [d, q*k].
        parts: q.
    """

    mean: NDArray[np.float32]
    matrix: NDArray[np.float32]
    parts: int

    def __post_init__(self) -> None:
        """Raises ValueError if the arrays don't fit or hold what is no finite number."""
        wide = self.matrix.shape[1] if self.matrix.ndim == 2 else 0
        if self.mean.ndim != 1 or self.matrix.shape != (len(self.mean), wide) or not wide:
            raise ValueError(f"a matrix {self.matrix.shape} for a mean {self.mean.shape}")
        if self.parts < 1 or wide % self.parts:
            raise ValueError(f"{wide} channels are no {self.parts} parts")
        for array in (self.mean, self.matrix):
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError("a scene transform holds finite numbers of float32")

    def apply(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embeddings [n, p, c] as this scene compares them: [n, q, k], each part of unit length.

        The mean cosine of their parts is the similarity. A part that becomes zero stays zero.

        Raises:
            ValueError: embeddings of another shape.
        """
        vectors = index_vectors(embeddings)
        if vectors.shape[1] != len(self.mean):
            raise ValueError(f"{vectors.shape[1]} numbers a walk, {len(self.mean)} expected")
        mapped = ((vectors - self.mean) @ self.matrix).reshape(len(vectors), self.parts, -1)
        lengths = np.linalg.norm(mapped, axis=2, keepdims=True)
        units: NDArray[np.float32] = np.zeros_like(mapped)
        np.divide(mapped, lengths, out=units, where=lengths > 0)
        return units

    def to_bytes(self) -> bytes:
        """As an npz archive, without pickle."""
        return _archive(mean=self.mean, matrix=self.matrix, parts=np.array([self.parts], np.int64))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` made.

        Raises:
            ValueError: damaged, or something else.
        """
        arrays = _members(data, ("mean", "matrix", "parts"))
        return cls(
            mean=read_array(arrays["mean"], np.float32, (None,)).astype(np.float32),
            matrix=read_array(arrays["matrix"], np.float32, (None, None)).astype(np.float32),
            parts=int(read_array(arrays["parts"], np.int64, (1,))[0]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SceneSums:
    """All that is kept of walks of whoever passed: how many, their sum and their products' sum.

    Attributes:
        count: how many walks.
        total: of their index vectors, float64 [d].
        products: of the vectors with themselves, float64 [d, d].
    """

    count: int
    total: Floats
    products: Floats

    def __post_init__(self) -> None:
        """Raises ValueError if the arrays don't fit or hold what is no finite number."""
        wide = len(self.total)
        if self.count < 0 or self.total.ndim != 1 or self.products.shape != (wide, wide):
            raise ValueError(f"sums {self.total.shape}, {self.products.shape} of {self.count}")
        if not (np.isfinite(self.total).all() and np.isfinite(self.products).all()):
            raise ValueError("sums must be finite")

    @classmethod
    def of(cls, embeddings: NDArray[np.float32]) -> Self:
        """Of walks [n, p, c]; n may be 0."""
        vectors = index_vectors(embeddings).astype(np.float64)
        return cls(len(vectors), vectors.sum(axis=0), vectors.T @ vectors)

    def __add__(self, other: SceneSums) -> SceneSums:
        """Of the walks of both; raises ValueError if their widths differ."""
        self._check(other)
        return SceneSums(
            self.count + other.count, self.total + other.total, self.products + other.products
        )

    def __sub__(self, other: SceneSums) -> SceneSums:
        """Without the walks of `other`; raises ValueError if it has more, or another width."""
        self._check(other)
        return SceneSums(
            self.count - other.count, self.total - other.total, self.products - other.products
        )

    def to_bytes(self) -> bytes:
        """As an npz archive, without pickle."""
        return _archive(
            count=np.array([self.count], np.int64), total=self.total, products=self.products
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` made.

        Raises:
            ValueError: damaged, or something else.
        """
        arrays = _members(data, ("count", "total", "products"))
        return cls(
            count=int(read_array(arrays["count"], np.int64, (1,))[0]),
            total=read_array(arrays["total"], np.float64, (None,)).astype(np.float64),
            products=read_array(arrays["products"], np.float64, (None, None)).astype(np.float64),
        )

    def _check(self, other: SceneSums) -> None:
        if len(self.total) != len(other.total):
            raise ValueError(f"sums of {len(self.total)} and of {len(other.total)} numbers a walk")


@dataclass(frozen=True, slots=True, eq=False)
class ScenePrior:
    """How walks of rendered people vary, under one checkpoint.

    Attributes:
        mean: of index vectors, float32 [d].
        within: covariance of a person's walks around the person's mean, float32 [d, d].
        between: covariance of the persons' means, float32 [d, d].
    """

    mean: NDArray[np.float32]
    within: NDArray[np.float32]
    between: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Raises ValueError if the arrays don't fit or hold what is no finite number."""
        square = (len(self.mean), len(self.mean))
        if self.mean.ndim != 1 or self.within.shape != square or self.between.shape != square:
            raise ValueError("the covariances of a prior don't fit its mean")
        if not all(np.isfinite(a).all() for a in (self.mean, self.within, self.between)):
            raise ValueError("a prior holds finite numbers")

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The prior of the checkpoint in `folder`; None if it has none.

        Raises:
            ValueError: the file is damaged.
            OSError: it can't be read.
        """
        path = folder / PRIOR
        if not path.is_file():
            return None
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"{PRIOR} is larger than any prior")
        return cls.from_bytes(path.read_bytes())

    def to_bytes(self) -> bytes:
        """As an npz archive, without pickle."""
        return _archive(mean=self.mean, within=self.within, between=self.between)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` made.

        Raises:
            ValueError: damaged, or something else.
        """
        arrays = _members(data, ("mean", "within", "between"))
        return cls(
            mean=read_array(arrays["mean"], np.float32, (None,)).astype(np.float32),
            within=read_array(arrays["within"], np.float32, (None, None)).astype(np.float32),
            between=read_array(arrays["between"], np.float32, (None, None)).astype(np.float32),
        )


@dataclass(frozen=True, slots=True)
class SceneFit:
    """What a gallery's walks gave.

    Attributes:
        transform: to compare with; None: compare as without any, it is no worse.
        gain: of rank-1 of the gallery's own people, each measured by a transform that was fitted
            without them; in [-1, 1], 0 if there was nothing to measure.
        interval: of the gain, at 95 %, by drawing persons.
        strength: share of the scene in the transform, in [0, 1].
        subjects: persons with two walks at least, who were measured.
        walks: walks that took part, anonymous ones too.
    """

    transform: SceneTransform | None
    gain: float
    interval: tuple[float, float]
    strength: float
    subjects: int
    walks: int


def fit(
    embeddings: NDArray[np.float32],
    subjects: Sequence[str | None],
    *,
    prior: ScenePrior | None = None,
    cohort: SceneSums | None = None,
) -> SceneFit:
    """The scene transform of a gallery; the same walks in the same order give the same.

    Args:
        embeddings: of all walks [n, p, c].
        subjects: whose each is [n]; None for an anonymous walk.
        prior: of the checkpoint that made the embeddings.
        cohort: sums of further anonymous walks.

    Raises:
        ValueError: the shapes don't fit.
    """
    if embeddings.ndim != 3 or len(subjects) != len(embeddings):
        raise ValueError(f"{list(embeddings.shape)} embeddings of {len(subjects)} subjects")
    whose = _numbered(subjects)
    vectors = index_vectors(embeddings).astype(np.float64)
    walks = len(vectors) + (cohort.count if cohort else 0)
    persons = (
        np.flatnonzero(np.bincount(whose[whose >= 0]) >= 2) if (whose >= 0).any() else whose[:0]
    )
    nothing = SceneFit(None, 0.0, (0.0, 0.0), 0.0, len(persons), walks)
    if len(persons) < LEAST_SUBJECTS:
        return nothing
    fold_of = np.random.default_rng(0).permutation(len(persons)) % min(_FOLDS, len(persons))
    before = _found_by_each(index_vectors(embeddings), whose, persons)
    after = np.zeros((len(_STRENGTHS), len(persons)))
    for fold in range(fold_of.max() + 1):
        measured = persons[fold_of == fold]
        taught = ~np.isin(whose, measured)
        for row, strength in enumerate(_STRENGTHS):
            transform = _whitened(vectors[taught], whose[taught], prior, strength)
            mapped = index_vectors(transform.apply(embeddings))
            after[row, fold_of == fold] = _found_by_each(mapped, whose, measured)
    gains = after - before
    best = int(gains.mean(axis=1).argmax())
    gain, interval = float(gains[best].mean()), _interval(gains[best])
    if interval[0] <= 0:
        return SceneFit(None, gain, interval, 0.0, len(persons), walks)
    transform = _whitened(vectors, whose, prior, _STRENGTHS[best])
    return SceneFit(transform, gain, interval, _STRENGTHS[best], len(persons), walks)


def _whitened(
    vectors: Floats, whose: NDArray[np.int64], prior: ScenePrior | None, strength: float
) -> SceneTransform:
    """Within-person covariance, shrunk towards the prior's or its mean variance, whitened."""
    named = whose >= 0
    _, own = np.unique(whose[named], return_inverse=True)
    counts = np.bincount(own)
    sums = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(sums, own, vectors[named])
    rest = vectors[named] - (sums / counts[:, None])[own]
    within = rest.T @ rest / max(1, len(own) - len(counts))
    width = len(within)
    level = np.trace(within) / width
    target = level * np.eye(width)
    if prior is not None:
        target = (target + prior.within * (level * width / np.trace(prior.within))) / 2
    shrunk = strength * within + (1 - strength) * target
    values, directions = np.linalg.eigh(shrunk)
    matrix = (directions * np.sqrt(level / np.maximum(values, 1e-9 * level))) @ directions.T
    mean = vectors.mean(axis=0)
    return SceneTransform(mean.astype(np.float32), matrix.astype(np.float32), parts=1)


def _found_by_each(
    vectors: NDArray[np.float32], whose: NDArray[np.int64], persons: NDArray[np.int64]
) -> Floats:
    """Of each person: how often one of their walks is nearer to another one than to any stranger.

    Each walk is searched as if one other walk of the person were enrolled, each in turn.
    """
    found = np.zeros(len(persons))
    for row, person in enumerate(persons):
        own = np.flatnonzero(whose == person)
        alike = vectors[own] @ vectors.T
        stranger = alike[:, whose != person].max(axis=1, initial=-1)
        nearer = alike[:, own] > stranger[:, None]
        found[row] = nearer[~np.eye(len(own), dtype=bool)].mean()
    return found


def _interval(gains: Floats) -> tuple[float, float]:
    drawn = np.random.default_rng(0).integers(len(gains), size=(_REPLICATES, len(gains)))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(gains[drawn].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _numbered(subjects: Sequence[str | None]) -> NDArray[np.int64]:
    names = sorted({name for name in subjects if name is not None})
    number = {name: position for position, name in enumerate(names)}
    return np.array([-1 if name is None else number[name] for name in subjects], np.int64)


def _archive(**arrays: NDArray[np.generic]) -> bytes:
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **arrays)
    return data.getvalue()


def _members(data: bytes, names: Sequence[str]) -> dict[str, bytes]:
    """The files of an archive that holds just these, each no larger than any that is meant."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            listed = {entry.filename: entry for entry in archive.infolist()}
            if set(listed) != {f"{name}.npy" for name in names}:
                raise ValueError(f"an archive of {', '.join(names)} expected")
            if sum(entry.file_size for entry in listed.values()) > _MAX_BYTES:
                raise ValueError("the archive is larger than any that is meant")
            return {name: archive.read(f"{name}.npy") for name in names}
    except (zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError) as error:
        raise ValueError(f"no readable archive: {error}") from error
