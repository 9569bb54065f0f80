"""Conditions a person enrols and asks, and what a refusal says would run instead."""

from __future__ import annotations

import numpy as np
import pytest

from training.evaluation import (
    EmbeddedSequences,
    LabelledSequences,
    ProtocolMismatch,
    evaluate_embeddings,
    own_protocol,
)
from training.evaluation.protocols import PROTOCOLS, UnknownProtocol, protocol_for, suited

Walks = tuple[LabelledSequences, EmbeddedSequences]


def test_own_conditions_are_enrolled_and_asked_as_read_aloud(walkers: Walks) -> None:
    sequences, method = walkers
    named = own_protocol(["1", "2"], {"third": ["3"], "fourth": ["[4-9]"]}, apart=45)
    result = evaluate_embeddings(
        [method], sequences, named, dataset="x", dataset_hash="0", error_rates=False
    )
    assert result.protocol == (
        "1,2 enrolled, asked: third=3; fourth=[4-9], views over 45 degrees apart are others"
    )
    numbers = range(len(sequences))
    expected: dict[str, dict[str, list[bool]]] = {"any": {}, "other": {}}
    for name, walk in (("third", "3"), ("fourth", "4")):
        for probe in numbers:
            if sequences.conditions[probe] != walk:
                continue
            for kind in ("any", "other"):
                gallery = [
                    i
                    for i in numbers
                    if sequences.conditions[i] in ("1", "2")
                    and (
                        kind == "any"
                        or abs(int(sequences.views[i]) - int(sequences.views[probe])) > 45
                    )
                ]
                gaps = [
                    np.linalg.norm(method.embeddings[probe] - method.embeddings[i], axis=1).mean()
                    for i in gallery
                ]
                if any(sequences.subjects[i] == sequences.subjects[probe] for i in gallery):
                    nearest = gallery[int(np.argmin(gaps))]
                    hit = bool(sequences.subjects[nearest] == sequences.subjects[probe])
                    expected[kind].setdefault(name, []).append(hit)
    row = result.rows[0]
    assert row.figures[0].name == "rank-1"
    means = {kind: {n: np.mean(hits) for n, hits in by.items()} for kind, by in expected.items()}
    for name in ("third", "fourth"):
        assert row.figure(f"{name} rank-1").estimate.value == pytest.approx(means["any"][name])
    for figure, kind in (("rank-1", "any"), ("other views rank-1", "other")):
        value = row.figure(figure).estimate.value
        assert value == pytest.approx(np.mean(list(means[kind].values())))
    assert means["any"] != means["other"]


def test_walks_from_one_view_are_judged_too() -> None:
    sequences = LabelledSequences.of(["a", "b", "a", "b"], ["in", "in", "out", "out"], ["door"] * 4)
    place = np.array([[[0.0]], [[5.0]], [[1.0]], [[1.5]]], np.float32)
    method = EmbeddedSequences("line", place, "euclidean")
    named = own_protocol(["in"], {"out": ["out"]})
    result = evaluate_embeddings([method], sequences, named, dataset="x", dataset_hash="0")
    assert result.metrics()["rank1"] == 0.5
    assert "other_views_rank1" not in result.metrics()


@pytest.mark.parametrize(
    ("enrolled", "asked", "reason"),
    [
        (["9"], ["3"], "no condition is '9'; found: 1, 2, 3, 4"),
        (["1"], ["x*"], r"no condition is 'x\*'"),
        (["[12]"], ["2", "3"], "'2' is both enrolled and asked"),
    ],
)
def test_own_conditions_that_do_not_fit_are_named(
    walkers: Walks, enrolled: list[str], asked: list[str], reason: str
) -> None:
    named = own_protocol(enrolled, {"asked": asked})
    with pytest.raises(ProtocolMismatch, match=reason):
        named.rule.split(walkers[0])


@pytest.mark.parametrize(
    ("enrolled", "asked"), [([], {"x": ["1"]}), (["1"], {}), (["1"], {"x": []})]
)
def test_own_protocols_need_both_kinds_of_conditions(
    enrolled: list[str], asked: dict[str, list[str]]
) -> None:
    with pytest.raises(ProtocolMismatch, match="to enrol and conditions to ask"):
        own_protocol(enrolled, asked)


DATA_SETS = {
    "ou-mvlp": (["00", "01"], ["000", "015"]),
    "casia-b": (["nm-01", "nm-05", "bg-01"], ["000", "018"]),
    "casia-e": (["H-scene1-nm-1", "L-scene3_s-cl-2"], ["000", "090"]),
    "ccpg": (["U0_D3", "U3_D3"], ["00_0", "04_1"]),
    "sustech1k": (["00-nm", "03-oc"], ["000", "000-near"]),
    "grew": (["01", "02"], ["a", "b"]),
    "hid": (["0", "1"], ["default"]),
    "cross-view": (["nm-01", "nm-02"], ["000", "090"]),
}


@pytest.mark.parametrize("name", sorted(DATA_SETS))
def test_a_refusal_names_the_protocols_that_would_run(name: str) -> None:
    conditions, views = DATA_SETS[name]
    labels = [(s, c, v) for s in ("a", "b", "c") for c in conditions for v in views]
    sequences = LabelledSequences.of(*zip(*labels, strict=True))
    would = suited(sequences)
    assert name in would
    assert "gait3d" not in would
    listed = "protocols that would run on these walks: " + ", ".join(would) + "$"
    with pytest.raises(ProtocolMismatch, match=listed):
        protocol_for("gait3d", sequences)
    with pytest.raises(UnknownProtocol, match=f"unknown protocol 'gait'; known: .*; {listed}"):
        protocol_for("gait", sequences)
    with pytest.raises(ProtocolMismatch, match=listed):
        protocol_for(own_protocol(["nothing"], {"asked": ["*"]}), sequences)


def test_walks_that_suit_no_protocol_are_told_so() -> None:
    lonely = LabelledSequences.of(["a", "b"], ["nm", "nm"], ["000", "090"])
    with pytest.raises(ProtocolMismatch, match="would run on these walks: none"):
        protocol_for("cross-view", lonely)


@pytest.mark.parametrize("seed", range(40))
def test_what_is_said_to_run_runs_and_what_is_not_does_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    conditions, views = list(DATA_SETS.values())[rng.integers(len(DATA_SETS))]
    n = int(rng.integers(1, 9))
    sequences = LabelledSequences.of(
        [str(s) for s in rng.choice(["a", "b", "c"], n)],
        [str(c) for c in rng.choice([*conditions, "other"], n)],
        [str(v) for v in rng.choice([*views, "270"], n)],
        [bool(p) for p in rng.random(n) < 0.5] if rng.random() < 0.5 else None,
    )
    method = EmbeddedSequences("x", rng.random((n, 2, 3)).astype(np.float32), "euclidean")
    would = suited(sequences)
    for name, rule in PROTOCOLS.items():
        if name in would:
            found = rule.run(sequences, method)
            assert np.isfinite(found.trials.outcomes).any()
        else:
            with pytest.raises(ProtocolMismatch):
                rule.run(sequences, method)
