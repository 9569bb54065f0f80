import re
from typing import Any

import numpy as np
import pytest

from training.evaluation import EmbeddedSequences, LabelledSequences, ProtocolMismatch
from training.evaluation.conditions import Question, rendered_conditions
from training.evaluation.protocols import PROTOCOLS, protocol_named
from training.evaluation.retrieval import Retrieval, TableOfCells
from training.evaluation.trials import Figure


def percentages(found: Retrieval) -> dict[str, float]:
    return {figure.name: 100 * found.trials.value(figure) for figure in found.figures}


def last_column(found: Retrieval, table: TableOfCells) -> list[float]:
    """The mean of the other views for each probe view, as the reference logs it."""
    return [
        round(
            100 * found.trials.value(Figure("", table.measure, row[-1], table.decimals)),
            2,
        )
        for row in table.cells
    ]


@pytest.mark.parametrize("metric", ["euc", "cos"])
@pytest.mark.parametrize(
    ("dataset", "protocol", "conditions"),
    [("casiab", "casia-b", ("NM", "BG", "CL")), ("oumvlp", "ou-mvlp", ("NM",))],
)
def test_view_by_view_rank1_equals_the_reference(
    dataset: str, protocol: str, conditions: tuple[str, ...], metric: str, golden: Any
) -> None:
    found = PROTOCOLS[protocol].run(golden.sequences(dataset), golden.method(dataset, metric))
    expected = golden.results[dataset][metric]
    for name, table, log in zip(conditions, found.tables, expected["log"][1:], strict=False):
        result = expected["result"][f"scalar/test_accuracy/{name}@R1"]
        assert percentages(found)[f"{name} rank-1"] == pytest.approx(result, abs=1e-9)
        logged = [float(number) for number in re.findall(r"\d+\.\d+", log)]
        np.testing.assert_allclose(last_column(found, table), logged, atol=0.011)


@pytest.mark.parametrize("metric", ["euc", "cos"])
@pytest.mark.parametrize(
    ("dataset", "protocol", "conditions"),
    [
        ("casiab", "casia-b-mixed-gallery", ("NM", "BG", "CL")),
        ("oumvlp", "ou-mvlp-mixed-gallery", ("NM",)),
    ],
)
def test_mixed_gallery_rank1_and_precision_equal_the_reference(
    dataset: str, protocol: str, conditions: tuple[str, ...], metric: str, golden: Any
) -> None:
    found = PROTOCOLS[protocol].run(golden.sequences(dataset), golden.method(dataset, metric))
    expected = golden.results[dataset][f"{metric}_cross_view_gallery"]["result"]
    for name in conditions:
        for ours, theirs in (("rank-1", "Rank@1"), ("mAP", "mAP")):
            result = expected[f"scalar/test_accuracy/{name}-{theirs}"]
            assert percentages(found)[f"{name} {ours}"] == pytest.approx(result, abs=1e-9)


@pytest.mark.parametrize("metric", ["euc", "cos"])
def test_gait3d_equals_the_reference_and_skips_probes_without_mates(
    metric: str, golden: Any
) -> None:
    found = PROTOCOLS["gait3d"].run(golden.sequences("gait3d"), golden.method("gait3d", metric))
    expected = golden.results["gait3d"][metric]
    ours = percentages(found)
    for name, theirs in (("rank-1", "Rank-1"), ("rank-5", "Rank-5"), ("rank-10", "Rank-10")):
        result = expected[f"scalar/test_accuracy/{theirs}"]
        assert ours[name] == pytest.approx(result, rel=1e-6)  # float32 there
    for name in ("mAP", "mINP"):
        assert ours[name] == pytest.approx(expected[f"scalar/test_accuracy/{name}"], rel=1e-12)
    asked, _ = found.trials.counted(found.figures[0])
    assert asked < len(found.trials.outcomes)


@pytest.mark.parametrize("metric", ["euc", "cos"])
def test_grew_equals_the_reference(metric: str, golden: Any) -> None:
    found = PROTOCOLS["grew"].run(golden.sequences("grew"), golden.method("grew", metric))
    expected = golden.results["grew"][metric]["log_rank1_5_10_20"]
    for name, result in zip(("rank-1", "rank-5", "rank-10", "rank-20"), expected, strict=True):
        assert percentages(found)[name] == pytest.approx(float(result), abs=1e-9)


def test_nine_pairs_equals_the_protocol_read_aloud(
    walkers: tuple[LabelledSequences, EmbeddedSequences],
) -> None:
    sequences, method = walkers
    found = percentages(PROTOCOLS["nine-pairs"].run(sequences, method))
    views = ("000", "045", "090")
    n = len(sequences)
    expected = {}
    for p in views:
        for g in views:
            per_walk = []
            for walk in ("1", "2", "3", "4"):
                hits = []
                for i in range(n):
                    if sequences.views[i] != p or sequences.conditions[i] == walk:
                        continue
                    gallery = [
                        j
                        for j in range(n)
                        if sequences.views[j] == g and sequences.conditions[j] == walk
                    ]
                    gaps = [
                        np.linalg.norm(method.embeddings[i] - method.embeddings[j], axis=1).mean()
                        for j in gallery
                    ]
                    nearest = gallery[int(np.argmin(gaps))]
                    hits.append(sequences.subjects[nearest] == sequences.subjects[i])
                per_walk.append(100 * np.mean(hits))
            expected[p, g] = np.mean(per_walk)
    for (p, g), value in expected.items():
        assert found[f"{p}→{g}"] == pytest.approx(value)
    same = np.mean([value for (p, g), value in expected.items() if p == g])
    cross = np.mean([value for (p, g), value in expected.items() if p != g])
    assert found["same view"] == pytest.approx(same)
    assert found["cross view"] == pytest.approx(cross)
    assert found["nine pairs"] == pytest.approx(np.mean(list(expected.values())))


def test_a_mirrored_probe_is_taken_where_it_is_nearer() -> None:
    gallery = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)
    probe = np.array([[[0.1, 0.9]]], np.float32)  # as it is, like the second; mirrored, the first
    embeddings = np.concatenate([gallery, probe])
    plain = EmbeddedSequences("plain", embeddings, "euclidean")
    mirrored = EmbeddedSequences(
        "mirrored",
        embeddings,
        "euclidean",
        np.concatenate([gallery, np.array([[[1.0, 0.0]]], np.float32)]),
    )
    probes, enrolled = np.array([2]), np.array([0, 1])
    assert plain.distances(probes, enrolled).argmin() == 1
    both = mirrored.distances(probes, enrolled)
    assert both.argmin() == 0
    assert both[0, 1] == plain.distances(probes, enrolled)[0, 1]


def test_rendered_walks_are_enrolled_by_the_earlier_half_of_the_normal_ones() -> None:
    conditions = np.array(["nm-10", "nm-01", "nm-02", "nm-03", "nm-04", "bg-01", "cl-01", "cl-02"])
    chosen = rendered_conditions(conditions)
    assert {question.gallery for question in chosen} == {frozenset({"nm-01", "nm-02", "nm-03"})}
    asked = {question.name: question.probes for question in chosen}
    assert asked == {"nm": {"nm-04", "nm-10"}, "bg": {"bg-01"}, "cl": {"cl-01", "cl-02"}}


def test_two_normal_walks_leave_one_to_ask_and_one_leaves_none() -> None:
    two = rendered_conditions(np.array(["normal-1", "normal-2"]))
    assert two == (Question("normal", frozenset({"normal-2"}), frozenset({"normal-1"})),)
    one = rendered_conditions(np.array(["normal", "coat"]))
    assert one == (Question("coat", frozenset({"coat"}), frozenset({"normal"})),)


def test_without_normal_walks_nothing_can_be_enrolled() -> None:
    with pytest.raises(ProtocolMismatch, match="found: bg, cl"):
        rendered_conditions(np.array(["bg-01", "cl-01"]))


def test_near_views_are_left_out_of_the_gallery_for_everybody() -> None:
    # The probe at 350 degrees is nearest to its own walk at 0 and to a stranger at 345; both are
    # too near in view. What is left is its own walk at 90 and, further off, a stranger at 180.
    sequences = LabelledSequences.of(
        ["a", "a", "b", "b", "a"],
        ["nm-01", "nm-01", "nm-01", "nm-01", "nm-02"],
        ["000", "090", "345", "180", "350"],
    )
    place = np.array([[[1.0]], [[5.0]], [[2.0]], [[6.0]], [[0.0]]], np.float32)
    method = EmbeddedSequences("line", place, "euclidean")
    found = PROTOCOLS["cross-view"].run(sequences, method)
    values = percentages(found)
    assert values["nm rank-1"] == 100
    assert values["nm mAP"] == 100  # one mate, in front of the one stranger left
    wrong = EmbeddedSequences(
        "line", place * np.array([1, 2, 1, 1, 1]).reshape(5, 1, 1), "euclidean"
    )
    values = percentages(PROTOCOLS["cross-view"].run(sequences, wrong))
    assert values["nm rank-1"] == 0  # the stranger at 180 is nearer than the own walk at 90
    assert values["any view rank-1"] == 100


def test_views_that_are_no_numbers_are_near_when_they_are_identical() -> None:
    sequences = LabelledSequences.of(
        ["a", "a", "b", "a"], ["nm-1", "nm-1", "nm-1", "nm-2"], ["door", "hall", "hall", "door"]
    )
    place = np.array([[[0.0]], [[3.0]], [[1.0]], [[0.0]]], np.float32)
    found = percentages(
        PROTOCOLS["cross-view"].run(sequences, EmbeddedSequences("line", place, "euclidean"))
    )
    assert (found["nm rank-1"], found["any view rank-1"]) == (0, 100)


def test_a_probe_that_has_no_other_view_is_skipped() -> None:
    sequences = LabelledSequences.of(
        ["a", "b", "a", "b"], ["nm-1", "nm-1", "nm-2", "nm-2"], ["000", "090", "090", "090"]
    )
    place = np.array([[[0.0]], [[9.0]], [[1.0]], [[9.0]]], np.float32)
    found = PROTOCOLS["cross-view"].run(sequences, EmbeddedSequences("x", place, "euclidean"))
    assert found.trials.counted(found.figures[0]) == (1, 1)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol_says_what_a_foreign_data_set_lacks(name: str) -> None:
    foreign = LabelledSequences.of(["a", "b"], ["run", "run"], ["000", "000"])
    method = EmbeddedSequences("x", np.ones((2, 1, 1), np.float32), "cosine")
    with pytest.raises(ProtocolMismatch):
        PROTOCOLS[name].run(foreign, method)


def test_probes_of_whom_nobody_is_enrolled_are_refused_before_anything_is_embedded() -> None:
    sequences = LabelledSequences.of(["a", "b"], ["nm", "unknown"], ["000", "090"])
    with pytest.raises(ProtocolMismatch, match="nobody to find"):
        PROTOCOLS["cross-view"].split(sequences)


@pytest.mark.parametrize("name", ["casia-b", "ou-mvlp"])
def test_one_view_is_refused_before_anything_is_embedded(name: str) -> None:
    conditions = ["nm-01", "nm-05"] if name == "casia-b" else ["01", "00"]
    sequences = LabelledSequences.of(["a", "a"], conditions, ["090", "090"])
    with pytest.raises(ProtocolMismatch, match="two views or more are needed, found 090"):
        PROTOCOLS[name].split(sequences)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_protocol_explains_itself(name: str) -> None:
    assert len(PROTOCOLS[name].summary) > 20


def test_an_unknown_protocol_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match="nine-pairs"):
        protocol_named("ten-pairs")
