"""Reads the checkpoints OpenGait and its descendants write.

Such a file is a pickle of `{"model": state_dict, "optimizer": …, "scheduler": …, "iteration": …}`.
It is opened with `weights_only=True`, so it can build tensors and nothing else. The shapes of the
weights tell everything else: widths, depths, parts, number of identities and the kind of
convolution. A key that does not fit, is missing or has another shape is an error that names it.

Two exceptions are made, knowingly. A `module.` in front of a key is what distributed training
leaves, and is taken off. Keys of `teacher_models.` are what GaitKD saves with a student by mistake;
they are dropped, and the card says so.
"""

from __future__ import annotations

import errno
import logging
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from models import checkpoint
from models.card import Card, InputSize, summary
from models.checkpoint import card_of
from models.networks.network import GaitNetwork
from models.networks.registry import build
from models.opengait.format import OpenGaitError, State, new_neck
from models.opengait.gaitgl import GAITGL
from models.opengait.gaitpart import GAITPART
from models.opengait.gaitset import GAITSET
from models.opengait.residual import DEEPGAITV2, GAITBASE
from models.opengait.skeletongaitpp import SKELETONGAITPP
from models.opengait.swingait import SWINGAIT

_log = logging.getLogger(__name__)

MODES: Final = ("2d", "p3d", "3d")
TRIAL: Final = InputSize()
TYPES: Final = {  # that a weight, or a counter, may be stored as
    torch.float32: (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    torch.int64: (torch.int64, torch.int32),
}
TEACHERS: Final = ("teacher_models.", "teacher_model.")
FORMATS: Final = {
    "gaitbase": GAITBASE,
    "deepgaitv2": DEEPGAITV2,
    "gaitset": GAITSET,
    "gaitpart": GAITPART,
    "gaitgl": GAITGL,
    "swingait": SWINGAIT,
    "skeletongaitpp": SKELETONGAITPP,
}


def import_opengait(
    path: Path,
    architecture_name: str,
    *,
    name: str | None = None,
    metric: Literal["cosine", "euclidean"] = "euclidean",
    embedding_source: Literal["embedding", "neck"] = "embedding",
    strides: tuple[int, int, int, int] | None = None,
) -> tuple[GaitNetwork, Card]:
    """Read an OpenGait checkpoint.

    Args:
        path: the `.pt` file.
        architecture_name: a name of the registry, or `deepgaitv2-2d`, `-p3d`, `-3d` to insist on
            a mode; case and `_` for `-` don't matter.
        name: the card's name; the file's, if none.
        metric: how embeddings are compared; the field's default is Euclidean.
        embedding_source: `neck` for a model whose configuration says `use_emb2: true`.
        strides: GaitBase only: the strides of its four stages, which no shape tells, if they are
            not the published 1, 2, 2, 1.

    Returns:
        The network in eval mode, and a card for it.

    Raises:
        OpenGaitError: an unknown architecture, a file that is something else, or weights that
            don't fit; the message names the keys.
        OSError: the file can't be read.
    """
    architecture, mode = _parse_name(architecture_name)
    state, dropped = _read_state(path)
    try:
        config = FORMATS[architecture].config(state)
    except OpenGaitError as error:
        raise OpenGaitError(f"{path}: {error}") from error
    if mode not in (None, config.get("mode")):
        raise OpenGaitError(f"the file holds a deepgaitv2-{config['mode']}, not {mode}")
    if embedding_source == "neck" and "BNNecks.fc_bin" not in state:
        raise OpenGaitError(f"{path} has no neck whose outputs could be compared")
    config["embedding_source"] = embedding_source
    if strides is not None:
        config["strides"] = strides
    try:
        with torch.device("meta"):
            network = build(architecture, config)
            # a trial without numbers: not every number of parts divides the rows of features
            network.pool(torch.empty(1, 1, *network.frame_shape(TRIAL.height, TRIAL.width)))
    except ValueError as error:
        raise OpenGaitError(
            f"{path}: {architecture} can't have these shapes: {_fault(error)}"
        ) from error
    network.load_state_dict(_translated(path, network, state), strict=True, assign=True)
    notes = f"Imported from the OpenGait checkpoint {path.name!r}."
    if dropped:
        notes += f" {dropped} tensors of teachers saved with the student were left out."
        _log.warning("%s: left out %d tensors of teachers saved with the student", path, dropped)
    card = card_of(network, name=name or path.stem, metric=metric, notes=notes)
    return network.eval(), card


def convert(
    checkpoint_path: Path,
    out_dir: Path,
    architecture_name: str,
    *,
    name: str | None = None,
    metric: Literal["cosine", "euclidean"] = "euclidean",
    embedding_source: Literal["embedding", "neck"] = "embedding",
    strides: tuple[int, int, int, int] | None = None,
) -> Card:
    """Convert an OpenGait checkpoint to a GaitID checkpoint in `out_dir`; see `import_opengait`.

    Raises:
        OpenGaitError: the file can't be imported, or `out_dir` holds something already.
        CheckpointError: the weights are too large to be read again.
        OSError: a file can't be read or written.
    """
    if out_dir.is_dir() and any(out_dir.iterdir()):
        raise OpenGaitError(f"{out_dir} is there and not empty; name a folder that is to be made")
    network, card = import_opengait(
        checkpoint_path,
        architecture_name,
        name=name,
        metric=metric,
        embedding_source=embedding_source,
        strides=strides,
    )
    return checkpoint.save(out_dir, network, card)


def _parse_name(name: str) -> tuple[str, str | None]:
    architecture, _, mode = name.lower().replace("_", "-").partition("-")
    if architecture in FORMATS and (not mode or (architecture == "deepgaitv2" and mode in MODES)):
        return architecture, mode or None
    known = [*FORMATS, *(f"deepgaitv2-{mode}" for mode in MODES)]
    raise OpenGaitError(f"unknown architecture {name!r}; known: {', '.join(known)}")


def _in_a_sentence(error: Exception) -> str:
    """Why a file was not read, without torch's advice, which is to run what is in it."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"\bGLOBAL (\S+)", str(error))
        return f"it needs {found[1]}, which is no tensor" if found else "it is no file of tensors"
    if isinstance(error, LookupError):
        return "it is no file of tensors"  # an instruction that no pickle of tensors has
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        return "it ends too early"  # a directory was looked for in front of the file's first byte
    return str(error).partition(". ")[0].strip() or "it ends too early"


def _fault(error: ValueError) -> str:
    """What is wrong with a configuration, without pydantic's lines and links."""
    if not isinstance(error, ValidationError):
        return str(error)
    return summary(
        [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
    )


def _read_state(path: Path) -> tuple[dict[str, Tensor], int]:
    """The student's tensors by OpenGait's names, and how many of teachers were dropped."""
    with path.open("rb") as file:
        try:
            with warnings.catch_warnings(action="ignore"):  # of torch, about other kinds of pickles
                content: Any = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a broken or hostile pickle can end in almost any exception
            raise OpenGaitError(
                f"{path} is not a checkpoint that can be read safely: {_in_a_sentence(error)}"
            ) from error
    model = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(model, Mapping) or not model:
        raise OpenGaitError(f"{path} holds no weights: a 'model' with a state_dict is expected")
    strangers = [str(key) for key, value in model.items() if not _is_weight(key, value)]
    if strangers:
        raise OpenGaitError(f"{path}: not plain named tensors: {summary(sorted(strangers))}")
    state: dict[str, Tensor] = {}
    dropped = 0
    for key, tensor in model.items():
        bare = key.removeprefix("module.")
        if bare.startswith(TEACHERS):
            dropped += 1
        elif bare in state:
            raise OpenGaitError(f"{path}: {bare!r} occurs with and without 'module.'")
        else:
            state[bare] = tensor
    return state, dropped


def _is_weight(key: object, value: object) -> bool:
    """A dense tensor whose file holds all of it: a view may claim more than there is."""
    return (
        isinstance(key, str)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and not value.is_meta  # a shape without numbers
        and value.untyped_storage().nbytes() >= value.nbytes
    )


def _translated(path: Path, network: GaitNetwork, state: State) -> dict[str, Tensor]:
    """`state` by our names, every tensor of it used and none wanting."""
    kind = FORMATS[network.config.architecture]
    places, known = kind.sources(network, state), kind.known(network)
    expected = {key for place in places.values() for key in place.keys}
    faults = [f"{key!r} is missing" for key in (expected | known.keys()) - state.keys()]
    faults += [f"{key!r} does not belong" for key in state.keys() - expected - known.keys()]
    faults += [
        f"{key!r} is not what the configuration says"
        for key, value in known.items()
        if key in state and not torch.equal(state[key].to(value.dtype), value)
    ]
    tensors = network.state_dict()
    ours: dict[str, Tensor] = {}
    for key, place in places.items():
        wanted = tensors[key]
        pieces = [state[theirs] for theirs in place.keys if theirs in state]
        found = [_fault_of(theirs, state, key, place.shape, wanted.dtype) for theirs in place.keys]
        faults += filter(None, found)
        if pieces and not any(found) and len(pieces) == len(place.keys):
            joined = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            kept = joined if place.keep is None else place.keep(joined)
            ours[key] = kept.reshape(wanted.shape).to(wanted.dtype)
    if faults:
        architecture = network.config.architecture
        raise OpenGaitError(f"{path} does not fit {architecture}: {summary(sorted(faults))}")
    return {**new_neck(network), **ours}


def _fault_of(
    theirs: str, state: State, ours: str, shape: tuple[int, ...], wanted: torch.dtype
) -> str | None:
    """What is wrong with a tensor that is there."""
    found = state.get(theirs)
    if found is None:
        return None
    if tuple(found.shape) != shape:
        return f"{theirs!r} has shape {list(found.shape)}, not {list(shape)}"
    if found.dtype not in TYPES[wanted]:
        return f"{theirs!r} is {found.dtype}, not {wanted}"
    if not found.to(wanted).isfinite().all():
        return f"{theirs!r} has numbers that are not finite"
    if ours.endswith("running_var") and bool((found < 0).any()):
        return f"{theirs!r} has negative variances"
    return None
