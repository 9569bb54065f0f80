import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from training.evaluation import (
    EmbeddedSequences,
    EvaluationResult,
    LabelledSequences,
    Resampling,
    console_tables,
    evaluate_embeddings,
)

Walkers = tuple[LabelledSequences, EmbeddedSequences]


@pytest.fixture
def result(walkers: Walkers) -> EvaluationResult:
    sequences, method = walkers
    noise = np.random.default_rng(1).standard_normal(method.embeddings.shape).astype(np.float32)
    return evaluate_embeddings(
        [method, EmbeddedSequences("noise", noise, "cosine", noise, "baseline", "d" * 64)],
        sequences,
        "nine-pairs",
        dataset="six walkers",
        dataset_hash="c" * 64,
        resampling=Resampling(seed=3, replicates=50),
    )


def test_a_result_names_all_that_is_needed_to_repeat_it(result: EvaluationResult) -> None:
    plain = json.loads(result.to_json())
    assert plain["protocol"] == "nine-pairs"
    assert plain["dataset_hash"] == "c" * 64
    assert plain["resampling"] == {"seed": 3, "replicates": 50, "confidence": 0.95}
    assert (plain["subjects"], plain["sequences"]) == (6, 72)
    assert [row["digest"] for row in plain["rows"]] == ["", "d" * 64]
    headline = plain["rows"][0]["figures"][0]
    assert (headline["name"], headline["trials"], headline["subjects"]) == (
        "nine pairs",
        1944 // 3,
        6,
    )
    assert headline["estimate"]["low"] <= headline["estimate"]["value"]


def test_json_holds_no_number_that_is_not_finite(result: EvaluationResult) -> None:
    def refuse(name: str) -> float:
        raise AssertionError(name)

    json.loads(result.to_json(), parse_constant=refuse)


def test_metrics_have_plain_names_and_the_headline_is_rank1(result: EvaluationResult) -> None:
    metrics = result.metrics()
    assert metrics["rank1"] == metrics["nine_pairs"]
    assert {"same_view", "cross_view", "000_to_090", "equal_error_rate"} <= metrics.keys()
    assert all(0 <= value <= 1 for value in metrics.values())


def test_the_first_row_is_compared_with_every_other(result: EvaluationResult) -> None:
    (difference,) = result.differences
    assert (difference.first, difference.second) == ("walkers", "noise")
    first, second = (row.figure("nine pairs").estimate.value for row in result.rows)
    assert difference.estimate.value == pytest.approx(first - second)
    assert difference.estimate.low is not None
    assert difference.estimate.low > 0


def test_the_terminal_shows_every_row_the_table_of_views_and_where_it_comes_from(
    result: EvaluationResult,
) -> None:
    text = printed(result, width=400)
    for title in ("Rank-1 and other", "Verification", "Open set", "thresholds for a gallery"):
        assert title in text
    assert "cccccccccccc" in text
    assert re.search(r"figure +┃ +walkers.* noise, mirrored too \(dddddddddddd\)", text)
    assert len(re.findall(r"probe view ┃ +000 ┃ +045 ┃ +090 ┃ +others", text)) == 2
    value = 100 * result.rows[0].figures[0].estimate.value
    assert re.search(rf"nine pairs +│ +{value:.1f} \[", text)


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_terminal_gets_every_number_whole(result: EvaluationResult, width: int) -> None:
    text = printed(result, width=width)
    assert "…" not in text
    shown = re.findall(r"\d+\.\d+", text)
    everything = re.findall(r"\d+\.\d+", printed(result, width=400))
    assert sorted(shown) == sorted(everything)


def printed(result: EvaluationResult, *, width: int) -> str:
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(console_tables(result))
    return capture.get()


def test_error_rates_can_be_left_out(walkers: Walkers) -> None:
    sequences, method = walkers
    found = evaluate_embeddings(
        [method],
        sequences,
        "nine-pairs",
        dataset="x",
        dataset_hash="0",
        error_rates=False,
    )
    assert found.rows[0].verification is None
    assert found.rows[0].open_set is None
    assert "Verification" not in printed(found, width=400)


def test_an_unknown_figure_is_a_key_error(result: EvaluationResult) -> None:
    with pytest.raises(KeyError, match="rank-7"):
        result.rows[0].figure("rank-7")


def test_embeddings_of_other_sequences_are_refused(walkers: Walkers) -> None:
    sequences, method = walkers
    short = EmbeddedSequences("short", method.embeddings[:-1], "cosine")
    with pytest.raises(ValueError, match="71 embeddings, 72 sequences"):
        evaluate_embeddings([short], sequences, "nine-pairs", dataset="x", dataset_hash="0")


def test_nothing_to_evaluate_is_refused(walkers: Walkers) -> None:
    with pytest.raises(ValueError, match="no method"):
        evaluate_embeddings([], walkers[0], "nine-pairs", dataset="x", dataset_hash="0")


def test_labels_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        LabelledSequences.of(["a"], ["1", "2"], ["000"])


def test_mirrored_embeddings_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="mirrored"):
        EmbeddedSequences(
            "x", np.zeros((2, 1, 3), np.float32), "cosine", np.zeros((2, 1, 4), np.float32)
        )
