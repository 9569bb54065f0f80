"""Scene transforms: fitted from a gallery's walks, harmless where they don't help."""

import io
import zipfile

import numpy as np
import pytest
from numpy.typing import NDArray

from models.comparison.scene import LEAST_SUBJECTS, SceneFit, SceneSums, SceneTransform, fit, refit
from models.comparison.similarity import mean_part_cosines

Embeddings = NDArray[np.float32]
PARTS, CHANNELS = 4, 8


def people(
    count: int,
    *,
    views: int,
    walks: int = 2,
    seed: int = 0,
    strength: float = 2.0,
    like: float = 0.6,
) -> tuple[Embeddings, list[str]]:
    """Walks of people whom views disturb more than they differ: who + view + noise."""
    scene = np.random.default_rng(99)  # the same views whoever walks
    offsets = strength * scene.standard_normal((8, PARTS, CHANNELS))
    rng = np.random.default_rng(seed)
    who = rng.standard_normal((count, PARTS, CHANNELS))
    labels = [(p, v) for p in range(count) for v in range(views) for _ in range(walks)]
    noise = like * rng.standard_normal((len(labels), PARTS, CHANNELS))
    embeddings = np.array([who[p] + offsets[v] for p, v in labels]) + noise
    return embeddings.astype(np.float32), [f"{seed}-{p}" for p, _ in labels]


def rank1_of_single_walks(embeddings: Embeddings, subjects: list[str]) -> float:
    alike = mean_part_cosines(embeddings, embeddings)
    whose = np.unique(subjects, return_inverse=True)[1]
    hits = []
    for walk in range(len(whose)):
        stranger = alike[walk, whose != whose[walk]].max()
        mates = np.flatnonzero((whose == whose[walk]) & (np.arange(len(whose)) != walk))
        hits += (alike[walk, mates] > stranger).tolist()
    return float(np.mean(hits))


def same(one: SceneFit, other: SceneFit) -> bool:
    if one.transform is None or other.transform is None:
        return one == other
    return one.transform.to_bytes() == other.transform.to_bytes() and one.interval == other.interval


def test_people_who_took_no_part_are_found_better_from_other_views() -> None:
    fitted = fit(*people(20, views=3))
    assert fitted.transform is not None
    assert (fitted.subjects, fitted.walks) == (20, 120)
    assert 0 < fitted.interval[0] <= fitted.gain <= fitted.interval[1]
    strangers, names = people(8, views=3, seed=1)
    before = rank1_of_single_walks(strangers, names)
    after = rank1_of_single_walks(fitted.transform.apply(strangers), names)
    assert after > before + 0.2


def test_the_gain_is_that_of_each_walk_enrolled_alone_in_turn() -> None:
    embeddings, names = people(7, views=3, strength=1.0)
    lone, lone_names = people(3, views=1, walks=1, seed=4)
    embeddings, names = np.concatenate([embeddings, lone]), [*names, *lone_names]
    fitted = fit(embeddings, names)
    whose = np.array(names)
    gains = []
    for name in np.unique(names[:-3]):
        mine = np.flatnonzero(whose == name)
        for alone in mine:
            asked = mine[mine != alone]
            enrolled = np.setdiff1d(np.arange(len(names)), asked)
            transform = refit(fitted, embeddings[enrolled], whose[enrolled].tolist())
            told_apart = []
            for seen in (embeddings, transform.apply(embeddings)):
                alike = mean_part_cosines(seen[asked], seen)
                nearer = alike[:, alone, None] > alike
                strangers = [
                    nearer[:, whose == other].mean() for other in np.unique(names) if other != name
                ]
                told_apart.append(np.mean(strangers))
            gains.append(told_apart[1] - told_apart[0])
    assert fitted.subjects == 7
    assert fitted.gain == pytest.approx(np.mean(gains), abs=1e-6)
    assert fitted.gain != 0


def test_few_people_in_several_views_are_adapted_to() -> None:
    adopted = 0
    for seed in range(10):
        everywhere, names = people(5, views=3, seed=seed)
        once, once_names = people(5, views=1, seed=100 + seed)
        fitted = fit(np.concatenate([everywhere, once]), [*names, *once_names])
        adopted += fitted.transform is not None
    assert adopted >= 8


def test_having_more_walks_than_others_is_no_gain_by_itself() -> None:
    rng = np.random.default_rng(0)
    names = [str(walk // 6) if walk < 30 else str(walk // 2) for walk in range(50)]
    gains = []
    for _ in range(10):
        walks = rng.standard_normal((50, PARTS, CHANNELS)).astype(np.float32)
        gains.append(fit(walks, names).gain)
    assert abs(np.mean(gains)) < 0.02


def test_a_gallery_of_one_view_is_served_as_before() -> None:
    fitted = fit(*people(12, views=1, walks=4, like=0.3))
    assert fitted.transform is None
    assert fitted.interval[0] <= 0


def test_too_few_people_show_nothing() -> None:
    embeddings, names = people(LEAST_SUBJECTS - 1, views=3)
    lone, lone_names = people(20, views=1, walks=1, seed=3)
    fitted = fit(np.concatenate([embeddings, lone]), [*names, *lone_names])
    assert fitted == SceneFit(None, 0.0, (0.0, 0.0), 0.0, False, LEAST_SUBJECTS - 1, 44)


def test_walks_without_any_pattern_are_not_adapted_to() -> None:
    rng = np.random.default_rng(0)
    adopted = 0
    for _ in range(10):
        walks = rng.standard_normal((40, PARTS, CHANNELS)).astype(np.float32)
        adopted += fit(walks, [str(walk // 4) for walk in range(40)]).transform is not None
    assert adopted <= 1


def test_the_same_walks_give_the_same_transform() -> None:
    embeddings, names = people(8, views=3)
    assert same(fit(embeddings, names), fit(embeddings, names))


def test_anonymous_walks_help_as_themselves_and_as_sums_alike() -> None:
    named, names = people(6, views=3)
    crowd, _ = people(60, views=3, walks=1, seed=5)
    together = fit(np.concatenate([named, crowd]), [*names, *[None] * len(crowd)])
    summed = fit(named, names, cohort=SceneSums.of(crowd))
    assert together.transform is not None
    assert summed.transform is not None
    assert together.walks == summed.walks == len(named) + len(crowd)
    assert together.gain == pytest.approx(summed.gain)
    np.testing.assert_allclose(
        together.transform.apply(crowd), summed.transform.apply(crowd), atol=1e-4
    )
    assert together.gain >= fit(named, names).gain


def test_a_refit_is_the_fit_again_unless_the_walks_are_others() -> None:
    embeddings, names = people(8, views=3)
    crowd = SceneSums.of(people(60, views=3, walks=1, seed=5)[0])
    for cohort in (None, crowd):
        fitted = fit(embeddings, names, cohort=cohort)
        assert fitted.transform is not None
        again = refit(fitted, embeddings, names, cohort=cohort)
        assert again.to_bytes() == fitted.transform.to_bytes()
        fewer = refit(fitted, embeddings[:24], names[:24], cohort=cohort)
        assert fewer.to_bytes() != again.to_bytes()
    with pytest.raises(ValueError, match="names"):
        refit(fitted, embeddings[:0], [])


def test_few_walks_give_the_transform_that_the_whole_covariance_gives() -> None:
    rng = np.random.default_rng(0)
    walks, names = rng.standard_normal((30, PARTS, 32)).astype(np.float32), [*"abcdefghij"] * 3
    chosen = SceneFit(None, 0.0, (0.0, 0.0), 0.1, False, 10, 30)
    found = refit(chosen, walks, names)  # fewer walks than directions
    vectors = walks / np.linalg.norm(walks, axis=2, keepdims=True) / np.sqrt(PARTS)
    vectors = vectors.reshape(30, -1).astype(np.float64)
    rest = (vectors.reshape(3, 10, -1) - vectors.reshape(3, 10, -1).mean(axis=0)).reshape(30, -1)
    within = rest.T @ rest
    within *= 0.1 * len(within) / np.trace(within)
    by_hand = np.linalg.inv(within + 0.9 * np.eye(len(within)))
    np.testing.assert_allclose(found.matrix, by_hand, atol=1e-5)
    np.testing.assert_allclose(found.mean, vectors.mean(axis=0), atol=1e-6)


def test_people_of_one_walk_each_and_copies_of_a_walk_do_no_harm() -> None:
    embeddings, names = people(8, views=3)
    lone, lone_names = people(30, views=1, walks=1, seed=4)
    fitted = fit(np.concatenate([embeddings, lone]), [*names, *lone_names])
    assert fitted.subjects == 8
    assert fitted.transform is not None
    copies = np.repeat(lone[:10], 3, axis=0)
    assert fit(copies, [str(walk // 3) for walk in range(30)]).transform is None
    nothing = np.zeros((30, PARTS, CHANNELS), np.float32)
    assert fit(nothing, [str(walk // 3) for walk in range(30)]).transform is None


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="subjects"):
        fit(np.zeros((3, PARTS, CHANNELS), np.float32), ["a", "b"])
    with pytest.raises(ValueError, match="embeddings"):
        fit(np.zeros((3, 5), np.float32), ["a", "b", "c"])


def test_parts_are_of_unit_length_and_a_zero_part_stays_zero() -> None:
    transform = SceneTransform(np.zeros(6, np.float32), np.eye(6, dtype=np.float32), parts=2)
    rows = np.array([[[1, 2, 2], [0, 0, 0]], [[0, 0, 3], [4, 0, 3]]], np.float32)
    found = transform.apply(rows)
    assert found.dtype == np.float32
    lengths = np.array([[1, 0], [1, 1]])
    np.testing.assert_allclose(np.linalg.norm(found, axis=2), lengths, rtol=1e-6)
    second = np.array([[0, 0, 1], [0.8, 0, 0.6]])
    np.testing.assert_allclose(found[1], second, rtol=1e-6)


def test_embeddings_of_another_model_are_refused() -> None:
    transform = SceneTransform(np.zeros(6, np.float32), np.eye(6, dtype=np.float32), parts=1)
    with pytest.raises(ValueError, match="6 expected"):
        transform.apply(np.zeros((1, 2, 4), np.float32))


def test_a_transform_and_sums_come_back_from_their_bytes() -> None:
    fitted = fit(*people(8, views=3)).transform
    assert fitted is not None
    again = SceneTransform.from_bytes(fitted.to_bytes())
    walks, _ = people(2, views=2, seed=7)
    np.testing.assert_array_equal(again.apply(walks), fitted.apply(walks))
    sums = SceneSums.of(walks)
    back = SceneSums.from_bytes(sums.to_bytes())
    assert back.count == sums.count
    np.testing.assert_array_equal(back.products, sums.products)


def test_sums_forget_what_is_taken_from_them() -> None:
    one, _ = people(3, views=2)
    other, _ = people(2, views=2, seed=1)
    both = SceneSums.of(one) + SceneSums.of(other)
    left = both - SceneSums.of(other)
    assert left.count == len(one)
    np.testing.assert_allclose(left.total, SceneSums.of(one).total, atol=1e-12)
    np.testing.assert_allclose(left.products, SceneSums.of(one).products, atol=1e-12)
    with pytest.raises(ValueError, match="-4"):
        SceneSums.of(one[:4]) - SceneSums.of(np.concatenate([one[:4], one[:4]]))
    with pytest.raises(ValueError, match="numbers a walk"):
        both + SceneSums.of(np.ones((1, 1, 3), np.float32))


def archive(**arrays: NDArray[np.generic]) -> bytes:
    data = io.BytesIO()
    np.savez(data, allow_pickle=True, **arrays)
    return data.getvalue()


def bomb() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("mean", "matrix", "parts"):
            file.writestr(f"{name}.npy", bytes(1 << 25))
    return data.getvalue()


FLAT, SQUARE = np.zeros(4, np.float32), np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 no archive",
        archive(mean=FLAT, matrix=SQUARE),
        archive(mean=FLAT, matrix=SQUARE, parts=np.array([1]), more=FLAT),
        archive(mean=FLAT, matrix=SQUARE, parts=np.array([3])),
        archive(mean=FLAT, matrix=SQUARE, parts=np.array([0])),
        archive(mean=FLAT[:3], matrix=SQUARE, parts=np.array([1])),
        archive(mean=FLAT, matrix=SQUARE * np.float32(np.nan), parts=np.array([1])),
        archive(mean=FLAT.astype(np.float64), matrix=SQUARE, parts=np.array([1])),
        archive(mean=np.array([{"a": 1}]), matrix=SQUARE, parts=np.array([1])),
        bomb(),
    ],
)
def test_damaged_or_strange_bytes_are_no_transform(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        SceneTransform.from_bytes(data)


def test_every_flipped_or_missing_byte_is_noticed_or_harmless() -> None:
    whole = SceneTransform(FLAT, SQUARE, 1).to_bytes()
    for length in range(0, len(whole), 7):
        with pytest.raises(ValueError, match=r".+"):
            SceneTransform.from_bytes(whole[:length])
    for place in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[place] ^= 0xFF
        try:
            read = SceneTransform.from_bytes(bytes(broken))
        except ValueError:
            continue
        np.testing.assert_array_equal(read.matrix, SQUARE)


def test_sums_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r".+"):
        SceneSums.from_bytes(
            archive(count=np.array([-1]), total=np.zeros(2), products=np.zeros((2, 2)))
        )
    with pytest.raises(ValueError, match=r".+"):
        SceneSums.from_bytes(SceneTransform(FLAT, SQUARE, 1).to_bytes())
