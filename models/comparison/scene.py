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
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from models.comparison.similarity import index_vectors
from models.files.array_file import read_array

LEAST_SUBJECTS: Final = 5
"""Fewer persons with several walks show nothing about anybody else."""

_CONFIDENCE: Final = 0.95  # where several strengths are tried
_STRENGTHS: Final = (0.02, 0.04, 0.08, 0.16)
_CONFIDENCE_OF_FEW: Final = 0.8
_STRENGTH_OF_FEW: Final = (0.04,)  # few people choose among several by chance
_REPLICATES: Final = 2000
_FEW: Final = 16  # persons
_ROUNDS: Final = 6  # walks of a person by which they are enrolled, one after another, at most
_ENOUGH_MEASURED: Final = 100  # persons, in all rounds
_GROUPS, _GROUPS_OF_MANY = 20, 5  # of persons who take no part in a fit at the same time
_MOST_MEASURED: Final = 1000  # persons,
_MOST_WALKS: Final = 12  # and walks of each that are searched
_BLOCK: Final = 512  # walks that are searched at once
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
        gain: in how often a walk is nearer to one other walk of its person than to a walk of
            somebody else, its person having taken no part in the fit; in [-1, 1], 0 if there was
            nothing to measure.
        interval: of the gain, by drawing persons, at 80 % (95 % of more than 16 persons).
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

    What galleries are for is imitated: a person is enrolled by one walk alone, which teaches a fit
    nothing, and the others are searched among all that is enrolled, as without a transform and with
    one; in turn by every walk, of many people a fifth at once. A walk is compared with single walks
    only, so that how many somebody has neither helps nor harms: of walks without any pattern
    nothing is gained on average. The strength, and whether anonymous walks take part, is what
    serves most surely (the lower end of the gain's interval); unless that lies above 0 there is no
    transform.

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
    gains = _gains(vectors, whose, counts, cohorts, strengths)
    intervals = _intervals(gains, _CONFIDENCE_OF_FEW if few else _CONFIDENCE)
    which, row = divmod(int(intervals[..., 0].argmax()), len(strengths))
    low, high = intervals[which, row].tolist()
    gain, strength = float(gains[which, row].mean()), strengths[row]
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
) -> Floats:
    """What m persons with several walks gain, each by how much more they are told from all others.

    All walks but one of those who are measured together are out of the gallery and of the fit, and
    are searched; in the next round another one stays.

    Returns:
        [cohorts, strengths, m].
    """
    rng = np.random.default_rng(0)
    measured = rng.permutation(np.flatnonzero(counts >= 2))[:_MOST_MEASURED]
    walks_of = {person: rng.permutation(np.flatnonzero(whose == person)) for person in measured}
    many = len(measured) > _ENOUGH_MEASURED
    groups = np.array_split(measured, _GROUPS_OF_MANY if many else min(len(measured), _GROUPS))
    rounds = np.zeros(len(counts))
    gains = np.zeros((len(cohorts), len(strengths), len(counts)))
    for number in range(min(_ROUNDS, max(1, _ENOUGH_MEASURED // len(measured)))):
        for members in groups:
            taking_part = members[counts[members] > number]
            if not len(taking_part):
                continue
            others = [np.delete(walks_of[person], number) for person in taking_part]
            enrolled = np.setdiff1d(np.arange(len(whose)), np.concatenate(others))
            asked = np.concatenate([walks[:_MOST_WALKS] for walks in others])
            rows = np.concatenate([enrolled, asked])
            rounds[taking_part] += 1
            before = _told_apart(vectors[rows], whose[rows], len(enrolled))
            for which, cohort in enumerate(cohorts):
                scatter = _Scatter.of(vectors[enrolled], whose[enrolled], cohort)
                for row, mapped in enumerate(scatter.mapped(vectors[rows], strengths)):
                    after = _told_apart(_units(mapped), whose[rows], len(enrolled))
                    gains[which, row, taking_part] += (after - before)[taking_part]
    mean: Floats = gains[..., measured] / rounds[measured]
    return mean


def _told_apart(vectors: Floats, whose: NDArray[np.intp], enrolled: int) -> Floats:
    """How often searched walks are nearer to their person's walk than to one of somebody else.

    Everybody else counts alike, however many walks they have.

    Args:
        vectors: of unit length, those enrolled first [n, d]; of who is searched one is enrolled.
        whose: they are [n].
        enrolled: how many are enrolled.

    Returns:
        Share for each person [max(whose) + 1]; 0 for those who are not searched.
    """
    seen, listed = vectors[:enrolled], whose[:enrolled]
    counts = np.bincount(listed)
    weights: Floats = 1 / (counts[listed] * max(1, int((counts > 0).sum()) - 1))
    mate_of = np.zeros(len(counts), np.intp)
    mate_of[listed] = np.arange(enrolled)
    shares = np.empty(len(whose) - enrolled)
    for start in range(0, len(shares), _BLOCK):
        asked = slice(enrolled + start, enrolled + start + _BLOCK)
        alike: Floats = vectors[asked] @ seen.T
        mates = alike[np.arange(len(alike)), mate_of[whose[asked]]][:, None]
        shares[start : start + _BLOCK] = (mates > alike) @ weights
    searches = np.bincount(whose[enrolled:], minlength=len(counts))
    sums = np.bincount(whose[enrolled:], shares, len(counts))
    return np.asarray(sums / np.maximum(searches, 1))


def _units(vectors: Floats) -> Floats:
    """At unit length; what has none stays zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units: Floats = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return units


def _intervals(gains: Floats, confidence: float) -> Floats:
    """Of the mean gain of persons [..., m], by drawing them [..., 2]."""
    count = gains.shape[-1]
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), _REPLICATES)
    means = gains @ (drawn.T / count)
    tail = (1 - confidence) / 2
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
