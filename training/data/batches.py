"""Batches: gathered as packed bits on the host, ahead of time, and unpacked on the device."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.data.options import Clip
from training.data.pack import POSE_MAPS, SIDE, Encoding, Pack, PackError
from training.data.sampling import Plan, Sampler


class Batch(NamedTuple):
    """What a training step works on. n = subjects x sequences of this rank, subject by subject.

    Attributes:
        step: the step that it was drawn for.
        silhouettes: uint8 [n, s, 64, 64] on the device, 0 to 255, not augmented.
        labels: int64 [n] on the device, indices into the pack's `subjects`.
        lengths: frames that count of each sequence when they differ, else None. The rest of the
            s frames is there for the shape; `join` leaves it out.
        sequences: int64 [n], indices into the pack's `sequences`.
        subjects: id of each sequence's subject.
        conditions: condition of each sequence.
        views: view of each sequence.
        pose_maps: uint8 [n, s, 2, 64, 64] on the device, limbs and joints, where wanted.
    """

    step: int
    silhouettes: Tensor
    labels: Tensor
    lengths: tuple[int, ...] | None
    sequences: npt.NDArray[np.int64]
    subjects: tuple[str, ...]
    conditions: tuple[str, ...]
    views: tuple[str, ...]
    pose_maps: Tensor | None = None


class _Gathered(NamedTuple):
    step: int
    plan: Plan
    rows: Tensor  # [n, s, bytes of a frame], on the host
    labels: Tensor  # [n], on the host
    pose: Tensor | None  # [n, s, bytes of a frame's pose maps], on the host


class BatchSource:
    """Batches of P subjects x K sequences, each a pure function of the arguments and the step."""

    def __init__(
        self,
        pack: Pack,
        *,
        subjects: int,
        sequences: int,
        clip: Clip,
        seed: int,
        same_scene: int = 1,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        prefetch: int = 2,
        pose: bool = False,
    ) -> None:
        """Prepare, see `training.data.sampling.Sampler` for what is drawn and what is refused.

        Args:
            pack: the dataset.
            subjects: P, over all ranks.
            sequences: K.
            clip: which frames of a sequence are taken.
            seed: of everything drawn.
            same_scene: subjects who are filmed in one scene.
            rank: of this process.
            world_size: number of processes.
            device: where the batches are wanted.
            prefetch: batches gathered ahead by `iterate`, at least 1.
            pose: pose maps as well.

        Raises:
            PackError: the pack has no pose maps.
            SamplingError: the pack cannot give such batches.
            ValueError: `prefetch` is less than 1.
        """
        if prefetch < 1:
            raise ValueError(f"prefetch must be at least 1, not {prefetch}")
        self._sampler = Sampler(
            pack,
            subjects=subjects,
            sequences=sequences,
            clip=clip,
            seed=seed,
            same_scene=same_scene,
            rank=rank,
            world_size=world_size,
        )
        self._pack = pack
        if pose and not pack.has_pose:
            raise PackError(f"{pack.path} has no pose maps")
        self._pose = pose
        self._device = torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            # Fixed here: the current device belongs to a thread, and another one gathers ahead.
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._prefetch = prefetch

    def batch(self, step: int) -> Batch:
        """The batch of a step, made now."""
        return self._deliver(self._gather(step))

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of steps `start` to `stop` (without end when None), gathered ahead.

        A thread gathers while the device computes, at most `prefetch` batches ahead. It ends with
        the iterator; what it raises is raised here.
        """
        ahead: queue.Queue[_Gathered | BaseException | None] = queue.Queue(self._prefetch)
        stopped = threading.Event()

        def gather() -> None:
            step = start
            try:
                if self._device.type == "cuda":  # else pinning would occupy the first device
                    torch.cuda.set_device(self._device)
                while not stopped.is_set() and (stop is None or step < stop):
                    ahead.put(self._gather(step))
                    step += 1
                ahead.put(None)
            except BaseException as error:  # handed to the consumer, who must not wait for ever
                ahead.put(error)

        thread = threading.Thread(target=gather, name="batch-prefetch", daemon=True)
        thread.start()
        try:
            while (item := ahead.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield self._deliver(item)
        finally:
            stopped.set()
            while thread.is_alive():  # it may be waiting for room
                with contextlib.suppress(queue.Empty):
                    ahead.get(timeout=0.05)

    def _gather(self, step: int) -> _Gathered:
        plan = self._sampler.plan(step)
        pack, sequences = self._pack, plan.sequences
        where = pack.first_frames[sequences][:, None] + plan.frames.indices
        rows = torch.from_numpy(pack.rows(where))
        labels = torch.from_numpy(pack.labels[sequences])
        pose = torch.from_numpy(pack.pose_rows(where)) if self._pose else None
        if self._device.type == "cuda":  # so that the copy does not make the host wait
            rows, labels = rows.pin_memory(), labels.pin_memory()
            pose = pose if pose is None else pose.pin_memory()
        return _Gathered(step, plan, rows, labels, pose)

    def _deliver(self, gathered: _Gathered) -> Batch:
        rows = gathered.rows.to(self._device, non_blocking=True)
        sequences, lengths = gathered.plan.sequences, gathered.plan.frames.lengths
        records = [self._pack.sequences[i] for i in sequences]
        pose = gathered.pose
        if pose is not None:
            pose = pose.to(self._device, non_blocking=True)
            pose = pose.reshape(*pose.shape[:2], POSE_MAPS, SIDE, SIDE)
        return Batch(
            step=gathered.step,
            silhouettes=unpack(rows, self._pack.encoding),
            labels=gathered.labels.to(self._device, non_blocking=True),
            lengths=None if lengths is None else tuple(lengths.tolist()),
            sequences=sequences,
            subjects=tuple(record.subject for record in records),
            conditions=tuple(record.condition for record in records),
            views=tuple(record.view for record in records),
            pose_maps=pose,
        )


def unpack(rows: Tensor, encoding: Encoding) -> Tensor:
    """Rows of a pack, uint8 [..., 512 or 4096], as silhouettes uint8 [..., 64, 64] on their device.

    Equal to `training.data.pack.decode_frames`. Each byte looks up its eight pixels as one word:
    on a CPU a sixth of the time of shifting bits, and the same bits everywhere.
    """
    pixels = rows
    if encoding == "binary":
        words = torch.index_select(_eight_pixels(rows.device), 0, rows.reshape(-1).int())
        pixels = words.view(torch.uint8)
    return pixels.reshape(*rows.shape[:-1], SIDE, SIDE)


@functools.cache
def _eight_pixels(device: torch.device) -> Tensor:
    """int64 [256]: for each byte its eight pixels, as the eight bytes of one word."""
    every_byte = np.arange(256, dtype=np.uint8)[:, None]
    pixels = np.unpackbits(every_byte, axis=1) * np.uint8(255)
    return torch.from_numpy(pixels.view(np.int64).reshape(256)).to(device)


def join(views: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
    """Lay sequences of different lengths end to end.

    Args:
        views: [n, s, …].
        lengths: frames that count of each; None: all do.

    Returns:
        [sum(lengths), …], or `views` as they are when `lengths` is None.
    """
    if lengths is None:
        return views
    return torch.cat([view[:length] for view, length in zip(views, lengths, strict=True)])
