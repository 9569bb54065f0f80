"""Who finds people in a picture, and which pixels are theirs: three ways behind one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from models.footage.boxes import SIDE, Box, cut_out
from models.footage.pictures import Image
from models.footage.weights import WEIGHTS, find

Mask = NDArray[np.uint8]
"""How sure it is of each pixel of a window that it is the person's, uint8 `[160, 160]`."""

MARGIN: Final = 1.3
"""A window's side for the longer side of the box in it."""

_DETECTOR_SIDE: Final = 300
_PERSON: Final = 1  # of COCO's classes
_LEAST_SCORE: Final = 0.2
_GREY: Final = (124, 124, 124)
_SAME: Final = 0.6  # overlap of two boxes of one person
_MEANS: Final = (123.675, 116.28, 103.53)  # of ImageNet, red first
_DEVIATIONS: Final = (58.395, 57.12, 57.375)


class Found(NamedTuple):
    """Somebody in a picture: where, and how sure that is, in [0, 1]."""

    box: Box
    score: float


SegmenterName = Literal["network", "network+background", "background", "masks"]


class Segmenter(Protocol):
    """Finds people and makes their masks.

    Attributes:
        name: what answers call it.
        every_s: seconds from one look for people to the next; between, boxes follow the masks.
        uses_background: whether what stands still in the clip may correct its masks.
    """

    name: SegmenterName
    every_s: float
    uses_background: bool

    def find(self, image: Image) -> list[Found]:
        """Everybody in a picture."""
        ...

    def segment(self, image: Image, windows: Sequence[Box]) -> list[Mask]:
        """The mask of whoever is in each square window of a picture."""
        ...


class NetworkSegmenter:
    """SSDLite finds people (MIT), u2netp makes their masks (Apache-2.0), both through OpenVINO."""

    every_s = 0.19

    def __init__(
        self, folder: Path = WEIGHTS, *, threads: int = 2, uses_background: bool = False
    ) -> None:
        """`folder` is where the networks were installed; raises `MissingWeights`.

        With `uses_background` the scene behind may take back pixels: as good, measured, and slower.
        """
        graphs = find("detector", folder), find("masks", folder)
        import openvino
        from openvino.preprocess import ColorFormat, PrePostProcessor

        self.uses_background = uses_background
        self.name: SegmenterName = "network+background" if uses_background else "network"
        core = openvino.Core()
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        detector = core.read_model(graphs[0])
        detector.reshape([1, _DETECTOR_SIDE, _DETECTOR_SIDE, 3])
        self._detect = core.compile_model(detector, "CPU", options).create_infer_request()
        masks = core.read_model(graphs[1])
        masks.reshape([1, 3, SIDE, SIDE])
        pixels = PrePostProcessor(masks)
        pixels.input().tensor().set_element_type(openvino.Type.u8).set_layout(
            openvino.Layout("NHWC")
        ).set_color_format(ColorFormat.BGR)
        pixels.input().model().set_layout(openvino.Layout("NCHW"))
        pixels.input().preprocess().convert_element_type(openvino.Type.f32).convert_color(
            ColorFormat.RGB
        ).mean(list(_MEANS)).scale(list(_DEVIATIONS))
        self._segment = core.compile_model(pixels.build(), "CPU", options).create_infer_request()

    def find(self, image: Image) -> list[Found]:
        """Everybody in a picture, the surest first.

        The network is shown the picture twice: stretched to a square, in which those who are far
        are largest, and with a border around it, in which those who are near look as they are.
        """
        rows, columns = image.shape[:2]
        above, beside = max(0, columns - rows) // 2, max(0, rows - columns) // 2
        found = self._looked(image)
        if 20 * max(above, beside) > max(rows, columns):  # else the two are nearly the same
            border = cv2.copyMakeBorder(
                image, above, above, beside, beside, cv2.BORDER_CONSTANT, value=_GREY
            )
            found += [
                Found(box.moved(-beside, -above), score)
                for box, score in self._looked(np.asarray(border, np.uint8))
            ]
        people: list[Found] = []
        for box, score in sorted(found, key=lambda one: -one.score):
            if all(box.overlap(other.box) < _SAME for other in people):
                people.append(Found(box, score))
        return people

    def _looked(self, image: Image) -> list[Found]:
        """What the network takes for people in a picture."""
        small = cv2.resize(image, (_DETECTOR_SIDE, _DETECTOR_SIDE))
        found = self._detect.infer({0: np.ascontiguousarray(small[None, :, :, ::-1])})
        boxes, classes, scores = (found[name][0] for name in _DETECTIONS)
        rows, columns = image.shape[:2]
        people = []
        for (top, left, bottom, right), kind, score in zip(boxes, classes, scores, strict=True):
            if round(float(kind)) != _PERSON or score < _LEAST_SCORE:
                continue
            box = Box(
                float(left) * columns,
                float(top) * rows,
                float(right - left) * columns,
                float(bottom - top) * rows,
            )
            if box.area > 0:
                people.append(Found(box, float(score)))
        return people

    def segment(self, image: Image, windows: Sequence[Box]) -> list[Mask]:
        """The mask of whoever is in each square window of a picture."""
        masks = []
        for window in windows:
            found = self._segment.infer({0: cut_out(image, window)[None]})[0]
            masks.append(np.asarray(np.rint(found[0, 0] * 255), np.uint8))
        return masks


_DETECTIONS: Final = ("detection_boxes:0", "detection_classes:0", "detection_scores:0")


class _Foreground:
    """People as what stands out of one picture; what both segmenters without weights share."""

    every_s = 0.0

    def __init__(self) -> None:
        self._seen = np.zeros((0, 0), np.uint8)

    def _people(self, foreground: NDArray[np.uint8]) -> list[Found]:
        self._seen = foreground
        rows = foreground.shape[0]
        reach = max(1, rows // 120)
        closed = cv2.morphologyEx(
            foreground, cv2.MORPH_CLOSE, np.ones((4 * reach + 1, 2 * reach + 1), np.uint8)
        )
        count, _, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=8)
        return [
            Found(Box(float(left), float(top), float(wide), float(high)), 1.0)
            for left, top, wide, high, area in stats[1:count].tolist()
            if high >= max(_LEAST_ROWS, rows / 12)
            and high >= _TALL * wide
            and area >= _LEAST_FILL * wide * high
        ]

    def segment(self, image: Image, windows: Sequence[Box]) -> list[Mask]:
        """What stands out in each window of the picture that was looked at last."""
        del image
        return [cut_out(self._seen, window) for window in windows]


class BackgroundSegmenter(_Foreground):
    """What a fixed camera does not always see, by OpenCV's mixture of Gaussians; no weights."""

    name: SegmenterName = "background"
    uses_background = True

    def __init__(self) -> None:
        super().__init__()
        self._scene = cv2.createBackgroundSubtractorMOG2(_HISTORY, _VARIANCES, True)

    def find(self, image: Image) -> list[Found]:
        """Everybody in the next picture; shadows are nobody's."""
        # Left to itself it learns so fast at first that who stops for a moment becomes the scene.
        rate = -1 if self._seen.size == 0 else 1 / _HISTORY
        foreground = cv2.medianBlur(self._scene.apply(image, learningRate=rate), 3)
        return self._people(
            np.asarray(cv2.threshold(foreground, 200, 255, cv2.THRESH_BINARY)[1], np.uint8)
        )


class MaskSegmenter(_Foreground):
    """Pictures that are masks already: white people on black."""

    name: SegmenterName = "masks"
    uses_background = False

    def find(self, image: Image) -> list[Found]:
        """Everybody in a picture."""
        brightness = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
        return self._people(
            np.asarray(cv2.threshold(brightness, 127, 255, cv2.THRESH_BINARY)[1], np.uint8)
        )


_LEAST_ROWS: Final = 24
_TALL: Final = 0.9  # rows for each column of a person, legs apart and arms out
_LEAST_FILL: Final = 0.15
_HISTORY: Final = 1000  # pictures
_VARIANCES: Final = 20.0
