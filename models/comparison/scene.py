"""Scene transforms: what makes one view of a place alike, taken out of the comparison.

Walks filmed by one camera resemble each other more than walks of one person from two sides. How
walks of one person differ (their covariance within persons) is learnt in closed form from a
gallery's own walks, and differences of that kind count less from then on. With W that covariance
and people taken to differ alike in all directions, the two-covariance model of speaker
verification ("PLDA": Ioffe, ECCV 2006; Kenny, Odyssey 2010) compares by the inner product of
vectors multiplied with the inverse of W and a floor of noise: that is the transform. Only numpy.

Shapes: n walks, p parts, c channels as the network made them; d = p*c; q parts, k channels after a
transform.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from models.comparison.similarity import index_vectors
from models.files.array_file import read_array

LEAST_SUBJECTS: Final = 5
"""Fewer persons with several walks show nothing about anybody else."""

_CONFIDENCE: Final = 0.95  # where several strengths are tried
_STRENGTHS: Final = (0.04, 0.08, 0.16, 0.32)
_CONFIDENCE_OF_FEW: Final = 0.9
_STRENGTH_OF_FEW: Final = (0.08,)  # few people choose among several by chance
_REPLICATES: Final = 2000
_FEW: Final = 16  # persons
_FOLDS: Final = 5
_ENOUGH_MEASURED: Final = 100  # persons, in all rounds
_MOST_MEASURED: Final = 1000  # persons,
_MOST_WALKS: Final = 12  # and walks of each
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


@dataclass(frozen=True, slots=True)
class SceneFit:
    """What a gallery's walks gave.

    Attributes:
        transform: to compare with; None: compare as without any, which is not shown to be worse.
        gain: in how often a walk is nearer to another of the same person than to all walks of one
            other person, neither of whom took part in the fit; in [-1, 1], 0 if there was nothing
            to measure.
        interval: of the gain, by drawing persons, at 90 % (95 % of more than 16 persons).
        strength: share of the scene in what is inverted, the rest being the floor; in [0, 1]. Of
            more than 16 persons the one that is most surely a gain, also without a transform.
        anonymous: whether anonymous walks take part, chosen with the strength.
        subjects: persons with two walks at least.
        walks: walks that were offered, anonymous ones too.
    """

    transform: SceneTransform | None
    gain: float
    interval: tuple[float, float]
    strength: float
    anonymous: bool
    subjects: int
    walks: int


def fit(
    embeddings: NDArray[np.float32],
    subjects: Sequence[str | None],
    *,
    cohort: SceneSums | None = None,
) -> SceneFit:
    """The scene transform of a gallery; the same walks in the same order give the same.

    Of few people every two are left out in turn, of many a fifth. Who is measured, and who they are
    measured against, is left out of the fit: people who took part are told from others too easily.
    The strength, and whether anonymous walks take part, is what serves those left out most surely
    (the lower end of the interval of their gain); unless that lies above 0 there is no transform.

    Args:
        embeddings: of all walks [n, p, c].
        subjects: whose each is [n]; None for an anonymous walk.
        cohort: sums of further anonymous walks.

    Raises:
        ValueError: the shapes don't fit.
    """
    vectors, whose, anonymous = _parted(embeddings, subjects, cohort)
    counts = np.bincount(whose)
    persons, walks = int((counts >= 2).sum()), len(vectors) + anonymous.count
    if persons < LEAST_SUBJECTS:
        return SceneFit(None, 0.0, (0.0, 0.0), 0.0, False, persons, walks)
    cohorts = [None, anonymous] if anonymous.count >= 2 else [None]
    few = persons <= _FEW
    strengths = _STRENGTH_OF_FEW if few else _STRENGTHS
    compared, gains = _gains(vectors, whose, counts, cohorts, strengths)
    intervals = _intervals(compared, gains, _CONFIDENCE_OF_FEW if few else _CONFIDENCE)
    which, row = divmod(int(intervals[..., 0].argmax()), len(strengths))
    low, high = intervals[which, row].tolist()
    gain, strength = float(gains[which, row].sum() / compared.sum()), strengths[row]
    transform = None
    if low > 0:
        transform = _Scatter.of(vectors, whose, cohorts[which]).transform(strength)
    return SceneFit(transform, gain, (low, high), strength, bool(which), persons, walks)


def refit(
    chosen: SceneFit,
    embeddings: NDArray[np.float32],
    subjects: Sequence[str | None],
    *,
    cohort: SceneSums | None = None,
) -> SceneTransform:
    """The transform of other walks, as strong as a fit has chosen; nothing is measured.

    Args:
        chosen: says how strong, and whether anonymous walks take part.
        embeddings: of all walks [n, p, c].
        subjects: whose each is [n]; None for an anonymous walk.
        cohort: sums of further anonymous walks.

    Raises:
        ValueError: the shapes don't fit, or there is no walk with a name.
    """
    vectors, whose, anonymous = _parted(embeddings, subjects, cohort)
    if not len(vectors):
        raise ValueError("a scene transform is of walks with names")
    taking_part = anonymous if chosen.anonymous and anonymous.count else None
    return _Scatter.of(vectors, whose, taking_part).transform(chosen.strength)


def _parted(
    embeddings: NDArray[np.float32], subjects: Sequence[str | None], cohort: SceneSums | None
) -> tuple[Floats, NDArray[np.intp], SceneSums]:
    """Index vectors of walks with names [n, d], whose they are [n], and sums of all others."""
    if embeddings.ndim != 3 or len(subjects) != len(embeddings):
        raise ValueError(f"{list(embeddings.shape)} embeddings of {len(subjects)} subjects")
    named = np.array([name is not None for name in subjects], np.bool_)
    anonymous = SceneSums.of(embeddings[~named])
    if cohort is not None:
        anonymous += cohort
    names = np.array([name for name in subjects if name is not None], np.str_)
    vectors = index_vectors(embeddings[named]).astype(np.float64)
    return vectors, np.unique(names, return_inverse=True)[1], anonymous


@dataclass(frozen=True, slots=True, eq=False)
class _Scatter:
    """The mean of walks, and the covariance within persons by its axes.

    Attributes:
        mean: [d].
        variances: along the axes [r]; along all others there is none.
        axes: unit columns [d, r].
    """

    mean: Floats
    variances: Floats
    axes: Floats

    @classmethod
    def of(cls, vectors: Floats, whose: NDArray[np.intp], cohort: SceneSums | None) -> Self:
        """Of named walks [n, d]; walks of a cohort count as if all were one person's."""
        _, own, counts = np.unique(whose, return_inverse=True, return_counts=True)
        sums = np.zeros((len(counts), vectors.shape[1]))
        np.add.at(sums, own, vectors)
        rest = vectors - (sums / counts[:, None])[own]
        total, count = vectors.sum(axis=0), len(own)
        if cohort is None and 2 * len(rest) <= rest.shape[1]:  # faster by far
            _, lengths, rows = np.linalg.svd(rest, full_matrices=False)
            return cls(total / count, lengths**2, rows.T)
        products = rest.T @ rest
        if cohort is not None:
            products += cohort.products - np.outer(cohort.total, cohort.total) / cohort.count
            total, count = total + cohort.total, count + cohort.count
        variances, axes = np.linalg.eigh(products)
        return cls(total / count, np.maximum(variances, 0), axes)

    def transform(self, strength: float) -> SceneTransform:
        """As strong as this."""
        weights, floor = self._weights(strength)
        matrix = floor * np.eye(len(self.mean)) + (self.axes * (weights - floor)) @ self.axes.T
        return SceneTransform(self.mean.astype(np.float32), matrix.astype(np.float32), parts=1)

    def mapped(self, vectors: Floats, strengths: Sequence[float]) -> Iterator[Floats]:
        """Vectors [n, d] by the transform of each strength [n, d], but for their lengths."""
        rest = vectors - self.mean
        along = rest @ self.axes
        for strength in strengths:
            weights, floor = self._weights(strength)
            yield floor * rest + (along * (weights - floor)) @ self.axes.T

    def _weights(self, strength: float) -> tuple[Floats, float]:
        """What is left of a difference along each axis [r], and along all others.

        Only their ratios mean something, and of the variances too.
        """
        # The mean over all directions; a walk copied has no variance.
        level = max(float(self.variances.sum()) / len(self.mean), 1e-30)
        weights: Floats = 1 / (strength * self.variances / level + 1 - strength)
        return weights, 1 / (1 - strength)


def _gains(
    vectors: Floats,
    whose: NDArray[np.intp],
    counts: NDArray[np.intp],
    cohorts: Sequence[SceneSums | None],
    strengths: Sequence[float],
) -> tuple[Floats, Floats]:
    """What persons with several walks gain against each other, summed over rounds.

    Returns:
        How often each was compared with each [m, m]; gains [cohorts, strengths, m, m].
    """
    rng = np.random.default_rng(0)
    measured = np.sort(rng.permutation(np.flatnonzero(counts >= 2))[:_MOST_MEASURED])
    walks_of = [rng.permutation(np.flatnonzero(whose == p))[:_MOST_WALKS] for p in measured]
    compared = np.zeros((len(measured), len(measured)))
    gains = np.zeros((len(cohorts), len(strengths), *compared.shape))
    for members in _left_out_together(len(measured), rng):
        pairs = np.ix_(members, members)
        left_out = np.isin(whose, measured[members])
        asked = np.concatenate([walks_of[member] for member in members])
        compared[pairs] += 1 - np.eye(len(members))
        before = _nearer_own(vectors[asked], whose[asked])
        for which, cohort in enumerate(cohorts):
            scatter = _Scatter.of(vectors[~left_out], whose[~left_out], cohort)
            for row, mapped in enumerate(scatter.mapped(vectors[asked], strengths)):
                gains[which, row][pairs] += _nearer_own(mapped, whose[asked]) - before
    return compared, gains


def _left_out_together(count: int, rng: np.random.Generator) -> Iterator[NDArray[np.intp]]:
    """Groups of `count` persons: of few people every two, so that nearly all take part in a fit."""
    if count <= _FEW:
        for two in combinations(range(count), 2):
            yield np.array(two, np.intp)
        return
    for _ in range(max(1, _ENOUGH_MEASURED // count)):
        fold_of = rng.permutation(count) % _FOLDS
        for fold in range(_FOLDS):
            yield np.flatnonzero(fold_of == fold)


def _nearer_own(vectors: Floats, whose: NDArray[np.intp]) -> Floats:
    """How often two walks of a person are nearer than the first is to any of another person.

    Args:
        vectors: of walks, person by person.
        whose: they are, two of each person at least.

    Returns:
        Share for each person, in this order, and each other one [m, m]; 0 for themselves.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    alike = units @ units.T
    starts = np.flatnonzero(np.r_[True, whose[1:] != whose[:-1]])
    nearest = np.maximum.reduceat(alike, starts, axis=1)  # of each walk and person
    shares = np.zeros((len(starts), len(starts)))
    for row, (start, end) in enumerate(pairwise([*starts, len(whose)])):
        own = alike[start:end, start:end]
        mates = own[~np.eye(len(own), dtype=np.bool_)].reshape(len(own), -1)
        shares[row] = (mates[:, :, None] > nearest[start:end, None, :]).mean(axis=(0, 1))
    np.fill_diagonal(shares, 0)
    return shares


def _intervals(compared: Floats, gains: Floats, confidence: float) -> Floats:
    """Of each gain, by drawing persons as those sought and as those taken for them [..., 2]."""
    count = len(compared)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), _REPLICATES).astype(np.float64)
    asked = ((drawn @ compared) * drawn).sum(axis=1)
    gained = ((drawn @ gains) * drawn).sum(axis=-1)
    tail = (1 - confidence) / 2
    means = gained[..., asked > 0] / asked[asked > 0]
    return np.moveaxis(np.quantile(means, [tail, 1 - tail], axis=-1), 0, -1)


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
