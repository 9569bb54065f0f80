"""From walks to embeddings: the encoder, and files of embeddings.

Embeddings are `[n, p, c]`: the parts of a walk, each a vector of c channels. That is how they are
compared (part with part), stored and indexed, and each vector lies in one piece of memory. Inside a
network and in the losses they are `[n, c, p]` as everywhere in the field, because convolutions, the
neck and the classifier keep channels in the second axis. `GaitNetwork.matching` is the network's
edge and the only place where one becomes the other. The files of `models.encoder.embedding_file`
keep `[n, c, p]`: they are exchanged with the field's tools.
"""

from models.encoder.encoder import Encoder, Walk

__all__ = ["Encoder", "Walk"]
