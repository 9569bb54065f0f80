"""Cameras for tests: RTSP (H.264 over TCP) and MJPEG over HTTP, in real time."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction

import av
import cv2
import numpy as np

from tests.models.footage.clips import RATE, Pixels

Serve = Callable[[socket.socket, Sequence[Pixels]], None]


@contextmanager
def camera(serve: Serve, *clips: Sequence[Pixels]) -> Iterator[tuple[str, list[float]]]:
    """Sends a clip over each connection and then drops it; nobody is served after the last.

    Yields the address, and the list of times at which somebody connected.
    """
    connected: list[float] = []
    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)

        def run() -> None:
            waiting = list(clips)
            while not over.is_set():
                with suppress(OSError):
                    taken, _ = listener.accept()
                    connected.append(time.monotonic())
                    with taken:
                        taken.settimeout(10)
                        if waiting:
                            serve(taken, waiting.pop(0))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}", connected
        over.set()
        thread.join(20)


def in_time(pictures: Sequence[Pixels]) -> Iterator[tuple[int, Pixels]]:
    began = time.monotonic()
    for number, picture in enumerate(pictures):
        time.sleep(max(0.0, began + number / RATE - time.monotonic()))
        yield number, picture


def mjpeg(taken: socket.socket, pictures: Sequence[Pixels]) -> None:
    taken.recv(65536)
    taken.sendall(
        b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=frame\r\n\r\n"
    )
    for _, picture in in_time(pictures):
        image = cv2.imencode(".jpg", picture)[1].tobytes()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
        taken.sendall(head.encode() + image + b"\r\n")


def rtsp(taken: socket.socket, pictures: Sequence[Pixels]) -> None:
    """RFC 2326 and RFC 6184 as far as one player needs them."""
    asked = taken.makefile("rb")
    while True:
        lines = list(iter(lambda: asked.readline().decode().strip(), ""))
        if not lines:
            return
        method = lines[0].split()[0]
        number = next(line.split()[1] for line in lines if line.lower().startswith("cseq"))
        more, body = "", ""
        if method == "DESCRIBE":
            body = (
                "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\n"
                "c=IN IP4 0.0.0.0\r\na=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=1\r\n"
                "a=control:track\r\n"
            )
            more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif method == "SETUP":
            more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        elif method == "PLAY":
            more = "Session: 1\r\n"
        elif method == "OPTIONS":
            more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        taken.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{more}\r\n{body}".encode())
        if method == "PLAY":
            break
    codec = av.CodecContext.create("libx264", "w")
    codec.height, codec.width = pictures[0].shape[:2]
    codec.pix_fmt, codec.time_base = "yuv420p", Fraction(1, RATE)
    codec.options = {"preset": "veryfast", "tune": "zerolatency", "crf": "20"}
    sequence = 0
    for count, picture in in_time(pictures):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
        frame.pts = count
        for packet in codec.encode(frame):
            units = [unit for unit in re.split(rb"\x00?\x00\x00\x01", bytes(packet)) if unit]
            payloads = [part for unit in units for part in _fragments(unit)]
            for index, payload in enumerate(payloads):
                last = 0x80 if index + 1 == len(payloads) else 0
                stamp = count * 90_000 // RATE
                rtp = struct.pack(">BBHII", 0x80, last | 96, sequence & 0xFFFF, stamp, 1) + payload
                sequence += 1
                taken.sendall(b"$\0" + struct.pack(">H", len(rtp)) + rtp)


def _fragments(unit: bytes, most: int = 1400) -> Iterator[bytes]:
    """A NAL unit as RTP payloads."""
    if len(unit) <= most:
        yield unit
        return
    kind, rest = unit[0], unit[1:]
    for at in range(0, len(rest), most):
        edges = (0x80 if at == 0 else 0) | (0x40 if at + most >= len(rest) else 0)
        yield bytes([(kind & 0xE0) | 28, edges | (kind & 0x1F)]) + rest[at : at + most]
