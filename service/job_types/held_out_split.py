"""The held-out split: subjects that a distillation may not learn, to compare its student on.

A fifth of all subject ids, always the same ones: a hash of the id decides. So no distillation that
compares ever trains on them, however often a gallery is distilled and whichever model teaches.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.jobs.tables import JobRow
from service.serving.model_files import ModelRow

_ONE_IN = 5


def is_held_out(subject_id: str) -> bool:
    """Whether this subject is kept for comparisons."""
    digest = hashlib.sha256(b"held-out:" + subject_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _ONE_IN == 0


def partition_of(export: Path) -> str:
    """The partition of an exported gallery, in the field's format (JSON).

    Raises:
        ValueError: not a gallery export.
    """
    try:
        with zipfile.ZipFile(export) as file:
            lines = file.read("sequences.jsonl").splitlines()
        subjects = sorted({json.loads(line)["subject_id"] for line in lines if line.strip()})
    except (zipfile.BadZipFile, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{export.name} is not a gallery export: {error}") from error
    held_out = [subject for subject in subjects if is_held_out(subject)]
    learnt = [subject for subject in subjects if not is_held_out(subject)]
    return json.dumps({"TRAIN_SET": learnt, "TEST_SET": held_out})


def trained_on(pack: Path) -> frozenset[str]:
    """The subjects of a pack that a training learns: its `TRAIN_SET`, or all.

    Raises:
        ValueError: not a pack.
    """
    try:
        partition = pack / "partition.json"
        if partition.exists():
            return frozenset(json.loads(partition.read_bytes())["TRAIN_SET"])
        index = json.loads((pack / "index.json").read_bytes())
        return frozenset(record["subject"] for record in index["sequences"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{pack.name} is not a pack: {error}") from error


def trained_on_all(session: Session, models: Iterable[str], gallery: str) -> str | None:
    """A model among these and their ancestors that was trained on a whole gallery.

    Returns None without one. The ancestors of an uploaded model are not known.
    """
    waiting, seen = list(models), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        request = session.scalar(
            select(JobRow.request)
            .join(ModelRow, ModelRow.job_id == JobRow.id)
            .where(ModelRow.name == name)
        )
        if request is None:
            continue
        held_out = request.get("activate") == "if_better"
        if request.get("dataset") == {"gallery": gallery} and not held_out:
            return name
        waiting += [*request.get("teachers", ()), *filter(None, [request.get("student")])]
    return None
