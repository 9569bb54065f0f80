"""From embeddings, or from a checkpoint and a pack, to a result."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from models import Progress
from training.data import Pack
from training.evaluation.baselines import (
    GAIT_ENERGY_IMAGE,
    UNTRAINED,
    energy_embeddings,
    untrained_encoder,
)
from training.evaluation.bootstrap import Resampling
from training.evaluation.open_set import search
from training.evaluation.protocols import NamedProtocol, protocol_for
from training.evaluation.result import (
    Difference,
    EvaluationResult,
    ReportedFigure,
    ReportedTable,
    Row,
)
from training.evaluation.retrieval import EvaluationProtocol, Retrieval, TableOfCells
from training.evaluation.scores import subject_scores
from training.evaluation.sequences import EmbeddedSequences, LabelledSequences, Role
from training.evaluation.trials import Figure
from training.evaluation.verification import verify

if TYPE_CHECKING:
    from models.encoder import Encoder


def evaluate_embeddings(
    methods: Sequence[EmbeddedSequences],
    sequences: LabelledSequences,
    protocol: str | NamedProtocol,
    *,
    dataset: str,
    dataset_hash: str,
    resampling: Resampling | None = None,
    error_rates: bool = True,
) -> EvaluationResult:
    """Run a protocol on methods whose embeddings are at hand.

    Args:
        methods: rows of the result, the one under evaluation first.
        sequences: the labels all of them share.
        protocol: a name in `PROTOCOLS`, or one made by `own_protocol`.
        dataset: name of the data, for the record.
        dataset_hash: its content hash.
        resampling: how intervals are made.
        error_rates: verification and open-set errors as well.

    Raises:
        ValueError: no method, an unknown protocol, or embeddings that are not of these sequences.
        ProtocolMismatch: the data lack what the protocol needs.
    """
    if not methods:
        raise ValueError("there is no method to evaluate")
    for method in methods:
        if len(method.embeddings) != len(sequences):
            raise ValueError(
                f"{method.name}: {len(method.embeddings)} embeddings, {len(sequences)} sequences"
            )
    name, rule = protocol_for(protocol, sequences)
    resampling = resampling or Resampling()
    found = [rule.run(sequences, method) for method in methods]
    return EvaluationResult(
        name,
        dataset,
        dataset_hash,
        len(np.unique(sequences.subjects)),
        len(sequences),
        resampling,
        tuple(
            _row(method, retrieval, rule, sequences, resampling, error_rates)
            for method, retrieval in zip(methods, found, strict=True)
        ),
        tuple(
            _difference(methods[0], found[0], method, retrieval, resampling)
            for method, retrieval in zip(methods[1:], found[1:], strict=True)
        ),
    )


def evaluate_checkpoint(
    checkpoint: Path,
    pack: Path,
    protocol: str | NamedProtocol,
    *,
    device: str = "auto",
    mirror: bool | None = None,
    baselines: bool | None = None,
    against: Sequence[Path] = (),
    resampling: Resampling | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Embed the test sequences of a pack with a checkpoint and run a protocol on them.

    In float32, so that a figure is the same on every machine.

    The test sequences are those of the subjects in the `TEST_SET` of the pack's `partition.json`,
    or all when it has none.

    Args:
        checkpoint: folder of the checkpoint under evaluation: the first row.
        pack: folder of the packed data set.
        protocol: a name in `PROTOCOLS`, or one made by `own_protocol`.
        device: where networks run.
        mirror: try every probe mirrored as well, in every row; the protocol's habit when None.
        baselines: add the gait energy image and the untrained network; the protocol's habit when
            None.
        against: further checkpoints, each a row with a paired difference to the first.
        resampling: seed, replicates and confidence of the intervals; also the seed of the
            untrained network.
        progress: called with sequences embedded so far, and how many there will be.

    Raises:
        ValueError: the checkpoint, the pack or the protocol is not one.
        ProtocolMismatch: the pack lacks what the protocol needs.
    """
    # Imported here: evaluating embeddings needs no torch.
    from models.encoder import Encoder

    test = tested_walks(Pack.open(pack))
    sequences = labels_of(test)
    chosen = protocol_for(protocol, sequences)  # a mismatch shows before an hour of embedding
    rule = chosen.rule
    resampling = resampling or Resampling()
    mirror = rule.mirror if mirror is None else mirror
    baselines = rule.baselines if baselines is None else baselines

    encoders: list[tuple[str, Encoder, Role]] = [
        (encoder.card.name, encoder, "checkpoint")
        for encoder in (
            Encoder.open(folder, device=device, precision="float32")
            for folder in (checkpoint, *against)
        )
    ]
    if baselines:
        untrained = untrained_encoder(checkpoint, device=device, seed=resampling.seed)
        encoders.append((UNTRAINED, untrained, "baseline"))
    work = sum(
        len(test) * (2 if _embeds_mirrored(encoder, mirror) else 1) for _, encoder, _ in encoders
    )
    finished = 0

    def advance(done: int) -> None:
        if progress is not None:
            progress(finished + done, work)

    methods = []
    for name, encoder, role in encoders:
        methods.append(
            embedded_by(encoder, test, mirror=mirror, role=role, name=name, progress=advance)
        )
        finished += len(test) * (2 if _embeds_mirrored(encoder, mirror) else 1)
    if baselines:
        methods.append(_energy_row(test, mirror))
    return evaluate_embeddings(
        methods,
        sequences,
        chosen,
        dataset=pack.name,
        dataset_hash=test.content_hash,
        resampling=resampling,
    )


def tested_walks(pack: Pack) -> Pack:
    """The sequences of the `TEST_SET` of a pack's partition; all when it has no partition.

    Raises:
        PackError: the pack has none of them.
    """
    return pack if pack.partition is None else pack.subset(pack.partition.test)


def labels_of(pack: Pack) -> LabelledSequences:
    """The labels of a pack's sequences, with scenes and the field's list of probes if it has them.

    Where it lists the gallery alone, everything else is a probe.
    """
    records = pack.sequences
    names = [f"{record.subject}-{record.condition}-{record.view}" for record in records]
    listed: list[bool] | None = None
    if pack.partition is not None and pack.partition.probes is not None:
        probes = frozenset(pack.partition.probes)
        listed = [name in probes for name in names]
    elif pack.partition is not None and pack.partition.gallery is not None:
        gallery = frozenset(pack.partition.gallery)
        listed = [name not in gallery for name in names]
    return LabelledSequences.of(
        [record.subject for record in records],
        [record.condition for record in records],
        [record.view for record in records],
        listed,
        scenes if all(scenes := [str(r.metadata.get("scene", "")) for r in records]) else None,
    )


def embedded_by(
    encoder: Encoder,
    pack: Pack,
    *,
    mirror: bool,
    role: Role = "checkpoint",
    name: str | None = None,
    progress: Progress | None = None,
) -> EmbeddedSequences:
    """What a checkpoint makes of a pack, to be run through a protocol; compared as its card says.

    Args:
        encoder: embeds.
        pack: silhouettes.
        mirror: the probes are tried mirrored as well.
        role: of the row.
        name: of the row; the card's when None.
        progress: told how many sequences are embedded, those mirrored counted again.
    """
    from training.evaluation.embedding import embed_with_encoder

    embeddings = embed_with_encoder(encoder, pack, progress=progress)
    mirrored = None
    if _embeds_mirrored(encoder, mirror):

        def second_pass(done: int) -> None:
            if progress is not None:
                progress(len(pack) + done)

        mirrored = embed_with_encoder(encoder, pack, mirror=True, progress=second_pass)
    card = encoder.card
    return EmbeddedSequences(
        name or card.name, embeddings, card.metric, mirrored, role, encoder.digest
    )


def _embeds_mirrored(encoder: Encoder, mirror: bool) -> bool:
    """A checkpoint that averages with the mirrored walk embeds both alike: once is enough."""
    return mirror and not encoder.card.mirror


def _energy_row(pack: Pack, mirror: bool) -> EmbeddedSequences:
    walks = [pack.silhouettes(i) for i in range(len(pack))]
    return EmbeddedSequences(
        GAIT_ENERGY_IMAGE,
        energy_embeddings(walks),
        "euclidean",
        energy_embeddings([walk[:, :, ::-1] for walk in walks]) if mirror else None,
        "baseline",
    )


def _row(
    method: EmbeddedSequences,
    retrieval: Retrieval,
    rule: EvaluationProtocol,
    sequences: LabelledSequences,
    resampling: Resampling,
    error_rates: bool,
) -> Row:
    trials = retrieval.trials
    scores = subject_scores(sequences, rule.split(sequences), method) if error_rates else None
    return Row(
        method.name,
        method.role,
        method.metric,
        method.mirrored is not None,
        method.digest,
        tuple(
            ReportedFigure(
                figure.name,
                trials.estimate(figure, resampling),
                *trials.counted(figure),
                figure.detail,
            )
            for figure in retrieval.figures
        ),
        tuple(_table(retrieval, table) for table in retrieval.tables),
        verify(scores, resampling) if scores is not None else None,
        search(scores, resampling) if scores is not None else None,
    )


def _table(retrieval: Retrieval, table: TableOfCells) -> ReportedTable:
    def entry(cells: tuple[int, ...]) -> float | None:
        value = retrieval.trials.value(Figure(table.name, table.measure, cells, table.decimals))
        return value if math.isfinite(value) else None

    values = tuple(tuple(entry(cells) for cells in row) for row in table.cells)
    return ReportedTable(table.name, table.row_label, table.rows, table.columns, values)


def _difference(
    first: EmbeddedSequences,
    first_found: Retrieval,
    second: EmbeddedSequences,
    second_found: Retrieval,
    resampling: Resampling,
) -> Difference:
    headline = first_found.figures[0]
    estimate = first_found.trials.difference(second_found.trials, headline, resampling)
    return Difference(headline.name, first.name, second.name, estimate)
