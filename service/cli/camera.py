"""A camera's pictures as they come, over as many connections as it takes."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import av
from av.container import InputContainer

from models.footage.pictures import CLOSEST_S, Picture, picture_of
from models.silhouettes.video import DECODERS

_PROTOCOLS: Final = {
    "rtsp": "rtsp,rtp,udp,tcp",
    "rtsps": "rtsps,rtsp,rtp,srtp,udp,tcp,tls",
    "http": "http,tcp",
    "https": "https,http,tls,tcp",
}
"""What a camera's address may lead to: never to a file of this machine."""

_UNTIMED: Final = frozenset({"mpjpeg", "mjpeg", "mjpeg_2000", "jpeg_pipe"})
"""Streams whose pictures have no times; libav would count 25 a second, whatever comes."""

_DEVICES: Final = "/dev/"
_MOST_SIDE: Final = 8192  # pixels
_SILENT_S: Final = 10.0  # without a picture; then the connection is taken for broken
_WAITING_S: Final = 2.0  # that pictures wait to be looked at; more would be a lag
_WAITING_BYTES: Final = 64 * 2**20  # of them
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0
_APART_S: Final = 10.0  # of the stream's clock from ours; then the stream's has jumped


@dataclass(frozen=True, slots=True)
class Connected:
    """A camera answers.

    Attributes:
        columns, rows: of its pictures, in pixels.
    """

    columns: int
    rows: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A camera cannot be reached, or no more comes of it.

    Attributes:
        reason: why, without its address.
        pause_s: seconds until the next try.
    """

    reason: str
    pause_s: float


def is_camera(source: str) -> bool:
    """Whether a source is an address or a device rather than a file."""
    return source.startswith(_DEVICES) or urlsplit(source).scheme in _PROTOCOLS


def shown(source: str) -> str:
    """A source for people to read: an address without the password that may be in it."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


class Camera:
    """Reads one camera in a thread of its own, and again whenever it drops.

    Most of what a camera sees costs little, and a person much: some pictures wait. What nobody
    takes in time is left out, so that the pictures that are taken are new.

    Attributes:
        read: pictures that came of it so far.
        left_out: how many of them nobody took.
    """

    def __init__(self, source: str, *, first_pause_s: float = _FIRST_PAUSE_S) -> None:
        """`source` is an address (RTSP, HTTP) or a device; the first pause doubles each time."""
        self.read = 0
        self.left_out = 0
        self._source = source
        self._first_pause_s = first_pause_s
        self._waiting: deque[Picture | Connected | Dropped | Exception] = deque()
        self._changed = threading.Condition()
        self._zero = time.monotonic()
        self._newest_s = -math.inf

    def watch(self, stop: threading.Event) -> Iterator[Picture | Connected | Dropped]:
        """Everything that comes, until `stop` is set; seconds count from this call on.

        Raises:
            Exception: what ended the reader that is no fault of the camera's.
        """
        self._zero = time.monotonic()
        reader = threading.Thread(target=self._read, args=(stop,), daemon=True)
        reader.start()
        while not stop.is_set():
            with self._changed:
                if not self._waiting:
                    self._changed.wait(0.1)  # a signal sets `stop`, and can notify nobody
                    continue
                item = self._waiting.popleft()
            if isinstance(item, Exception):
                raise item
            yield item

    def _read(self, stop: threading.Event) -> None:
        failures = 0
        while not stop.is_set():
            before = self.read
            try:
                self._read_once(stop)
                reason = "it ended its stream"
            except av.FFmpegError as error:
                silent = isinstance(error, av.ExitError)  # libav's word for our timeout
                reason = f"nothing came for {_SILENT_S:g} s" if silent else f"{error.strerror}"
            except _NoPictures as error:
                reason = str(error)
            except Exception as error:
                self._put(error)
                return
            failures = 1 if self.read > before else failures + 1
            pause = min(_LONGEST_PAUSE_S, self._first_pause_s * 2.0 ** min(failures - 1, 16))
            self._put(Dropped(reason, pause))
            stop.wait(pause)

    def _read_once(self, stop: threading.Event) -> None:
        """Read over one connection."""
        with self._opened() as container:
            if not container.streams.video:
                raise _NoPictures("it sends no pictures")
            stream = container.streams.video[0]
            codec = stream.codec_context
            if codec.codec.name not in DECODERS:
                raise _NoPictures("its codec is not accepted; set it to H.264")
            codec.thread_count = 1  # several would hold pictures back
            untimed = container.format.name in _UNTIMED
            connected = False
            ahead: float | None = None  # of the stream's clock: ours less its
            heard = time.monotonic()
            due = -math.inf
            for packet in container.demux(stream):
                if stop.is_set():
                    return
                try:
                    frames = packet.decode()
                except av.InvalidDataError:  # lost on the way; the next key frame mends it
                    frames = []
                now = time.monotonic() - self._zero
                for frame in frames:
                    if not connected:
                        connected = True
                        self._put(Connected(frame.width, frame.height))
                    seconds = now
                    if frame.time is not None and not untimed:
                        if ahead is None or abs(frame.time + ahead - now) > _APART_S:
                            ahead, due = max(now, self._newest_s) - frame.time, -math.inf
                        seconds = frame.time + ahead
                    if seconds < due or seconds <= self._newest_s:
                        continue
                    due = seconds + CLOSEST_S
                    self._newest_s = seconds
                    self.read += 1
                    self._put(picture_of(frame, seconds))
                if frames:
                    heard = time.monotonic()
                elif time.monotonic() - heard > _SILENT_S:
                    raise _NoPictures(f"no picture could be read for {_SILENT_S:g} s")

    @contextmanager
    def _opened(self) -> Iterator[InputContainer]:
        options = {
            "codec_whitelist": ",".join(sorted(DECODERS)),
            "max_pixels": str(_MOST_SIDE**2),
        }
        device = self._source.startswith(_DEVICES)
        scheme = urlsplit(self._source).scheme
        if not device:
            options["protocol_whitelist"] = _PROTOCOLS[scheme]
            if scheme.startswith("rtsp"):
                options["rtsp_transport"] = "tcp"  # UDP loses parts of pictures
        with av.open(
            self._source,
            format="v4l2" if device else None,
            options=options,
            timeout=_SILENT_S,
        ) as container:
            yield container

    def _put(self, item: Picture | Connected | Dropped | Exception) -> None:
        with self._changed:
            self._waiting.append(item)
            pictures = [one for one in self._waiting if isinstance(one, Picture)]
            size = sum(one.image.nbytes for one in pictures)
            for oldest in pictures[:-1]:
                waited_s = pictures[-1].seconds - oldest.seconds
                if size <= _WAITING_BYTES and waited_s <= _WAITING_S:
                    break
                self._waiting.remove(oldest)
                size -= oldest.image.nbytes
                self.left_out += 1
            self._changed.notify()


class _NoPictures(Exception):
    """A connection that gives no pictures."""
