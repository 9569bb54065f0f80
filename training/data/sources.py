"""What people have on disk: which walks a source holds, and how each is read.

What is no walk is left out by name, and the rest is read: datasets carry stray files.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from models.files.gallery_file import BrokenGalleryFile
from models.silhouettes import DecodeLimits, decode, normalise, prepare
from training.data.gallery_export import GalleryExport, is_gallery_export
from training.data.pack import POSE_MAPS, SIDE
from training.data.pickles import UnsafePickle, read_pickled_array

Format = Literal["pickles", "images", "walks", "gallery", "ou-mvlp"]
RAW: Final[frozenset[Format]] = frozenset({"images", "walks", "ou-mvlp"})
"""Formats of frames that are prepared, which is what takes time."""

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"})
_WALK = re.compile(r"(?P<view>[^_.][^_]*)_(?P<condition>[^_.]+)\.\w+(\.gz)?")
_OU_MVLP = re.compile(r"Silhouette_(?P<view>\d+)-(?P<walk>\d+)")
_NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control, or not in UTF-8
_NARROW = 44  # columns of 64 rows that some keep
_ENERGY_IMAGE = "gei.png"  # GREW and CASIA-B come with means over walks beside the frames
_STRAY = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini"})
_LARGEST_PICKLE = 2**30
# A person packs a dataset of their own: generous, but a broken file must still not fill the memory.
_LIMITS = DecodeLimits(
    max_frames=10_000, max_side=4096, max_decoded_bytes=4 * 2**30, max_seconds=600.0
)

Silhouettes = npt.NDArray[np.uint8]


class SourceError(ValueError):
    """A source that cannot be packed; the text begins with the file at fault."""


class LeftOut(NamedTuple):
    """Something in a source that does not come into the pack.

    Attributes:
        name: of a file or folder; of files that lie beside every walk, their kind (`*-rgbs.pkl`:
            the walk's view is a star, digits are `#`).
        reason: why it is left out.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Walk:
    """A sequence in a source, not read yet. `read` may raise any error of its format.

    `read_pose_maps`, if there are any, gives uint8 [s, 2, 64, 64], limbs and joints, of the frames
    that `read` gives.
    """

    subject: str
    condition: str
    view: str
    name: str
    read: Callable[[], Silhouettes]
    metadata: dict[str, Any] = field(default_factory=dict)
    read_pose_maps: Callable[[], Silhouettes] | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A dataset on disk.

    Attributes:
        path: folder or file.
        pattern: which file of a folder holds silhouettes (pickles), or which are frames (images);
            None leaves it to their names.
        left_out: told what does not come into the pack.
        pose_maps: which pickle of a folder holds pose maps, a pattern of names; or a folder that
            holds them as `path` holds silhouettes; "auto": those with `heatmap` in their names, if
            there are any; or "none".
    """

    path: Path
    pattern: str | None
    left_out: Callable[[LeftOut], None]
    pose_maps: str | Path = "auto"

    def detect(self) -> Format:
        """What the source is, by its names.

        Raises:
            SourceError: none of the formats.
        """
        if self.path.is_file():
            if is_gallery_export(self.path):
                return "gallery"
            raise SourceError(f"{self.path}: a file, but not a gallery export")
        if any(_OU_MVLP.fullmatch(path.name) for path in self.path.iterdir()):
            return "ou-mvlp"
        for path in self.path.glob("*/*/*/*"):
            if any(_is_stray(name) for name in path.relative_to(self.path).parts):
                continue
            if path.suffix == ".pkl":
                return "pickles"
            if path.suffix.lower() in _IMAGES:
                return "images"
        if any(_WALK.fullmatch(path.name) for path in self.path.glob("*/*.*")):
            return "walks"
        raise SourceError(
            f"{self.path}: none of SUBJECT/CONDITION/VIEW/*.pkl, SUBJECT/CONDITION/VIEW/*.png, "
            "SUBJECT/VIEW_CONDITION.zip, Silhouette_VIEW-WALK/SUBJECT/*.png (OU-MVLP) or a gallery "
            "export"
        )

    def walks(self, format: Format, stack: ExitStack) -> list[Walk]:
        """What there is to read, in the order of subject, condition and view.

        Args:
            format: what the source is.
            stack: holds files that stay open while walks are read.

        Raises:
            SourceError: not a folder, or several pickles of a folder might be the silhouettes.
        """
        if format == "gallery":
            return list(self._gallery(stack))
        if not self.path.is_dir():
            raise SourceError(f"{self.path}: not a folder")
        if format == "walks":
            return list(self._uploads())
        beside: Counter[LeftOut] = Counter()
        listed = {"pickles": self._pickles, "images": self._images, "ou-mvlp": self._ou_mvlp}[
            format
        ]
        walks = list(listed(beside))
        for kind, number in sorted(beside.items()):
            files = "1 file" if number == 1 else f"{number:,} files"
            self.left_out(LeftOut(kind.name, f"{kind.reason} ({files})"))
        return walks

    def _entries(self, folder: Path, of: str) -> Iterator[Path]:
        """Folders in a folder, in the order of their names; all else is left out."""
        found = False
        for path in sorted(folder.iterdir()):
            found = True
            if _is_stray(path.name):
                self.left_out(LeftOut(str(path), "hidden, or left by another program"))
            elif not path.is_dir():
                self.left_out(LeftOut(str(path), f"a file where folders of {of} are"))
            elif _NOT_TEXT.search(path.name):
                self.left_out(LeftOut(str(path), "its name is no plain text"))
            else:
                yield path
        if not found:
            self.left_out(LeftOut(str(folder), "an empty folder"))

    def _folders(self, root: Path) -> Iterator[tuple[str, str, str, Path]]:
        """Subject, condition, view and folder."""
        for subject in self._entries(root, "subjects"):
            for condition in self._entries(subject, "conditions"):
                for view in self._entries(condition, "views"):
                    yield subject.name, condition.name, view.name, view

    def _pickles(self, beside: Counter[LeftOut]) -> Iterator[Walk]:
        elsewhere = self._poses_in(self.pose_maps) if isinstance(self.pose_maps, Path) else None
        walks: list[tuple[Walk, Path | None]] = []
        for subject, condition, view, folder in self._folders(self.path):
            files = sorted(folder.iterdir())
            pickles = _pickles_among(files)
            poses = [file for file in pickles if fnmatchcase(file.name.lower(), self._pose_names)]
            others = [file for file in pickles if file not in poses]
            if not others:
                reason = "no .pkl in it" if files else "an empty folder"
                reason = "no silhouettes beside the pose maps in it" if poses else reason
                self.left_out(LeftOut(str(folder), reason))
                continue
            chosen = self._silhouettes_among(others, view)
            if chosen is None:
                self.left_out(LeftOut(str(folder), f"no .pkl in it is named {self.pattern}"))
                continue
            if elsewhere is not None:
                pose = elsewhere.pop((subject, condition, view), None)
            elif len(poses) > 1 and self.pose_maps != "none":
                names = ", ".join(file.name for file in poses)
                raise SourceError(
                    f"{folder}: which .pkl holds the pose maps? {names}; "
                    "say so with --pose-maps PATTERN"
                )
            else:
                pose = poses[0] if poses and self.pose_maps != "none" else None
            instead = f"{_kind(chosen, view)} beside it is read"
            for other in files:
                if other not in (chosen, pose):
                    beside[LeftOut(_kind(other, view), instead)] += 1
            read = partial(_read_pickle, chosen)
            walks.append((Walk(subject, condition, view, str(chosen), read), pose))
        for unused in (elsewhere or {}).values():
            self.left_out(LeftOut(str(unused), f"pose maps of no walk in {self.path}"))
        yield from self._paired(walks)

    def _paired(self, walks: Sequence[tuple[Walk, Path | None]]) -> Iterator[Walk]:
        """With pose maps all of them, or none of them."""
        if isinstance(self.pose_maps, Path):
            why = f"no pose maps of it in {self.pose_maps}"
        elif self.pose_maps not in ("auto", "none"):
            why = f"no .pkl beside it is named {self.pose_maps}"
        elif any(pose for _, pose in walks):
            why = "no pose maps, which other walks have; --pose-maps none packs all without"
        else:
            yield from (walk for walk, _ in walks)
            return
        for walk, pose in walks:
            if pose is None:
                self.left_out(LeftOut(walk.name, why))
            else:
                yield replace(walk, read_pose_maps=partial(_read_pose_pickle, pose))

    @property
    def _pose_names(self) -> str:
        """A pattern of small letters of names of pose maps that lie beside silhouettes."""
        if isinstance(self.pose_maps, Path) or self.pose_maps in ("auto", "none"):
            return "*heatmap*"
        return self.pose_maps.lower()

    def _poses_in(self, root: Path) -> dict[tuple[str, str, str], Path]:
        """The pickle of pose maps of each walk, in a folder of their own."""
        found: dict[tuple[str, str, str], Path] = {}
        for subject, condition, view, folder in self._folders(root):
            pickles = _pickles_among(sorted(folder.iterdir()))
            if len(pickles) == 1:
                found[subject, condition, view] = pickles[0]
            else:
                number = "several .pkl" if pickles else "no .pkl"
                self.left_out(LeftOut(str(folder), f"{number} in it, where one of pose maps is"))
        return found

    def _silhouettes_among(self, files: Sequence[Path], view: str) -> Path | None:
        """Silhouettes lie beside colours, poses, depths, and themselves before they were aligned.

        Returns None if a pattern is given and fits none of the files.
        """
        if self.pattern is not None:
            named = [file for file in files if fnmatchcase(file.name, self.pattern)]
            if not named:
                return None
        elif len(files) == 1:
            named = list(files)
        else:
            named = [file for file in files if file.stem == view] or [
                file for file in files if "sil" in file.stem.lower()
            ]
            for better in (_from_camera, _aligned, _of_all_frames):  # SUSTech1K has all of these
                named = [file for file in named if better(file)] or named
        if len(named) != 1:
            names = ", ".join(file.name for file in named or files)
            raise SourceError(
                f"{files[0].parent}: which .pkl holds the silhouettes? {names}; "
                "say so with --silhouettes PATTERN"
            )
        return named[0]

    def _images(self, beside: Counter[LeftOut]) -> Iterator[Walk]:
        for subject, condition, view, folder in self._folders(self.path):
            frames = self._frames_of(folder, view, beside)
            if frames:
                yield Walk(subject, condition, view, str(folder), partial(_read_images, frames))

    def _frames_of(self, folder: Path, view: str, beside: Counter[LeftOut]) -> list[Path]:
        files = sorted(folder.iterdir())
        frames: list[Path] = []
        for file in files:
            if file.suffix.lower() not in _IMAGES or _is_stray(file.name):
                beside[LeftOut(_kind(file, view), "not an image")] += 1
            elif file.name.endswith(_ENERGY_IMAGE):
                beside[LeftOut(_kind(file, view), "a mean over frames")] += 1
            elif self.pattern is not None and not fnmatchcase(file.name, self.pattern):
                beside[LeftOut(_kind(file, view), f"not named {self.pattern}")] += 1
            else:
                frames.append(file)
        if not frames:
            reason = "no image of a frame in it" if files else "an empty folder"
            self.left_out(LeftOut(str(folder), reason))
        return frames

    def _uploads(self) -> Iterator[Walk]:
        for subject in self._entries(self.path, "subjects"):
            files = sorted(subject.iterdir())
            if not files:
                self.left_out(LeftOut(str(subject), "an empty folder"))
            for path in files:
                name = _WALK.fullmatch(path.name)
                if _is_stray(path.name):
                    self.left_out(LeftOut(str(path), "hidden, or left by another program"))
                elif name is None:
                    self.left_out(LeftOut(str(path), "not named VIEW_CONDITION, as 090_1.zip"))
                elif not path.is_file() or _NOT_TEXT.search(path.name):
                    self.left_out(LeftOut(str(path), "not a file with a plain name"))
                else:
                    read = partial(_read_upload, path)
                    yield Walk(subject.name, name["condition"], name["view"], str(path), read)

    def _ou_mvlp(self, beside: Counter[LeftOut]) -> Iterator[Walk]:
        walks: list[Walk] = []
        for place in self._entries(self.path, "views and walks"):
            name = _OU_MVLP.fullmatch(place.name)
            if name is None:
                self.left_out(LeftOut(str(place), "not named Silhouette_VIEW-WALK"))
                continue
            for folder in self._entries(place, "subjects"):
                frames = self._frames_of(folder, name["view"], beside)
                if frames:
                    read = partial(_read_as_the_field, frames)
                    walks.append(Walk(folder.name, name["walk"], name["view"], str(folder), read))
        yield from sorted(walks, key=lambda walk: (walk.subject, walk.condition, walk.view))

    def _gallery(self, stack: ExitStack) -> Iterator[Walk]:
        try:
            export = stack.enter_context(GalleryExport(self.path))
            for entry in export.sequences():
                yield Walk(
                    entry.subject_id,
                    str(entry.metadata.get("condition") or "unknown"),
                    str(entry.metadata.get("view") or "unknown"),
                    f"{self.path}: sequence {entry.sequence_id}",
                    partial(export.silhouettes, entry.sequence_id),
                    {**entry.metadata, "sequence_id": entry.sequence_id},
                )
        except BrokenGalleryFile as error:
            raise SourceError(f"{self.path}: {error}") from error


def _is_stray(name: str) -> bool:
    return name.startswith(".") or name in _STRAY


def _kind(file: Path, view: str) -> str:
    return re.sub(r"\d+", "#", file.name.replace(view, "*"))


def _from_camera(file: Path) -> bool:
    return not re.search("lidar|pcd", file.stem.lower())


def _aligned(file: Path) -> bool:
    return "aligned" in file.stem.lower()


def _of_all_frames(file: Path) -> bool:
    return "sync" not in file.stem.lower()


def _pickles_among(files: Iterable[Path]) -> list[Path]:
    return [file for file in files if file.suffix == ".pkl" and not _is_stray(file.name)]


def _read_pickle(path: Path) -> Silhouettes:
    array = _unpickled(path)
    if array.ndim == 4 and array.shape[1] == POSE_MAPS:
        raise SourceError("pose maps, not silhouettes")
    if array.ndim != 3:
        raise _unexpected(array)
    if array.max(initial=0) == 1:  # stored as 0 and 1
        array = array * np.uint8(255)
    return _square(array)


def _read_pose_pickle(path: Path) -> Silhouettes:
    try:
        array = _unpickled(path)
        if array.ndim != 4 or array.shape[1] != POSE_MAPS:
            raise SourceError(
                f"[frames, {POSE_MAPS}, {SIDE}, {SIDE}] is expected, limbs and joints, "
                f"not {list(array.shape)}"
            )
        flat = _square(array.reshape(-1, *array.shape[2:]))
    except (UnsafePickle, SourceError) as error:
        raise SourceError(f"its pose maps in {path.name}: {error}") from error
    except FileNotFoundError:
        raise SourceError(f"its pose maps in {path.name}: the file does not exist") from None
    return flat.reshape(-1, POSE_MAPS, SIDE, SIDE)


def _unpickled(path: Path) -> Silhouettes:
    if path.stat().st_size > _LARGEST_PICKLE:
        raise SourceError("larger than any sequence of silhouettes")
    return read_pickled_array(path.read_bytes())


def _square(frames: Silhouettes) -> Silhouettes:
    """Frames [s, 64, 64] of prepared ones of that height, or a multiple, and usual widths."""
    times = frames.shape[1] // SIDE
    if not times or frames.shape[1:] not in ((times * SIDE,) * 2, (times * SIDE, times * _NARROW)):
        raise _unexpected(frames)
    if not len(frames):
        raise SourceError("no frames")
    margin = (frames.shape[1] - frames.shape[2]) // 2
    if margin:
        frames = np.pad(frames, ((0, 0), (0, 0), (margin, margin)))
    if times == 1:
        return frames
    return np.stack(
        [cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for frame in frames]
    )


def _unexpected(array: Silhouettes) -> SourceError:
    return SourceError(
        f"frames of {SIDE} x {SIDE} or {SIDE} x {_NARROW}, or a multiple, are expected, "
        f"not {list(array.shape)}"
    )


def _read_images(files: Sequence[Path]) -> Silhouettes:
    return _prepare(_archived(files))


def _read_as_the_field(files: Sequence[Path]) -> Silhouettes:
    """Every frame that the field's own preparation of OU-MVLP keeps, so that figures compare."""
    normal = [normalise(frame) for frame in decode(_archived(files), _LIMITS)]
    kept = [frame for frame in normal if frame is not None]
    if not kept:
        raise SourceError("no frame shows a person")
    return np.stack(kept)


def _archived(files: Sequence[Path]) -> bytes:
    """As the archive that a person would upload, so that order, limits and checks are the same."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for path in files:
            target.write(path, path.name)
    return archive.getvalue()


def _read_upload(path: Path) -> Silhouettes:
    if path.stat().st_size > _LIMITS.max_decoded_bytes:
        raise SourceError("larger than any sequence of silhouettes")
    return _prepare(path.read_bytes())


def _prepare(data: bytes) -> Silhouettes:
    return prepare(decode(data, _LIMITS), clean=True).silhouettes
