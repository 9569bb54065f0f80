"""Embed walks from files and write their embeddings to one `.npz`."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from models import checkpoint
from models.encoder import Encoder
from models.silhouettes import SequenceError, decode, prepare

FRAMES_PER_CALL: Final = 64


class EmbeddingFileError(ValueError):
    """A file holds nothing that can be embedded."""


def embed_prepared(checkpoint_dir: Path, in_npz: Path, out_npz: Path) -> int:
    """Embed silhouettes that are normalised already, with the plain float32 network on the CPU.

    Args:
        checkpoint_dir: the checkpoint.
        in_npz: `silhouettes` uint8 `[n, s, h, w]`, h and w as the card's input (64 x 44).
        out_npz: gets `embeddings` float32 `[n, c, p]`, what the checkpoint compares, not
            normalised unless its configuration says so, and `logits` float32 `[n, k, p]` of the
            walks as they are, not mirrored.

    Returns:
        n.

    Raises:
        EmbeddingFileError: `in_npz` is something else.
        CheckpointError: the checkpoint can't be read.
        OSError: a file can't be read or written.
    """
    network, card = checkpoint.load(checkpoint_dir)
    silhouettes = _read_silhouettes(in_npz, (card.input.height, card.input.width))
    embeddings, logits = [], []
    walks_per_call = max(1, FRAMES_PER_CALL // silhouettes.shape[1])
    with torch.inference_mode():
        for start in range(0, len(silhouettes), walks_per_call):
            batch = torch.from_numpy(silhouettes[start : start + walks_per_call]).float() / 255
            output = network(batch)
            compared = network.matching(output.embeddings)
            if card.mirror:
                compared = (compared + network.matching(network(batch.flip(-1)).embeddings)) / 2
            embeddings.append(compared.transpose(1, 2).numpy())
            logits.append(output.logits.numpy())
    with out_npz.open("wb") as file:
        np.savez(file, embeddings=np.concatenate(embeddings), logits=np.concatenate(logits))
    return len(silhouettes)


def embed_walks(checkpoint_dir: Path, walks: Sequence[Path], out_npz: Path) -> int:
    """Embed walks in any upload format, as the service would.

    Args:
        checkpoint_dir: the checkpoint.
        walks: a file each.
        out_npz: gets `embeddings` float32 `[n, c, p]` and, for each walk, `walks` (its path as
            given) and `frames` (int64, the frames that were used).

    Returns:
        n.

    Raises:
        EmbeddingFileError: no walk at all, or one that is refused; the message names it.
        CheckpointError: the checkpoint can't be read.
        OSError: a file can't be read or written.
    """
    if not walks:
        raise EmbeddingFileError("no walk to embed")
    encoder = Encoder.open(checkpoint_dir)
    prepared = [_prepare(path) for path in walks]
    embeddings = encoder.encode(prepared).transpose(0, 2, 1)
    with out_npz.open("wb") as file:
        np.savez(
            file,
            embeddings=embeddings,
            walks=np.array([str(path) for path in walks]),
            frames=np.array([len(walk) for walk in prepared], np.int64),
        )
    return len(walks)


def _prepare(path: Path) -> NDArray[np.uint8]:
    try:
        return prepare(decode(path.read_bytes()), clean=True).silhouettes
    except SequenceError as error:
        raise EmbeddingFileError(f"{path}: {error}") from error


def _read_silhouettes(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        # opened here, because numpy leaves a broken archive open
        with path.open("rb") as file:
            silhouettes: NDArray[np.uint8] = NpzFile(file, allow_pickle=False)["silhouettes"]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise EmbeddingFileError(f"{path} is not an .npz file with 'silhouettes'") from error
    if (
        silhouettes.dtype != np.uint8
        or silhouettes.ndim != 4
        or silhouettes.shape[2:] != size
        or 0 in silhouettes.shape
    ):
        raise EmbeddingFileError(
            f"{path}: 'silhouettes' must be uint8 [n, s, {size[0]}, {size[1]}], "
            f"not {silhouettes.dtype} {list(silhouettes.shape)}"
        )
    return silhouettes
