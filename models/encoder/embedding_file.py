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
from models.encoder.encoder import NO_POSE
from models.silhouettes import SequenceError, decode, prepare

FRAMES_PER_CALL: Final = 64


class EmbeddingFileError(ValueError):
    """A file holds nothing that can be embedded."""


def embed_prepared(checkpoint_dir: Path, in_npz: Path, out_npz: Path) -> int:
    """Embed silhouettes that are normalised already, with the plain float32 network on the CPU.

    Args:
        checkpoint_dir: the checkpoint.
        in_npz: `silhouettes` uint8 `[n, s, h, w]`, h and w as the card's input (64 x 44), and, for
            a network that reads them, `pose_maps` uint8 `[n, s, 2, h, w]`: limbs, joints.
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
    walks = _read(in_npz, (card.input.height, card.input.width), pose=network.reads_pose)
    embeddings, logits = [], []
    walks_per_call = max(1, FRAMES_PER_CALL // walks.shape[1])
    with torch.inference_mode():
        for start in range(0, len(walks), walks_per_call):
            batch = torch.from_numpy(walks[start : start + walks_per_call]).float() / 255
            output = network(batch)
            compared = network.matching(output.embeddings)
            if card.mirror:
                compared = (compared + network.matching(network(batch.flip(-1)).embeddings)) / 2
            embeddings.append(compared.transpose(1, 2).numpy())
            logits.append(output.logits.numpy())
    with out_npz.open("wb") as file:
        np.savez(file, embeddings=np.concatenate(embeddings), logits=np.concatenate(logits))
    return len(walks)


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
        EmbeddingFileError: no walk at all, one that is refused (the message names it), or a network
            that reads pose maps.
        CheckpointError: the checkpoint can't be read.
        OSError: a file can't be read or written.
    """
    if not walks:
        raise EmbeddingFileError("no walk to embed")
    encoder = Encoder.open(checkpoint_dir)
    if encoder.reads_pose:
        raise EmbeddingFileError(
            f"{checkpoint_dir}: {NO_POSE}; `--normalised` takes pose maps and silhouettes"
        )
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


def _read(path: Path, size: tuple[int, int], *, pose: bool) -> NDArray[np.uint8]:
    """Walks as the network takes them: uint8 `[n, s, h, w]`, with pose maps `[n, s, 3, h, w]`."""
    names = ("silhouettes", "pose_maps")[: 1 + pose]
    try:
        # opened here, because numpy leaves a broken archive open
        with path.open("rb") as file:
            archive = NpzFile(file, allow_pickle=False)
            found: list[NDArray[np.uint8]] = [archive[name] for name in names]
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        wanted = " and ".join(f"{name!r}" for name in names)
        raise EmbeddingFileError(f"{path} is not an .npz file with {wanted}") from error
    for name, array, axes in zip(names, found, (2, 3), strict=False):
        form = size if axes == 2 else (2, *size)
        if (
            array.dtype != np.uint8
            or array.ndim != 2 + axes
            or array.shape[2:] != form
            or array.shape[:2] != found[0].shape[:2]
            or 0 in array.shape
        ):
            raise EmbeddingFileError(
                f"{path}: {name!r} must be uint8 [n, s, {', '.join(map(str, form))}], "
                f"not {array.dtype} {list(array.shape)}"
            )
    silhouettes, *maps = found
    return np.concatenate([maps[0], silhouettes[:, :, None]], 2) if maps else silhouettes
