"""Evaluation on held-out subjects, during training and at its end."""

from __future__ import annotations

from models.card import Metric
from models.networks.device import MixedPrecision
from models.networks.network import GaitNetwork
from training.data.pack import Pack
from training.evaluation import (
    EmbeddedSequences,
    EvaluationResult,
    LabelledSequences,
    ProtocolMismatch,
    Resampling,
    evaluate_embeddings,
    labels_of,
    own_protocol,
)
from training.evaluation.embedding import embed_with_network
from training.evaluation.protocols import (
    AUTO_PROTOCOL,
    NamedProtocol,
    UnknownProtocol,
    protocol_for,
    suited,
)
from training.recipe import Evaluation, Problem, RecipeError

_FEW_REPLICATES = Resampling(replicates=100)  # a curve needs no fine intervals


class HeldOutEvaluator:
    """Evaluates a network on held-out walks by one protocol.

    With the protocol "auto" that is `cross-view` where the walks' conditions allow it; otherwise
    the first sequence of every subject is enrolled and the others are searched for. A recipe may
    name conditions that are enrolled and asked instead.

    Args:
        settings: of the recipe.
        held_out: walks of subjects that are not learnt, or None.
        metric: how embeddings are compared.
        mirror: whether a walk's embedding is the mean with its mirror image's.

    Raises:
        RecipeError: there is no such protocol, or the held-out walks do not suit it.
    """

    def __init__(
        self, settings: Evaluation, held_out: Pack | None, *, metric: Metric, mirror: bool
    ) -> None:
        self._pack = held_out
        self._metric, self._mirror = metric, mirror
        wanted: str | NamedProtocol = settings.protocol
        if settings.enrolled:
            wanted = own_protocol(settings.enrolled, settings.asked, settings.apart)
        self._protocol: str | NamedProtocol = wanted
        self._labels: LabelledSequences | None = None
        if held_out is not None:
            self._protocol, self._labels = _suited(wanted, held_out)

    @property
    def possible(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self._labels is not None

    def evaluate(
        self, network: GaitNetwork, precision: MixedPrecision, *, error_rates: bool
    ) -> EvaluationResult:
        """Judge the network; leaves its mode as it was.

        Args:
            network: to judge.
            precision: that products are computed in.
            error_rates: verification and open-set errors as well.

        Raises:
            ValueError: there are no held-out walks, see `possible`.
        """
        if self._pack is None or self._labels is None:
            raise ValueError("there are no held-out walks to evaluate on")
        training = network.training
        network.eval()
        try:
            embeddings = embed_with_network(network, self._pack, precision, mirror=self._mirror)
        finally:
            network.train(training)
        return evaluate_embeddings(
            [EmbeddedSequences("student", embeddings, self._metric)],
            self._labels,
            self._protocol,
            dataset=self._pack.path.name,
            dataset_hash=self._pack.content_hash,
            resampling=_FEW_REPLICATES,
            error_rates=error_rates,
        )


def _suited(
    protocol: str | NamedProtocol, pack: Pack
) -> tuple[str | NamedProtocol, LabelledSequences | None]:
    """The protocol to use and the labels it needs; no labels if no subject can be searched for."""
    labels = labels_of(pack)
    if protocol == AUTO_PROTOCOL:
        would = suited(labels)
        chosen = "cross-view" if "cross-view" in would else "first-walk"
        return chosen, labels if chosen in would else None
    try:
        protocol_for(protocol, labels)
    except (UnknownProtocol, ProtocolMismatch) as error:
        where = "evaluation.protocol" if isinstance(protocol, str) else "evaluation"
        raise RecipeError([Problem(where, str(error))]) from error
    return protocol, labels
