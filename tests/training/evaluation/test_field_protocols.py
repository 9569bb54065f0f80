"""The field's protocols against loops that follow its evaluators step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from training.evaluation import EmbeddedSequences, LabelledSequences, ProtocolMismatch
from training.evaluation.protocols import PROTOCOLS
from training.evaluation.retrieval import Retrieval

Walks = tuple[LabelledSequences, EmbeddedSequences]
Chosen = Callable[[str], bool]

CASIA_E = [
    f"{height}-{scene}-{kind}-{number}"
    for height in "HL"
    for scene in ("scene1", "scene2", "scene3", "scene3_s")
    for kind in ("nm", "bg", "cl")
    for number in (1, 2, 3)
]
CCPG = ["U0_D0", "U0_D0_BG", "U0_D3", "U1_D0", "U1_D1", "U2_D2", "U3_D3"]
SUSTECH1K = ["00-nm", "00-nt", "01-nm", "01-bg", "01-nt-bg", "02-cl", "02-cr-ub", "03-oc", "04-uf"]


def walks(conditions: Iterable[str], views: Iterable[str], subjects: int = 5) -> Walks:
    """Walks of people who lie apart, disturbed by view, condition and noise; some are missing."""
    rng = np.random.default_rng(11)
    who = [f"{n:03}" for n in range(subjects)]
    conditions, views = list(conditions), list(views)
    drawn = {name: rng.standard_normal((3, 6)) for name in (*who, *conditions, *views)}
    labels = [(s, c, v) for s in who for c in conditions for v in views if rng.random() > 0.1]
    embeddings = np.stack(
        [
            drawn[s] + 0.7 * drawn[c] + 0.7 * drawn[v] + 0.6 * rng.standard_normal((3, 6))
            for s, c, v in labels
        ]
    )
    sequences = LabelledSequences.of(*zip(*labels, strict=True))
    return sequences, EmbeddedSequences("x", embeddings.astype(np.float32), "euclidean")


def ranked(found: Walks, probe: int, gallery: list[int]) -> list[bool]:
    """Whose each walk of the gallery is, nearest first: the probe's own or another's."""
    sequences, method = found

    def gap(other: int) -> float:
        parts = method.embeddings[probe] - method.embeddings[other]
        return float(np.mean([np.sqrt(np.sum(part**2)) for part in parts]))

    return [sequences.subjects[g] == sequences.subjects[probe] for g in sorted(gallery, key=gap)]


def view_by_view(
    found: Walks,
    asked: Chosen,
    enrolled: Chosen,
    *,
    place: Callable[[str], str] = str,
    without: str = "",
    rank: int = 1,
    identical: bool = False,
    found_only: bool = False,
) -> float:
    """A mean over pairs of views of rounded percentages."""
    sequences, _ = found
    everything = range(len(sequences))
    views = sorted({place(str(view)) for view in sequences.views} - {without})
    cells = []
    for p in views:
        for g in views:
            if p == g and not identical:
                continue
            hits = []
            for probe in everything:
                if not asked(sequences.conditions[probe]) or place(sequences.views[probe]) != p:
                    continue
                gallery = [
                    i
                    for i in everything
                    if enrolled(sequences.conditions[i]) and place(sequences.views[i]) == g
                ]
                order = ranked(found, probe, gallery)
                if any(order) or not found_only:
                    hits.append(any(order[:rank]))
            cells.append(round(100 * float(np.mean(hits)), 2))
    return float(np.mean(cells))


def percentages(found: Retrieval) -> dict[str, float]:
    return {figure.name: 100 * found.trials.value(figure) for figure in found.figures}


def among(*names: str) -> Chosen:
    return lambda condition: condition in names


def test_casia_e_asks_scenes_2_and_3_of_scene_1_without_view_270() -> None:
    found = walks(CASIA_E, ("000", "090", "270"), subjects=3)
    figures = percentages(PROTOCOLS["casia-e"].run(*found))
    gallery = among("H-scene1-nm-1", "H-scene1-nm-2", "L-scene1-nm-1", "L-scene1-nm-2")
    expected = []
    for name in ("NM", "BG", "CL"):
        numbered = (f"{name.lower()}-1", f"{name.lower()}-2")

        def asked(condition: str, numbered: tuple[str, ...] = numbered) -> bool:
            return "scene1" not in condition and condition.endswith(numbered)

        expected.append(view_by_view(found, asked, gallery, without="270"))
        assert figures[f"{name} rank-1"] == pytest.approx(expected[-1])
    assert figures["rank-1"] == pytest.approx(np.mean(expected))
    split = PROTOCOLS["casia-e"].split(found[0])
    assert "270" not in found[0].views[np.r_[split.probes, split.gallery]]


CCPG_QUESTIONS = {
    "CL": (among("U0_D0_BG", "U0_D0"), among("U1_D1", "U2_D2", "U3_D3")),
    "UP": (among("U3_D3"), among("U0_D3")),
    "DN": (among("U1_D0"), among("U1_D1")),
    "BG": (among("U0_D0_BG"), among("U0_D0")),
}


def camera(view: str) -> str:
    return view.split("_")[0]


def test_ccpg_asks_each_change_of_clothes_of_a_gallery_of_its_own() -> None:
    found = walks(CCPG, ("00_0", "00_1", "03_0", "10_0", "10_1"), subjects=4)
    figures = percentages(PROTOCOLS["ccpg"].run(*found))
    expected = []
    for name, question in CCPG_QUESTIONS.items():
        expected.append(view_by_view(found, *question, place=camera))
        assert figures[f"{name} rank-1"] == pytest.approx(expected[-1])
        every = view_by_view(found, *question, place=camera, identical=True)
        assert figures[f"{name} rank-1, same views too"] == pytest.approx(every)
    assert next(iter(figures)) == "rank-1"
    assert figures["rank-1"] == pytest.approx(np.mean(expected))


def test_ccpg_reid_leaves_out_the_own_camera_and_probes_without_another() -> None:
    found = walks(CCPG, ("00_0", "00_1", "03_0"), subjects=5)
    sequences, _ = found
    retrieval = PROTOCOLS["ccpg-reid"].run(*found)
    figures = percentages(retrieval)
    firsts, skipped = [], 0
    for name, (asked, enrolled) in CCPG_QUESTIONS.items():
        first, fifth, precisions, penalties = [], [], [], []
        for probe in range(len(sequences)):
            if not asked(sequences.conditions[probe]):
                continue
            gallery = [
                i
                for i in range(len(sequences))
                if enrolled(sequences.conditions[i])
                and not (
                    sequences.subjects[i] == sequences.subjects[probe]
                    and camera(sequences.views[i]) == camera(sequences.views[probe])
                )
            ]
            order = ranked(found, probe, gallery)
            if not any(order):
                skipped += 1
                continue
            first.append(order[0])
            fifth.append(any(order[:5]))
            places = [place for place, own in enumerate(order, 1) if own]
            precisions.append(np.mean([n / place for n, place in enumerate(places, 1)]))
            penalties.append(len(places) / places[-1])
        firsts.append(np.mean(first))
        assert figures[f"{name} rank-1"] == pytest.approx(100 * np.mean(first))
        assert figures[f"{name} rank-5"] == pytest.approx(100 * np.mean(fifth))
        assert figures[f"{name} mAP"] == pytest.approx(100 * np.mean(precisions))
        assert figures[f"{name} mINP"] == pytest.approx(100 * np.mean(penalties))
    assert figures["rank-1"] == pytest.approx(100 * np.mean(firsts))
    asked_in_all, _ = retrieval.trials.counted(retrieval.figures[0])
    assert skipped > 0
    assert len(retrieval.trials.outcomes) - asked_in_all == skipped


def test_error_rates_of_ccpg_never_compare_a_walk_with_itself() -> None:
    sequences, _ = walks(CCPG, ("00_0", "03_0"))
    for name in ("ccpg", "ccpg-reid"):
        split = PROTOCOLS[name].split(sequences)
        assert not set(split.probes) & set(split.gallery)
        assert set(sequences.conditions[split.probes]) == {"U0_D0", "U0_D0_BG"}


def test_sustech1k_asks_by_covariate_and_leads_with_all_walks() -> None:
    found = walks(SUSTECH1K, ("000", "000-near", "090"), subjects=4)
    figures = percentages(PROTOCOLS["sustech1k"].run(*found))
    pieces = {
        "Normal": ["01-nm"],
        "Bag": ["bg"],
        "Clothing": ["cl"],
        "Carrying": ["cr"],
        "Umbrella": ["ub"],
        "Uniform": ["uf"],
        "Occlusion": ["oc"],
        "Night": ["nt"],
        "Overall": ["01", "02", "03", "04"],
    }
    for name, wanted in pieces.items():

        def asked(condition: str, wanted: list[str] = wanted) -> bool:
            return any(piece in condition for piece in wanted)

        for rank in (1, 5):
            expected = view_by_view(found, asked, among("00-nm"), rank=rank)
            assert figures[f"{name} rank-{rank}"] == pytest.approx(expected)
    assert next(iter(figures)) == "Overall rank-1"


def test_ou_mvlp_also_counts_only_probes_that_are_enrolled_in_the_view() -> None:
    found = walks(("00", "01"), ("000", "015", "030", "180"), subjects=8)
    figures = percentages(PROTOCOLS["ou-mvlp"].run(*found))
    question = (among("00"), among("01"))
    every = view_by_view(found, *question)
    valid = view_by_view(found, *question, found_only=True)
    assert figures["NM rank-1"] == pytest.approx(every)
    assert figures["NM rank-1 of the enrolled"] == pytest.approx(valid)
    assert every < valid


def test_hid_asks_walk_1_of_walk_0_and_counts_who_is_not_enrolled_as_missed() -> None:
    found = walks(("0", "1", "2"), ("default",), subjects=12)
    sequences, _ = found
    figures = percentages(PROTOCOLS["hid"].run(*found))
    numbers = range(len(sequences))
    gallery = [i for i in numbers if sequences.conditions[i] == "0"]
    orders = [ranked(found, i, gallery) for i in numbers if sequences.conditions[i] == "1"]
    assert not all(any(order) for order in orders)
    for rank in (1, 5):
        expected = round(100 * float(np.mean([any(order[:rank]) for order in orders])), 2)
        assert figures[f"rank-{rank}"] == pytest.approx(expected)


def test_ccgr_mini_asks_all_that_is_not_in_its_gallery() -> None:
    sequences, method = walks(("NM1", "BG1", "CL1"), ("0_1.avi", "over.avi"), subjects=6)
    enrolled = [(n % 5 == 0) and n > 5 for n in range(len(sequences))]
    listed = LabelledSequences(
        sequences.subjects, sequences.conditions, sequences.views, ~np.asarray(enrolled)
    )
    retrieval = PROTOCOLS["ccgr-mini"].run(listed, method)
    gallery = [i for i, is_enrolled in enumerate(enrolled) if is_enrolled]
    probes = [i for i, is_enrolled in enumerate(enrolled) if not is_enrolled]
    orders = [ranked((listed, method), i, gallery) for i in probes]
    valid = [order for order in orders if any(order)]
    assert len(valid) < len(orders)
    figures = percentages(retrieval)
    for rank in (1, 5, 10):
        expected = 100 * np.mean([any(order[:rank]) for order in valid])
        assert figures[f"rank-{rank}"] == pytest.approx(expected)


def test_the_first_walk_of_each_is_enrolled_where_conditions_say_nothing() -> None:
    found = walks(("unknown", "unknown2"), ("unknown", "door"), subjects=6)
    sequences, _ = found
    names = [str(name) for name in sequences.subjects]
    gallery = [names.index(name) for name in sorted(set(names))]
    orders = [ranked(found, i, gallery) for i in range(len(names)) if i not in gallery]
    figures = percentages(PROTOCOLS["first-walk"].run(*found))
    for rank in (1, 5):
        expected = 100 * np.mean([any(order[:rank]) for order in orders])
        assert figures[f"rank-{rank}"] == pytest.approx(expected)


def test_a_question_nobody_can_answer_is_left_out_of_the_mean() -> None:
    found = walks(("U1_D0", "U1_D1", "U3_D3"), ("00_0", "03_0"))
    for name in ("ccpg", "ccpg-reid"):
        figures = percentages(PROTOCOLS[name].run(*found))
        assert {figure.split()[0] for figure in figures} <= {"rank-1", "DN"}
        assert np.isfinite(figures["DN rank-1"])


def test_a_list_that_names_no_walk_says_how_walks_are_named() -> None:
    sequences = LabelledSequences.of(
        ["601", "602"], ["NM1", "NM1"], ["0_1.avi", "0_1.avi"], [True, True]
    )
    with pytest.raises(ProtocolMismatch, match=r"GALLERY_SET.*'601-NM1-0_1\.avi'"):
        PROTOCOLS["ccgr-mini"].split(sequences)
