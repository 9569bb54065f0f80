import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.evaluation import EmbeddedSequences, LabelledSequences

GOLDENS = Path(__file__).parents[3] / "../shared/goldens"


class Golden:
    """What OpenGait's evaluator says about stored inputs."""

    def __init__(self, folder: Path) -> None:
        self.arrays = dict(np.load(folder / "evaluation.npz", allow_pickle=False))
        text = (folder / "evaluation.json").read_text(encoding="utf-8")
        self.results: dict[str, Any] = json.loads(text)["results"]

    def embeddings(self, name: str) -> NDArray[np.float32]:
        """Stored as [n, c, p], ours are [n, p, c]."""
        return np.ascontiguousarray(self.arrays[name].transpose(0, 2, 1))

    def sequences(self, dataset: str) -> LabelledSequences:
        labels = self.arrays[f"{dataset}/labels"]
        return LabelledSequences(
            labels,
            self.arrays[f"{dataset}/types"],
            self.arrays.get(f"{dataset}/views", np.full(len(labels), "000")),
            self.arrays.get(f"{dataset}/is_probe"),
        )

    def method(self, dataset: str, metric: str) -> EmbeddedSequences:
        embeddings = self.embeddings(f"{dataset}/embeddings")
        return EmbeddedSequences("golden", embeddings, "euclidean" if metric == "euc" else "cosine")


@pytest.fixture(scope="session")
def golden() -> Golden:
    if not (GOLDENS / "evaluation.npz").exists():
        pytest.skip("the goldens of the reference evaluator are not on this machine")
    return Golden(GOLDENS)


@pytest.fixture
def walkers() -> tuple[LabelledSequences, EmbeddedSequences]:
    """Six subjects, four walks, three views; subjects lie apart, views and noise disturb."""
    rng = np.random.default_rng(5)
    labels = [
        (f"s{subject}", f"{walk}", view)
        for subject in range(6)
        for walk in (1, 2, 3, 4)
        for view in ("000", "045", "090")
    ]
    centre = {f"s{i}": rng.standard_normal((3, 8)) for i in range(6)}
    offset = {view: rng.standard_normal((3, 8)) for view in ("000", "045", "090")}
    embeddings = np.array(
        [centre[s] + 0.8 * offset[v] + 0.6 * rng.standard_normal((3, 8)) for s, _, v in labels],
        np.float32,
    )
    subjects, walks, views = zip(*labels, strict=True)
    return (
        LabelledSequences.of(subjects, walks, views),
        EmbeddedSequences("walkers", embeddings, "euclidean"),
    )
