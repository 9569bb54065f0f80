"""What benchmarks have in common that judge a checkpoint by walks of known people."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.embedding import SHIPPED
from models.card import Card
from models.encoder.encoder import Encoder
from training.data.pack import Pack, SequenceRecord
from training.evaluation.distances import pairwise_distances, to_similarity
from training.evaluation.embedding import embed_with_encoder


class Walks:
    """Every walk of a dataset against every other: [n, n] similarities, and whose they are [n]."""

    def __init__(self, packs: list[Path], encoder: Encoder) -> None:
        names: list[str] = []
        embeddings = []
        contents: list[str] = []
        self.records: list[SequenceRecord] = []
        for path in packs:
            pack = Pack.open(path)
            contents.append(pack.content_hash[:12])
            self.records += pack.sequences
            names += [f"{path.name}/{record.subject}" for record in pack.sequences]
            embeddings.append(embed_with_encoder(encoder, pack))
        people, self.subjects = np.unique(np.asarray(names), return_inverse=True)
        self.people = len(people)
        each = np.concatenate(embeddings)
        distances = pairwise_distances(each, each, encoder.card.metric)
        self.similarities = to_similarity(distances, encoder.card.metric).astype(np.float64)
        self.content = ", ".join(contents)


def arguments(doc: str | None, datasets: str, draws: int) -> argparse.ArgumentParser:
    """The command line: a module's docstring, what datasets look like, how many draws."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("datasets", nargs="+", help=datasets)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--draws", type=int, default=draws)
    parser.add_argument("--out", type=Path)
    return parser


def publish(
    benchmark: str,
    card: Card,
    options: argparse.Namespace,
    content: dict[str, str],
    rows: dict[str, Any],
) -> None:
    """Print rows of several datasets, each with its content's hash, and write them if asked to."""
    result = {
        **heading(benchmark, card),
        "content": content,
        "draws": options.draws,
        "rows": rows,
    }
    machine.publish(result, options.out)


def heading(benchmark: str, card: Card) -> dict[str, object]:
    """How a result begins: what was measured, where, and of which checkpoint."""
    return {
        "benchmark": benchmark,
        "machine": machine.describe(),
        "checkpoint": f"{card.name} {card.digest[:12]}",
    }
