"""The training loop of the field's code, to compare ours with.

Walks are loaded and augmented frame by frame with OpenCV in worker processes; the network computes
in float32 and torch's own memory layout; nothing is compiled or fused.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from models.networks.network import GaitNetwork
from training.data import Augmentation, OrderedClip
from training.objective.objective import Objective
from training.objective.student import StudentOutput
from training.recipe import SGD, Recipe

Frames = npt.NDArray[np.float32]


def pick(frames: npt.NDArray[np.uint8], clip: OrderedClip, rng: np.random.Generator) -> Frames:
    """Frames [s, 64, 64] of a walk, in order, drawn from a window."""
    window = clip.frames + clip.skip
    start = rng.integers(0, len(frames) - window + 1)
    kept = np.sort(rng.choice(window, clip.frames, replace=False)) + start
    picked: Frames = frames[kept].astype(np.float32)
    return picked


def augment_frames(frames: Frames, augmentation: Augmentation, rng: np.random.Generator) -> Frames:
    """Vary the published way, frame by frame: [s, 64, 64], 0 to 255, to [s, 64, 44] in [0, 1]."""
    if rng.random() < augmentation.perspective:
        insets = rng.integers(0, augmentation.perspective_columns, 4)
        corners = np.array([[10, 0], [54, 0], [54, 64], [10, 64]], np.float32)
        shown = corners.copy()
        shown[:, 0] += insets * np.array([1, -1, -1, 1])
        matrix = cv2.getPerspectiveTransform(shown, corners)
        frames = np.stack([cv2.warpPerspective(frame, matrix, (64, 64)) for frame in frames])
    frames = frames[..., 10:54] / np.float32(255)
    if rng.random() < augmentation.flip:
        frames = frames[..., ::-1]
    if rng.random() < augmentation.rotate:
        angle = rng.uniform(-augmentation.rotate_degrees, augmentation.rotate_degrees)
        turn = cv2.getRotationMatrix2D((22, 32), angle, 1)
        frames = np.stack(
            [cv2.warpAffine(np.ascontiguousarray(frame), turn, (44, 64)) for frame in frames]
        )
    return np.ascontiguousarray(frames)


class Walks(Dataset[tuple[Tensor, int]]):
    """Pickled walks SUBJECT/CONDITION/VIEW/*.pkl of a folder, varied anew on every reading."""

    def __init__(self, folder: Path, clip: OrderedClip, augmentation: Augmentation) -> None:
        self.files = sorted(folder.glob("*/*/*/*.pkl"))
        subjects = sorted({file.parts[-4] for file in self.files})
        self.labels = np.array([subjects.index(file.parts[-4]) for file in self.files])
        self._clip = clip
        self._augmentation = augmentation

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Views float32 [s, 64, 44] and the subject's number."""
        # From torch's generator, which each worker seeds differently.
        rng = np.random.default_rng(int(torch.randint(2**31, ())))
        walk = pickle.loads(self.files[index].read_bytes())  # noqa: S301  our own
        frames = augment_frames(pick(walk, self._clip, rng), self._augmentation, rng)
        return torch.from_numpy(frames), int(self.labels[index])


class Batches(Sampler[list[int]]):
    """P subjects with K walks each, without end."""

    def __init__(self, labels: npt.NDArray[np.int64], subjects: int, sequences: int) -> None:
        self._labels = labels
        self._subjects = subjects
        self._sequences = sequences

    def __iter__(self) -> Iterator[list[int]]:
        """Indices of walks, subject by subject."""
        rng = np.random.default_rng(0)
        walks = [np.flatnonzero(self._labels == subject) for subject in np.unique(self._labels)]
        while True:
            yield [
                int(walk)
                for subject in rng.choice(len(walks), self._subjects, replace=False)
                for walk in rng.choice(walks[subject], self._sequences, replace=False)
            ]


def train(
    recipe: Recipe,
    folder: Path,
    network: GaitNetwork,
    device: torch.device,
    *,
    workers: int,
    half: bool,
) -> Iterator[float]:
    """Train without end; each item is the seconds of a step that went into the network.

    Args:
        recipe: whose batch, clip, augmentation, losses and optimiser are used; no teachers.
        folder: of pickled walks.
        network: what is trained, in torch's own memory layout.
        device: of the network.
        workers: processes that load and augment.
        half: compute in bf16 under autocast.

    Raises:
        ValueError: the recipe asks for what the field's code has not.
    """
    clip, settings = recipe.data.clip, recipe.optimiser
    if not isinstance(clip, OrderedClip) or not isinstance(settings, SGD) or recipe.teachers:
        raise ValueError("the plain loop trains without teachers, on ordered clips, with SGD")
    walks = Walks(folder, clip, recipe.data.augmentation)
    loader = DataLoader(
        walks,
        batch_sampler=Batches(walks.labels, recipe.batch.subjects, recipe.batch.sequences),
        num_workers=workers,
        worker_init_fn=_use_one_core,
        pin_memory=device.type == "cuda",
    )
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    objective = Objective(recipe, lambda rows: rows)
    network.train()
    for views, labels in loader:
        began = time.perf_counter()
        views, labels = views.to(device), labels.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = network(views)
        output_of_student = StudentOutput(output.embeddings.float(), output.logits.float(), ())
        loss = objective(output_of_student, labels, (), step=0)
        optimiser.zero_grad()
        loss.total.backward()
        if recipe.clip_gradient is not None:
            torch.nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_gradient)
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - began


def _use_one_core(_worker: int) -> None:
    cv2.setNumThreads(0)
