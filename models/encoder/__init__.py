"""From walks to embeddings: the encoder, and files of embeddings."""

from models.encoder.encoder import Encoder, Walk

__all__ = ["Encoder", "Walk"]
