"""Packing a dataset, with the events of every long command."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Literal

from training.data import LeftOut, Progress, SourceError, pack_dataset
from training.data.partitions import partition_named
from training.data.sources import Format
from training.process.events import Packed, Progressed, Reporter, Skipped, Started
from training.process.processor import usable_cores

_REPORTS = 100  # over the whole source: nobody reads a line a sequence


def pack_with_events(
    source: Path,
    out: Path,
    format: Literal["auto"] | Format,
    reporter: Reporter,
    *,
    partition: str | None,
    silhouettes: str | None,
    pose_maps: str,
    workers: int | None,
) -> None:
    """Pack `source` into `out`, see `training.data.pack_dataset`.

    Args:
        source: folder or file.
        out: the pack to be.
        format: what the source is.
        reporter: told what happens.
        partition: who is trained and tested on: a file of the field's, or a name of a plain one.
        silhouettes: which files hold them, see `training.data.pack_dataset`.
        pose_maps: the same; the name of a folder is that folder.
        workers: see `training.data.pack_dataset`; one a core if None.

    Raises:
        training.data.SourceError: the source is wrong.
        training.data.PackError: `out` exists, or the partition is none.
    """
    folder = Path(pose_maps).is_dir()
    if os.sep in pose_maps and not folder:
        raise SourceError(f"{pose_maps}: no folder of pose maps")
    began = time.monotonic()
    started = False
    skipped = 0

    def report(progress: Progress) -> None:
        nonlocal started
        if not started:
            reporter.report(Started(total_steps=progress.total, step=0))
            started = True
        if progress.done % max(1, progress.total // _REPORTS) == 0:
            pace = (time.monotonic() - began) / progress.done
            reporter.report(
                Progressed(
                    progress.done,
                    progress.total,
                    round(pace * (progress.total - progress.done), 1),
                    {"skipped": skipped},
                )
            )

    def name(what: LeftOut) -> None:
        nonlocal skipped
        skipped += 1
        reporter.report(Skipped(what.name, what.reason))

    made = pack_dataset(
        source,
        out,
        format,
        partition=None if partition is None else partition_named(partition),
        silhouettes=silhouettes,
        pose_maps=Path(pose_maps) if folder else pose_maps,
        workers=workers or usable_cores(),
        progress=report,
        left_out=name,
    )
    found = {
        "subjects": len(made.subjects),
        "sequences": len(made),
        "frames": int(made.lengths.sum()),
        "skipped": skipped,
    }
    reporter.report(Packed(str(out), found))
