"""From pooled strips to what is compared and classified."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class GaitOutput(NamedTuple):
    """Per-part embeddings and identity logits of a batch.

    n sequences, c channels, p parts, k identities.
    """

    embeddings: Tensor  # [n, c, p], before the neck, not normalised: what is compared
    logits: Tensor  # [n, k, p], cosines in [-1, 1], not scaled (see `NetworkConfig.classifier`)


class PartLinear(nn.Module):
    """A matrix for each part, without bias: `[n, c_in, p]` to `[n, c_out, p]`.

    With `cosine`, inputs and the matrices' columns are scaled to unit length, so that outputs are
    cosines. With `norm`, outputs are normalised over the batch, a channel of all parts as one.
    """

    def __init__(
        self,
        parts: int,
        channels_in: int,
        channels_out: int,
        *,
        cosine: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.cosine = cosine
        self.norm = nn.BatchNorm1d(channels_out) if norm else None
        self.weight = nn.Parameter(torch.empty(parts, channels_in, channels_out))
        if channels_out:  # a classifier without identities holds nothing to draw
            nn.init.xavier_uniform_(self.weight)

    def forward(self, parts: Tensor) -> Tensor:
        """Multiply each part's row vector with that part's matrix."""
        rows = parts.permute(2, 0, 1)
        if not self.cosine:
            products = torch.bmm(rows, self.weight).permute(1, 2, 0)
            return products if self.norm is None else self.norm(products)
        columns = functional.normalize(self.weight, dim=1)
        return torch.bmm(functional.normalize(rows, dim=-1), columns).permute(1, 2, 0)


class PartHead(nn.Module):
    """Projection of each part, batch-normalisation neck and cosine classifier (arXiv 1903.07071).

    Args:
        channels_in: width of the pooled features.
        channels: width of an embedding's part.
        parts: number of parts.
        identities: classes of the classifier; 0 for a network that only embeds.
        mixing: the neck is followed by a matrix in which every part reads all parts.
        projection_norm: whether embeddings are normalised over the batch.
        cosine: whether logits are cosines behind the neck, or plain products of embeddings.
    """

    def __init__(
        self,
        channels_in: int,
        channels: int,
        parts: int,
        identities: int,
        *,
        mixing: bool = False,
        projection_norm: bool = False,
        cosine: bool = True,
    ) -> None:
        super().__init__()
        self.projection = PartLinear(parts, channels_in, channels, norm=projection_norm)
        self.neck = nn.BatchNorm1d(channels * parts)
        self.mixing: nn.Linear | None = None
        if mixing:
            self.mixing = nn.Linear(channels * parts, channels * parts, bias=False)
            if not self.mixing.weight.is_meta:  # there, torch would import its compiler for this
                nn.init.eye_(self.mixing.weight)
        self.classifier = PartLinear(parts, channels, identities, cosine=cosine)

    def forward(self, pooled: Tensor) -> GaitOutput:
        """Embeddings and logits of pooled strips `[n, c_in, p]`.

        Computed in the precision of the weights even under autocast: cosines of half-precision
        vectors are too coarse for the losses.
        """
        with torch.autocast(pooled.device.type, enabled=False):
            embeddings = self.projection(pooled.to(self.projection.weight.dtype))
            cosine = self.classifier.cosine
            logits = self.classifier(self._normalised(embeddings) if cosine else embeddings)
        return GaitOutput(embeddings, logits)

    def unit_embeddings(self, embeddings: Tensor) -> Tensor:
        """What the classifier compares: `[n, c, p]` behind the neck, each part of unit length."""
        return functional.normalize(self._normalised(embeddings), dim=1)

    def _normalised(self, embeddings: Tensor) -> Tensor:
        flat: Tensor = self.neck(embeddings.flatten(1))
        if self.mixing is not None:
            flat = self.mixing(flat)
        return flat.view_as(embeddings)
