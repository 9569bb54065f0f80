"""How well people are recognised in footage from one scene to another, and what that takes.

The protocol "across scenes": a clip is cut into passes (one crossing of the image), of which the
first two count. The gallery is every pass of everybody in one scene, the probes those in another;
rank-1 by the nearest pass, with intervals over people. A pass that is not found counts as refused.
Open set: every half of the people is enrolled with its passes of the first scene, the others are
strangers; at the checkpoint's own threshold.

    python -m benchmarks.footage FOLDER [--segmenters network network+background background]
        [--people person01 …] [--checkpoint DIR] [--real-time] [--pack PACK] [--out FILE.json]

FOLDER holds `PERSON_SCENE.mp4`. Networks run on one thread; times are of the processor. Whether
footage is searched in real time is measured on the first clip made 640 x 480: seconds of the
processor that each stage takes for a second with a person in it. `--real-time` measures nothing
else. `--pack` keeps the first segmenter's walks, for `benchmarks.scenes` and `training evaluate`: a
scene stands for a view.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks import machine
from benchmarks.embedding import SHIPPED
from benchmarks.walks import heading
from models.card import Card
from models.encoder.encoder import Encoder
from models.footage.boxes import Box
from models.footage.finding import WalkFinder
from models.footage.pictures import FootageLimits, Image, Picture, read_pictures
from models.footage.segmentation import (
    BackgroundSegmenter,
    Found,
    Mask,
    NetworkSegmenter,
    Segmenter,
)
from models.footage.walks import FoundWalk
from models.silhouettes import Frame, PoorSequence, Silhouettes, prepare
from training.data.pack import PackWriter
from training.evaluation import Resampling
from training.evaluation.bootstrap import percentile_estimate, subject_weights
from training.evaluation.distances import pairwise_distances, to_similarity

PASSES = 2
LARGE = (640, 480)
RATE = 25
LARGE_S = 6.0  # of the clip: the first pass and more
APART_S = 1.0  # between two passes of one person
LIMITS = FootageLimits(max_seconds_long=3600, max_pictures=10**6, max_seconds=86400)


class Recorder:
    """A segmenter that remembers its answers for a second run over the same pictures, and times."""

    def __init__(self, inner: Segmenter) -> None:
        self.name, self.every_s = inner.name, inner.every_s
        self.uses_background = inner.uses_background
        self.seconds = {"find": 0.0, "segment": 0.0}
        self.calls = {"find": 0, "segment": 0}
        self._inner = inner
        self._answers: dict[tuple[str, int], Any] = {}
        self._turn = {"find": 0, "segment": 0}

    def rewind(self) -> None:
        """From the clip's beginning, with what is remembered."""
        self._turn = {"find": 0, "segment": 0}

    def forget(self) -> None:
        """Another clip."""
        self._answers.clear()
        self.rewind()

    def find(self, image: Image) -> list[Found]:
        """Everybody in a picture."""
        return list(self._ask("find", 1, lambda: self._inner.find(image)))

    def segment(self, image: Image, windows: Sequence[Box]) -> list[Mask]:
        """The masks of those in windows."""
        work = len(windows)
        return list(self._ask("segment", work, lambda: self._inner.segment(image, windows)))

    def _ask(self, stage: str, work: int, answer: Callable[[], list[Any]]) -> list[Any]:
        key = stage, self._turn[stage]
        self._turn[stage] += 1
        if key not in self._answers:
            began = time.process_time()
            self._answers[key] = answer()
            self.seconds[stage] += time.process_time() - began
            self.calls[stage] += work
        remembered: list[Any] = self._answers[key]
        return remembered


def passes(walks: Sequence[FoundWalk]) -> list[list[Frame]]:
    """Frames of each pass: walks in one crossing are one."""
    groups: list[list[FoundWalk]] = []
    for walk in sorted(walks, key=lambda one: one.from_s):
        if groups and walk.from_s - groups[-1][-1].to_s < APART_S:
            groups[-1].append(walk)
        else:
            groups.append([walk])
    return [[frame for walk in group for frame in walk.frames] for group in groups]


def first_passes(pictures: Iterator[Picture], segmenter: Segmenter) -> list[list[Frame]]:
    """The passes that count; nothing is read after them."""
    finder = WalkFinder(segmenter)
    walks: list[FoundWalk] = []
    for picture in pictures:
        ended = finder.see(picture)
        walks += ended
        over = walks and picture.seconds - max(walk.to_s for walk in walks) > APART_S
        if len(passes(walks)) >= PASSES and over:
            return passes(walks)[:PASSES]
    return passes([*walks, *finder.finish()])[:PASSES]


def enlarged(clip: Path) -> bytes:
    """The first seconds of a clip as H.264 in 640 x 480 at 25 pictures a second."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height = LARGE
        stream.pix_fmt = "yuv420p"
        for picture in read_pictures(clip.read_bytes(), LIMITS):
            if picture.seconds > LARGE_S:
                break
            resized = cv2.resize(picture.image, LARGE, interpolation=cv2.INTER_CUBIC)
            large = np.asarray(resized, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(large, format="bgr24")))
        file.mux(stream.encode(None))
    return target.getvalue()


def real_time(clip: Path) -> dict[str, Any]:
    """Seconds of the processor for a second with one person in 640 x 480, by stage; and empty."""
    data = enlarged(clip)
    began = time.process_time()
    seconds = [picture.seconds for picture in read_pictures(data, LIMITS)][-1]
    reading = time.process_time() - began
    segmenter = Recorder(NetworkSegmenter(threads=1))
    finder, walks = WalkFinder(segmenter), 0
    pictures, looking, seeing = ({True: 0.0, False: 0.0} for _ in range(3))  # is somebody there?
    for picture in read_pictures(data, LIMITS):
        began, looked = time.process_time(), segmenter.seconds["find"]
        walks += len(finder.see(picture))
        pictures[finder.follows] += 1
        looking[finder.follows] += segmenter.seconds["find"] - looked
        seeing[finder.follows] += time.process_time() - began
    began = time.process_time()
    walks += len(finder.finish())
    seeing[True] += time.process_time() - began
    there, empty = pictures[True] / RATE, pictures[False] / RATE
    following = seeing[True] - looking[True] - segmenter.seconds["segment"]
    takes = {
        "reading": reading / seconds,
        "looks for people": looking[True] / there,
        "masks": segmenter.seconds["segment"] / there,
        "following, and masks made to agree": following / there,
    }
    takes["all"] = sum(takes.values())
    return {
        "seconds with somebody": round(there, 2),
        "walks": walks,
        "a second takes": {stage: round(value, 3) for stage, value in takes.items()},
        "an empty second takes": round(reading / seconds + seeing[False] / empty, 3),
    }


def open_set(
    alike: NDArray[np.float64], people: NDArray[np.intp], scenes: NDArray[np.str_], threshold: float
) -> dict[str, float]:
    """Shares in per cent over all splits of the people in halves, of passes not in the gallery."""
    first = scenes == min(scenes)
    known, unknown = [], []
    numbers = range(int(people.max()) + 1)
    for half in combinations(numbers, len(numbers) // 2):
        enrolled = np.isin(people, half)
        gallery = np.flatnonzero(enrolled & first)
        searched = alike[:, gallery]
        best, nearest = searched.max(axis=1), people[gallery][searched.argmax(axis=1)]
        found = (best >= threshold) & (nearest == people)
        known.append(found[enrolled & ~first].mean())
        unknown.append((best[~enrolled] >= threshold).mean())
    return {
        "enrolled people found": round(100 * float(np.mean(known)), 1),
        "strangers accepted": round(100 * float(np.mean(unknown)), 1),
    }


def compare(
    walks: Sequence[tuple[str, str, Silhouettes]], encoder: Encoder
) -> dict[str, dict[str, Any]]:
    """Rank-1 in per cent from scene to scene (probe → gallery), and the open set."""
    names, people = np.unique([walk[0] for walk in walks], return_inverse=True)
    scenes = np.array([walk[1] for walk in walks])
    each = encoder.encode([walk[2] for walk in walks])
    metric = encoder.card.metric
    alike = to_similarity(pairwise_distances(each, each, metric), metric).astype(np.float64)
    np.fill_diagonal(alike, -np.inf)
    weights = subject_weights(len(names), Resampling())
    rank1: dict[str, Any] = {}
    for probed in np.unique(scenes):
        for listed in np.unique(scenes):
            gallery = np.flatnonzero(scenes == listed)
            probes = [
                index
                for index in np.flatnonzero(scenes == probed)
                if (people[gallery[gallery != index]] == people[index]).any()
            ]
            hits, searches = np.zeros(len(names)), np.zeros(len(names))
            for index in probes:
                nearest = people[gallery[alike[index, gallery].argmax()]]
                hits[people[index]] += nearest == people[index]
                searches[people[index]] += 1
            with np.errstate(invalid="ignore"):
                replicates = (weights @ hits) / (weights @ searches)
            estimate = percentile_estimate(hits.sum() / searches.sum(), replicates, 0.95)
            bounds = (estimate.value, estimate.low, estimate.high)
            rank1[f"{probed} → {listed}"] = [
                *(None if bound is None else round(100 * bound, 1) for bound in bounds),
                len(probes),
            ]
    card: Card = encoder.card
    if card.threshold is not None:
        rank1["open set"] = open_set(alike, people, scenes, card.threshold)
    return rank1


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    names = ("network", "network+background", "background")
    parser.add_argument("--segmenters", nargs="+", choices=names, default=names)
    parser.add_argument("--people", nargs="*", help="those only; default: all")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--real-time", action="store_true", help="nothing but that")
    parser.add_argument("--pack", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    clips = [
        path
        for path in sorted(options.folder.glob("*_*.mp4"))
        if not options.people or path.stem.split("_")[0] in options.people
    ]
    if options.real_time:
        machine.publish({"benchmark": "footage in real time", **real_time(clips[0])}, options.out)
        return
    networks = [name for name in options.segmenters if name.startswith("network")]
    shared = Recorder(NetworkSegmenter(threads=1)) if networks else None
    found: dict[str, list[tuple[str, str, Silhouettes]]] = {name: [] for name in options.segmenters}
    expected = PASSES * len(clips)
    for clip in clips:
        person, _, scene = clip.stem.partition("_")
        data = clip.read_bytes()
        if shared is not None:
            shared.forget()
        for name in options.segmenters:
            segmenter: Segmenter = BackgroundSegmenter()
            if shared is not None and name in networks:
                shared.rewind()
                shared.uses_background = name == "network+background"
                segmenter = shared
            for frames in first_passes(read_pictures(data, LIMITS), segmenter):
                try:
                    found[name].append((person, scene, prepare(frames).silhouettes))
                except PoorSequence:
                    continue
    if options.pack is not None:
        with PackWriter(options.pack) as writer:
            for person, scene, silhouettes in found[options.segmenters[0]]:
                writer.add(person, "normal", scene, silhouettes)
            writer.finish()
    encoder = Encoder.open(options.checkpoint)
    rows: dict[str, Any] = {}
    for name, walks in found.items():
        refused = {"passes refused": [expected - len(walks), expected]}
        rows[name] = refused | compare(walks, encoder)
    if shared is not None:
        rows["ms of the processor"] = {
            stage: round(1000 * seconds / max(1, shared.calls[stage]), 1)
            for stage, seconds in shared.seconds.items()
        }
        rows["real time"] = real_time(clips[0])
    benchmark = "rank-1 in per cent in footage, from scene to scene: value, interval, probes"
    machine.publish({**heading(benchmark, encoder.card), "rows": rows}, options.out)


if __name__ == "__main__":
    main()
