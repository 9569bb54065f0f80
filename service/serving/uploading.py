"""Uploaded checkpoints: kept only if they load, their files belong together and they embed a walk.

Nothing in them is trusted. The files are written beside the models under limits and read as
safetensors and as a card (without pickle, see `models.checkpoint`). What a frame costs is counted,
and two walks are embedded, so that a model that could not serve, or that embeds everybody alike, is
refused now and not when it is activated.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import numpy as np

from models import checkpoint
from models.card import CARD, MAX_CARD_BYTES, WEIGHTS, CheckpointError
from models.encoder.encoder import NO_POSE, Encoder, Walk
from models.networks.cost import cost
from service.foundation.errors import Invalid, Reason, TooLarge
from service.foundation.settings import Settings
from service.serving.registry import ModelRegistry, RecordDigest, RegisteredModel

_PIECE = 1 << 20
_MOST_MACS = 10e9  # per frame; a DeepGaitV2 of full width in 3D takes 7e9


def add_checkpoint(
    settings: Settings,
    registry: ModelRegistry,
    name: str,
    weights: IO[bytes],
    card: IO[bytes],
    record: RecordDigest,
    *,
    most_macs: float = _MOST_MACS,
) -> RegisteredModel:
    """Add an uploaded checkpoint as the model `name`; `record` is told its digest before.

    Raises `Invalid` for a checkpoint that cannot serve, `TooLarge`, and `Conflict` for a name that
    is taken; nothing is left behind then.
    """
    settings.models_dir.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".incoming-", dir=settings.models_dir) as arriving:
        folder = Path(arriving) / name  # moved away if it can serve
        folder.mkdir()
        _write(weights, folder / WEIGHTS, settings.max_request_bytes, "weights")
        _write(card, folder / CARD, MAX_CARD_BYTES, "card")
        _try(folder, most_macs)
        return registry.add_uploaded(name, folder, record)


def _write(source: IO[bytes], target: Path, limit: int, field: str) -> None:
    size = 0
    with target.open("wb") as file:
        while piece := source.read(_PIECE):
            size += len(piece)
            if size > limit:
                raise TooLarge(f"{field} is larger than {limit} bytes.", Reason(field, "too_large"))
            file.write(piece)


def _try(folder: Path, most_macs: float) -> None:
    """Load it as the service would, and embed two walks."""
    try:
        network, card = checkpoint.load(folder)
        macs = cost(network).macs_per_frame
        if macs > most_macs:
            raise ValueError(
                f"a frame takes {macs / 1e9:.0f} billion multiplications, at most "
                f"{most_macs / 1e9:.0f} billion are taken"
            )
        if card.reads_pose:
            raise ValueError(NO_POSE)
        encoder = Encoder(network, card, device="cpu", precision="float32")
        one, other = encoder.encode(_two_walks())
    except CheckpointError as error:
        at_card = str(folder / CARD) in str(error)
        raise _refused(error, folder, "card" if at_card else "weights") from error
    except (ValueError, RuntimeError) as error:  # an input size that walks do not have, say
        raise _refused(error, folder, "card") from error
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise _refused(ValueError("it embeds a walk as no numbers"), folder, "weights")
    if not one.any() or np.allclose(one, other, rtol=1e-6, atol=0):
        raise _refused(ValueError("it embeds different walks as the same"), folder, "weights")


def _two_walks() -> list[Walk]:
    """Silhouettes [s, 64, 64] that no network which looks at them takes for each other."""
    full = np.full((8, 64, 64), 255, np.uint8)
    post = np.zeros_like(full)
    post[:, 8:56, 24:40] = 255
    return [full, post]


def _refused(error: Exception, folder: Path, field: str) -> Invalid:
    said = str(error).replace(f"{folder}/", "").replace(str(folder), "the checkpoint")
    said = " ".join(said.split())
    return Invalid(
        f"This is not a checkpoint that can serve: {said[:500]}",
        Reason(field, "not_a_checkpoint"),
        slug="checkpoint-invalid",
    )
