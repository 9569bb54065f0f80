"""Enrols a folder of walks over HTTP; can be repeated after any failure.

```
FOLDER/SUBJECT/WALK.zip               any format that can be uploaded, any ending
FOLDER/SUBJECT/WALK/*.png             or a folder with an image for each frame
FOLDER/SUBJECT/WALK.json              optional: the walk's metadata, a JSON object of scalars
FOLDER/SUBJECT/CONDITION/VIEW.zip     the same, one level deeper:
FOLDER/SUBJECT/CONDITION/VIEW/*.png   condition and view become metadata
```
Without WALK.json a name VIEW_CONDITION gives `view` and `condition`, as in `python -m training
pack`. Names that start with a dot are ignored.

Walks of a person that follow each other and have the same metadata go in one request, a few of
them; if it is refused, each goes on its own.

Nothing is remembered here. A request's Idempotency-Key is a hash of what is sent, so the service
answers a second request for the same walks with what the first one enrolled. Nothing is enrolled
twice if this process or the service is killed, or if two processes enrol the same folder at once.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from service.client import (
    BadRequest,
    Client,
    Conflict,
    Invalid,
    Refused,
    TooLarge,
    UnsupportedMedia,
)

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
_SUBJECT = re.compile(r"[A-Za-z0-9._:@-]{1,128}")
_VIEW_CONDITION = re.compile(r"(?P<view>[^_.][^_]*)_(?P<condition>[^_.]+)")
_COMPRESSED = (".gz", ".bz2", ".xz")
_LARGEST_SIDE_FILE = 64 * 2**10
_MOST_TOGETHER = 8  # walks of a request
_MOST_BYTES = 8 * 2**20  # of them
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # of a zip's times: the same frames make the same file
_REFUSALS = (BadRequest, Conflict, Invalid, TooLarge, UnsupportedMedia)
"""Errors of one walk; any other would be raised for every walk, and ends the enrolment."""


class UnusableFolder(ValueError):
    """The folder cannot be enrolled; the text begins with the path at fault."""


class UnusableWalk(ValueError):
    """A walk cannot be sent as it is."""


@dataclass(frozen=True, slots=True)
class WalkOnDisk:
    """A walk: a file, or a folder of frames.

    Attributes:
        subject_id: whose walk it is.
        path: of the file or folder.
        condition: name of the CONDITION folder it is in; the walk's own name is then its view.
    """

    subject_id: str
    path: Path
    condition: str | None = None

    @property
    def name(self) -> str:
        """The walk's name without the endings of its format."""
        if self.path.is_dir():
            return self.path.name
        stem = Path(self.path.name)
        return stem.with_suffix("").stem if stem.suffix in _COMPRESSED else stem.stem


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result for one walk.

    Attributes:
        walk: the walk, or the folder of a subject that was skipped.
        sequence_id: of the enrolled sequence; None if it was refused.
        known: whether it had been enrolled before.
        refused: why it was refused, else None.
    """

    walk: WalkOnDisk
    sequence_id: str | None = None
    known: bool = False
    refused: str | None = None


class Found(NamedTuple):
    """The walks of a folder, and its subfolders that were skipped with the reason."""

    walks: list[WalkOnDisk]
    skipped: list[Outcome]


def walks_in(folder: Path) -> Found:
    """List the walks of a folder by name; skips subfolders whose name is no subject id.

    Raises:
        UnusableFolder: it has no walks, or a side file has no walk: its walk would be enrolled
            without the metadata.
    """
    walks: list[WalkOnDisk] = []
    skipped: list[Outcome] = []
    for person in filter(Path.is_dir, _visible(folder)):
        if _SUBJECT.fullmatch(person.name):
            walks += _walks_of(person.name, person)
        else:
            reason = "the folder's name is not 1 to 128 of A-Z a-z 0-9 . _ : @ -"
            skipped.append(Outcome(WalkOnDisk(person.name, person), refused=reason))
    if not walks and not skipped:
        raise UnusableFolder(
            f"{folder}: no walks found, which lie in FOLDER/SUBJECT/WALK.zip or "
            "FOLDER/SUBJECT/CONDITION/VIEW.zip"
        )
    return Found(walks, skipped)


def _walks_of(subject_id: str, folder: Path, condition: str | None = None) -> list[WalkOnDisk]:
    found = _visible(folder)
    own = [WalkOnDisk(subject_id, path, condition) for path in found if path.suffix != ".json"]
    names = {walk.name for walk in own}
    for path in found:
        if path.suffix == ".json" and path.stem not in names:
            raise UnusableFolder(f"{path}: there is no walk of that name beside it")
    if condition is not None:
        return own
    walks: list[WalkOnDisk] = []
    for walk in own:
        if _is_condition(walk.path):
            walks += _walks_of(subject_id, walk.path, condition=walk.path.name)
        else:
            walks.append(walk)
    return walks


def _is_condition(path: Path) -> bool:
    """Whether this is a CONDITION folder: one that holds something, but no frames."""
    if not path.is_dir():
        return False
    inside = _visible(path)
    return bool(inside) and not any(item.suffix.lower() in _IMAGES for item in inside)


def enrol_all(
    client: Client,
    walks: list[WalkOnDisk],
    gallery: str,
    *,
    in_flight: int,
    accept_conflict: bool = False,
) -> Iterator[Outcome]:
    """Enrol walks, by `in_flight` requests at once, and yield the outcome of each, in order.

    Raises:
        ClientError: what would fail for all that follow, such as a missing gallery or a service
            that does not come back. Walks in flight may be enrolled; repeat the call.
    """
    waiting = _together(walks)
    under_way: deque[Future[list[Outcome]]] = deque()
    enrol = partial(_enrol, client, gallery=gallery, accept_conflict=accept_conflict)
    with ThreadPoolExecutor(in_flight, "enrol") as pool:
        try:
            # Twice as many: while the first is awaited, those behind it keep the threads busy.
            for group in islice(waiting, 2 * in_flight):
                under_way.append(pool.submit(enrol, group))
            while under_way:
                outcomes = under_way.popleft().result()
                for group in islice(waiting, 1):
                    under_way.append(pool.submit(enrol, group))
                yield from outcomes
        finally:
            for future in under_way:
                future.cancel()


def metadata_of(walk: WalkOnDisk) -> dict[str, Any]:
    """Return a walk's metadata: of its side file, else its names; raises `UnusableWalk`."""
    side = walk.path.with_name(f"{walk.name}.json")
    if side.is_file():
        if side.stat().st_size > _LARGEST_SIDE_FILE:
            raise UnusableWalk(f"{side.name} is larger than any metadata")
        try:
            value = json.loads(side.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UnusableWalk(f"{side.name} is not JSON") from error
        if not isinstance(value, dict):
            raise UnusableWalk(f"{side.name} is not a JSON object")
        return value
    if walk.condition is not None:
        return {"view": walk.name, "condition": walk.condition}
    name = _VIEW_CONDITION.fullmatch(walk.name)
    return {} if name is None else name.groupdict()


def content_of(walk: WalkOnDisk) -> bytes:
    """Return what is uploaded: the file, or a zip of the frames, equal for equal frames.

    Raises:
        UnusableWalk: the folder has no images, or a folder in it.
        OSError: it cannot be read.
    """
    if not walk.path.is_dir():
        return walk.path.read_bytes()
    found = _visible(walk.path)
    frames = [path for path in found if path.suffix.lower() in _IMAGES]
    if not frames:
        raise UnusableWalk("there are no images in it")
    if any(path.is_dir() for path in found):
        raise UnusableWalk("there is a folder among the frames")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for path in frames:
            target.writestr(zipfile.ZipInfo(path.name, _EARLIEST), path.read_bytes())
    return archive.getvalue()


def _together(walks: Iterable[WalkOnDisk]) -> Iterator[list[WalkOnDisk]]:
    """Walks that may go in one request, a few at a time."""
    for _, group in groupby(walks, lambda walk: (walk.subject_id, _said_of(walk))):
        together: list[WalkOnDisk] = []
        size = 0
        for walk in group:
            own = _size_of(walk)
            if together and (len(together) == _MOST_TOGETHER or size + own > _MOST_BYTES):
                yield together
                together, size = [], 0
            together.append(walk)
            size += own
        yield together


def _said_of(walk: WalkOnDisk) -> str | None:
    """A walk's metadata; None if it has none that can be read."""
    try:
        return json.dumps(metadata_of(walk))
    except (UnusableWalk, OSError):
        return None


def _size_of(walk: WalkOnDisk) -> int:
    """Bytes of a walk on the disk; 0 if it cannot be read."""
    files = _visible(walk.path) if walk.path.is_dir() else [walk.path]
    try:
        return sum(path.stat().st_size for path in files)
    except OSError:
        return 0


def _enrol(
    client: Client, walks: list[WalkOnDisk], *, gallery: str, accept_conflict: bool
) -> list[Outcome]:
    """Enrol walks of one person with the same metadata: together, or each on its own."""
    enrol = partial(_enrol, client, gallery=gallery, accept_conflict=accept_conflict)
    try:
        metadata = metadata_of(walks[0])
        contents = [content_of(walk) for walk in walks]
        return _send(
            client, walks, contents, metadata, gallery=gallery, accept_conflict=accept_conflict
        )
    except (UnusableWalk, OSError, *_REFUSALS) as error:
        if len(walks) == 1:
            reason = _reason(error) if isinstance(error, Refused) else str(error)
            return [Outcome(walks[0], refused=reason)]
    return [outcome for walk in walks for outcome in enrol([walk])]


def _send(
    client: Client,
    walks: Sequence[WalkOnDisk],
    contents: Sequence[bytes],
    metadata: dict[str, Any],
    *,
    gallery: str,
    accept_conflict: bool,
) -> list[Outcome]:
    """Send walks of one person in one request; raises what the client raises."""
    subject_id = walks[0].subject_id
    enrolment = client.enroll(
        subject_id,
        # The key goes with the whole request, so the files' own names may not be in it.
        [("walk", content) for content in contents],
        gallery=gallery,
        metadata=metadata,
        accept_conflict=accept_conflict,
        idempotency_key=_key(gallery, subject_id, metadata, contents, accept_conflict),
    )
    return [
        Outcome(walk, sequence.sequence_id, enrolment.replayed or sequence.already_enrolled)
        for walk, sequence in zip(walks, enrolment.sequences, strict=True)
    ]


def _key(
    gallery: str,
    subject_id: str,
    metadata: dict[str, Any],
    contents: Sequence[bytes],
    accept_conflict: bool,
) -> str:
    described = json.dumps([gallery, subject_id, metadata, accept_conflict]).encode()
    digests = b"".join(hashlib.sha256(content).digest() for content in contents)
    return f"walk-{hashlib.sha256(described + digests).hexdigest()}"


def _reason(error: Refused) -> str:
    codes = ", ".join(dict.fromkeys(fault.reason for fault in error.errors))
    detail = error.detail.removeprefix("sequence[0] walk: ")
    return f"{detail} ({codes})" if codes and codes != detail else detail


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
