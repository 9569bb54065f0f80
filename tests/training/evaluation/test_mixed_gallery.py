"""The protocol "mixed gallery": people enrolled in one view among people enrolled in all."""

import numpy as np
import pytest

from training.evaluation import PROTOCOLS, EmbeddedSequences, LabelledSequences, ProtocolMismatch
from training.evaluation.mixed_gallery import MixedGallery
from training.evaluation.verification import error_rates

RULE = PROTOCOLS["mixed-gallery"]
Walkers = tuple[LabelledSequences, EmbeddedSequences]


def found(sequences: LabelledSequences, method: EmbeddedSequences) -> dict[str, float]:
    retrieval = RULE.run(sequences, method)
    return {figure.name: retrieval.trials.value(figure) for figure in retrieval.figures}


def test_half_the_people_are_enrolled_in_every_view_and_half_in_one(walkers: Walkers) -> None:
    sequences, _ = walkers
    split = RULE.split(sequences)
    views = {
        str(name): sequences.views[split.gallery][
            sequences.subjects[split.gallery] == name
        ].tolist()
        for name in np.unique(sequences.subjects)
    }
    assert sorted(len(seen) for seen in views.values()) == [2, 2, 2, 6, 6, 6]
    assert all(len(set(seen)) == len(seen) // 2 for seen in views.values())
    asked = {name for name, seen in views.items() if len(seen) == 2}
    assert set(sequences.subjects[split.probes].tolist()) == asked
    assert len(split.probes) == 3 * 10
    assert not set(split.probes.tolist()) & set(split.gallery.tolist())


def test_a_walk_is_found_as_the_protocol_read_aloud_says(walkers: Walkers) -> None:
    sequences, method = walkers
    one = MixedGallery("", draws=1)
    retrieval = one.run(sequences, method)
    got = {figure.name: retrieval.trials.value(figure) for figure in retrieval.figures}
    probes, gallery = RULE.split(sequences)
    hits: dict[bool, list[tuple[bool, float]]] = {True: [], False: []}
    strangers = []
    for probe in probes:
        nearness = [
            -np.linalg.norm(method.embeddings[probe] - method.embeddings[g], axis=1).mean()
            for g in gallery
        ]
        own = sequences.subjects[gallery] == sequences.subjects[probe]
        mate, stranger = np.max(np.compress(own, nearness)), np.max(np.compress(~own, nearness))
        alike = bool((sequences.views[gallery][own] == sequences.views[probe]).all())
        hits[alike].append((bool(mate > stranger), float(mate)))
        strangers.append(float(stranger))
    # 30 searches for strangers: at 10 % three may reach the threshold, 1 % can't be shown
    threshold = sorted(strangers)[-4]
    for alike, name in ((True, "same view"), (False, "another view")):
        assert got[f"{name} rank-1"] == pytest.approx(np.mean([hit for hit, _ in hits[alike]]))
        assert got[f"{name} found at FPIR 10%"] == pytest.approx(
            np.mean([hit and mate > threshold for hit, mate in hits[alike]]), abs=1e-6
        )
        assert np.isnan(got[f"{name} found at FPIR 1%"])


def test_the_error_of_all_pairs_is_the_equal_error_rate(walkers: Walkers) -> None:
    sequences, method = walkers
    everyone = np.arange(len(sequences))
    first, second = np.triu_indices(len(sequences), 1)
    similarities = -method.distances(everyone, everyone)[first, second].astype(np.float64)
    genuine = sequences.subjects[first] == sequences.subjects[second]
    expected = error_rates(similarities[genuine], similarities[~genuine]).equal_error_rate()
    assert found(sequences, method)["EER, all pairs"] == pytest.approx(expected, abs=0.01)


def test_who_is_told_apart_in_every_view_is_always_found(walkers: Walkers) -> None:
    sequences, _ = walkers
    names, number = np.unique(sequences.subjects, return_inverse=True)
    apart = np.eye(len(names), dtype=np.float32)[number][:, None, :]
    figures = found(sequences, EmbeddedSequences("told", apart, "cosine"))
    assert figures["EER, all pairs"] == 0
    assert {value for name, value in figures.items() if "EER" not in name} == {1.0}


def test_a_method_that_knows_only_the_view_finds_nobody_in_another(walkers: Walkers) -> None:
    sequences, _ = walkers
    names, number = np.unique(sequences.views, return_inverse=True)
    rng = np.random.default_rng(0)
    seen = np.eye(len(names))[number] + 0.01 * rng.standard_normal((len(number), len(names)))
    figures = found(
        sequences, EmbeddedSequences("view", seen[:, None].astype(np.float32), "cosine")
    )
    assert figures["another view rank-1"] == 0
    assert figures["EER, all pairs"] > 0.3


def test_large_data_are_drawn_from_and_other_conditions_left_out() -> None:
    labels = [
        (f"s{person:02d}", condition, view)
        for person in range(30)
        for condition in ("nm-01", "nm-02", "bg-01")
        for view in ("000", "090")
    ]
    sequences = LabelledSequences.of(*zip(*labels, strict=True))
    split = RULE.split(sequences)
    used = np.r_[split.probes, split.gallery]
    assert len(np.unique(sequences.subjects[used])) == 20
    assert set(sequences.conditions[used].tolist()) == {"nm-01", "nm-02"}


def test_views_within_fifteen_degrees_are_one() -> None:
    views = ("000", "015", "090")
    labels = [(f"s{p}", "1", view) for p in range(4) for view in views]
    sequences = LabelledSequences.of(*zip(*labels, strict=True))
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((len(labels), 1, 4)).astype(np.float32)
    rule = MixedGallery("", draws=1)
    retrieval = rule.run(sequences, EmbeddedSequences("noise", noise, "cosine"))
    probes, gallery = rule.split(sequences)
    alike = 0
    for probe in probes:
        own = gallery[sequences.subjects[gallery] == sequences.subjects[probe]]
        alike += {sequences.views[probe], *sequences.views[own]} == {"000", "015"}
    counted = {f.name: retrieval.trials.counted(f)[0] for f in retrieval.figures}
    assert counted["same view rank-1"] == alike
    assert counted["another view rank-1"] == len(probes) - alike


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([("a", "1", "000"), ("a", "2", "000"), ("b", "1", "000")], "two views"),
        ([("a", "1", "000"), ("a", "1", "090"), ("b", "1", "000")], "two people"),
    ],
)
def test_data_without_people_in_two_views_are_refused_with_the_reason(
    labels: list[tuple[str, str, str]], reason: str
) -> None:
    with pytest.raises(ProtocolMismatch, match=reason):
        RULE.split(LabelledSequences.of(*zip(*labels, strict=True)))


def filmed(scenes_of: dict[str, tuple[str, ...]], walks: int = 4) -> LabelledSequences:
    labels = [
        (name, f"nm-{walk:02d}", "090", scene)
        for name, scenes in scenes_of.items()
        for scene in scenes
        for walk in range(walks)
    ]
    subjects, conditions, views, scenes = zip(*labels, strict=True)
    return LabelledSequences.of(subjects, conditions, views, scenes=scenes)


def test_by_scene_strangers_in_a_gallery_are_filmed_where_those_sought_are() -> None:
    here, there = ("a1", "a2", "a3"), ("b1", "b2", "b3")
    sequences = filmed({f"s{n}": here if n < 4 else there for n in range(8)})
    rule = MixedGallery("", draws=4, by_scene=True)
    draws = rule.galleries(sequences, 2)
    assert sequences.scenes is not None
    for number, draw in enumerate(draws):
        place = "a" if number % 2 == 0 else "b"
        assert {scene[0] for scene in sequences.scenes[draw.walks].tolist()} == {place}
        people = sequences.subjects[draw.gallery]
        enrolled_in = sorted(
            len(set(sequences.scenes[draw.gallery][people == name].tolist()))
            for name in np.unique(people)
        )
        assert enrolled_in == [1, 1, 3, 3]
        assert int(draw.alike.sum()) == 2 * 2
        assert len(draw.probes) == 2 * (2 + 8)


def test_a_method_that_knows_only_the_scene_finds_nobody_in_another() -> None:
    sequences = filmed({f"s{n}": ("a1", "a2") for n in range(6)})
    assert sequences.scenes is not None
    seen = (sequences.scenes == "a1").astype(np.float32)[:, None]
    noise = np.random.default_rng(0).standard_normal((len(seen), 1)).astype(np.float32)
    embeddings = np.concatenate([seen, 1 - seen, 0.01 * noise], axis=1)[:, None]
    rule = PROTOCOLS["mixed-scenes"]
    retrieval = rule.run(sequences, EmbeddedSequences("scene", embeddings, "cosine"))
    figures = {figure.name: retrieval.trials.value(figure) for figure in retrieval.figures}
    assert figures["another scene rank-1"] == 0
    assert "same scene found at FPIR 10%" in figures


def test_without_scenes_or_company_in_them_the_protocol_refuses() -> None:
    rule = PROTOCOLS["mixed-scenes"]
    with pytest.raises(ProtocolMismatch, match="do not say in which scene"):
        rule.split(LabelledSequences.of(["a", "a"], ["nm-01", "nm-02"], ["000", "090"]))
    with pytest.raises(ProtocolMismatch, match="two people filmed in the same scenes"):
        rule.split(filmed({"a": ("1", "2"), "b": ("3", "4"), "c": ("5", "6")}))


def test_the_first_half_may_be_enrolled_in_fewer_views() -> None:
    sequences = filmed({f"s{n}": ("a1", "a2", "a3") for n in range(6)})
    two = MixedGallery("", draws=3, by_scene=True, views=2)
    for draw in two.galleries(sequences, 1):
        people, count = np.unique(sequences.subjects[draw.gallery], return_counts=True)
        assert sorted(count.tolist()) == [1, 1, 1, 2, 2, 2]
        assert len(people) == 6
