"""Evaluation: protocols, metrics, error rates and intervals.

    result = evaluate_checkpoint(Path("run/checkpoint"), Path("test.pack"), "cross-view")
    result.metrics()            {"rank1": 0.83, …}   for events and cards
    result.to_json()            everything, on one line
    console_tables(result)      tables for the terminal

    evaluate_checkpoint(checkpoint, pack, protocol, *, device="auto", mirror=None, baselines=None,
                        against=(), resampling=Resampling(seed=0, replicates=1000, confidence=0.95),
                        progress=None) -> EvaluationResult
    evaluate_embeddings([EmbeddedSequences(name, embeddings [n, p, c], metric, mirrored=None)],
                        labels_of(pack), protocol, dataset=…, dataset_hash=…) -> EvaluationResult

Errors are `ValueError`s: `ProtocolMismatch` when the data lack what the protocol needs; its text
ends with the protocols that would run. Only `evaluate_checkpoint` needs torch. `PROTOCOLS` is the
registry; `own_protocol(enrolled, asked)` makes one of conditions, to be passed instead of a name.
"""

from training.evaluation.bootstrap import Estimate, Resampling
from training.evaluation.conditions import ProtocolMismatch
from training.evaluation.evaluate import (
    embedded_by,
    evaluate_checkpoint,
    evaluate_embeddings,
    labels_of,
    tested_walks,
)
from training.evaluation.protocols import PROTOCOLS, own_protocol, protocol_named
from training.evaluation.report import console_tables
from training.evaluation.result import EvaluationResult
from training.evaluation.sequences import EmbeddedSequences, LabelledSequences

__all__ = [
    "PROTOCOLS",
    "EmbeddedSequences",
    "Estimate",
    "EvaluationResult",
    "LabelledSequences",
    "ProtocolMismatch",
    "Resampling",
    "console_tables",
    "embedded_by",
    "evaluate_checkpoint",
    "evaluate_embeddings",
    "labels_of",
    "own_protocol",
    "protocol_named",
    "tested_walks",
]
