from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.footage import BackgroundSegmenter, Picture
from service.__main__ import main
from service.cli.camera import Camera, Connected, Dropped, shown
from service.cli.watch import _Watching
from service.client import Client
from tests.models.footage.clips import COLUMNS, crossing, encode, scene
from tests.service.cli.cameras import camera, mjpeg, rtsp
from tests.service.client.answering import Script, problem
from tests.service.requests import enrol
from tests.service.server import Serve

THROUGH = (-60.0, COLUMNS + 60.0)
BACKGROUND = ("--segmenter", "background")
Gaitid = Callable[..., tuple[int, str, str]]


@pytest.fixture
def gaitid(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Gaitid:
    """Runs `gaitid watch` in this process: its status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gaitid", "watch", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        out, err = capfd.readouterr()
        return int(leaving.value.code or 0), out, err

    return run


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Person 1 walks through, and then person 3."""
    path = tmp_path / "hall.mp4"
    pictures = [*crossing((1, *THROUGH), frames=75), *crossing((3, *THROUGH), frames=75)]
    path.write_bytes(encode(pictures))
    return path


@pytest.fixture
def service(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> httpx.Client:
    """A service that knows person 1 as anna."""
    client = serve(segmenter="background")
    known = enrol(client, "anna", encode(crossing((1, *THROUGH), frames=75)))
    assert known.status_code == 201, known.text
    client.patch("/subjects/anna", json={"display_name": "Anna Maier"}).raise_for_status()
    monkeypatch.setenv("GAITID_URL", str(client.base_url))
    return client


def test_each_walk_of_a_file_is_a_line_that_names_whoever_walks(
    service: httpx.Client, gaitid: Gaitid, film: Path
) -> None:
    before = service.get("/galleries/default").json()
    _, out, _ = gaitid(film, *BACKGROUND, "--json", "--threshold", "1")
    alike = [json.loads(line)["similarity"] for line in out.splitlines()]
    between = str(sum(alike) / 2)  # to this untrained network nearly all people are one
    status, out, err = gaitid(film, *BACKGROUND, "--threshold", between)
    assert (status, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith("0.")
    assert "track 1  match  anna Anna Maier  (similarity " in first
    assert "  no_match  nobody you know  (similarity " in second
    status, out, err = gaitid(film, *BACKGROUND, "--json", "--threshold", between)
    one, other = map(json.loads, out.splitlines())
    assert (one["decision"], one["subject_id"], one["track"]) == ("match", "anna", 1)
    assert 0 < one["from_s"] < one["to_s"] < 3 < other["from_s"] < other["to_s"] < 6
    assert one["began_at"] is None
    assert set(one["quality"]) == {"score", "issues"}
    assert (other["decision"], other["subject_id"]) == ("no_match", None)
    assert other["similarity"] < other["threshold"] < one["similarity"]
    assert service.get("/galleries/default").json() == before  # nothing is stored


def test_a_file_in_which_nobody_walks_says_so(
    service: httpx.Client, gaitid: Gaitid, tmp_path: Path
) -> None:
    (tmp_path / "empty.mp4").write_bytes(encode([scene()] * 40))
    status, out, err = gaitid(tmp_path / "empty.mp4", *BACKGROUND)
    assert (status, out) == (0, "")
    assert "nobody walks there in full view" in err


def test_of_a_damaged_file_the_walks_before_the_damage_are_said(
    service: httpx.Client, gaitid: Gaitid, tmp_path: Path
) -> None:
    pictures = [*crossing((1, *THROUGH), frames=75), *crossing((3, *THROUGH), frames=75)]
    whole = encode(pictures, codec="libvpx", container="webm")
    (tmp_path / "cut.webm").write_bytes(whole[: len(whole) * 3 // 5])
    status, out, err = gaitid(tmp_path / "cut.webm", *BACKGROUND, "--json")
    assert status == 1
    assert json.loads(out.splitlines()[0])["subject_id"] == "anna"
    assert "the video is cut short or damaged" in err


def test_what_the_service_refuses_is_said_and_the_next_walk_is_asked_about(
    gaitid: Gaitid, film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = httpx.Response(200, json={"status": "ready", "model": {"name": "m", "digest": "d"}})
    script = Script(ready, *[_gallery()], problem(422, "poor-sequence"))
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", script.handle)
    status, out, err = gaitid(film, *BACKGROUND, "--json")
    assert (status, err) == (0, "")
    refused = [json.loads(line)["refused"] for line in out.splitlines()]
    assert refused == 2 * [
        {"slug": "poor-sequence", "detail": "Detail of poor-sequence.", "reasons": ["wrong"]}
    ]
    script = Script(ready, _gallery(), problem(403, "scope-missing"))
    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", script.handle)
    status, out, err = gaitid(film, *BACKGROUND)
    assert (status, out) == (1, "")
    assert "Detail of scope-missing." in err


def _gallery() -> httpx.Response:
    content = {
        "name": "default", "subjects": 0, "sequences": 0, "metadata": {}, "operating_point": None,
        "model": {"name": "m", "digest": "d"}, "created_at": "2026-11-22T10:55:57.393Z",
    }  # fmt: skip
    return httpx.Response(200, json=content)


@pytest.fixture
def watching() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the command as a process of its own, which can be told to end as Ctrl-C does."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "service", "watch", *arguments, *BACKGROUND, "--json"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_camera_that_drops_is_connected_again_and_ctrl_c_ends_with_the_last_walk(
    service: httpx.Client, watching: Callable[..., subprocess.Popen[str]]
) -> None:
    clip = crossing((1, *THROUGH), frames=75)
    again = [*clip[:60], *[clip[60]] * 100]
    with camera(mjpeg, clip, again) as (at, connected):
        process = watching(f"http://anybody:secret-word@{at}/video?token=word")
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        while len(connected) < 2:
            time.sleep(0.05)
        time.sleep(2.6)  # of a walk that lasts 2.4 s, and is not over for whoever looks on
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    (last,) = map(json.loads, out.splitlines())
    assert first["decision"] == last["decision"] == "match"
    assert (first["subject_id"], last["subject_id"]) == ("anna", "anna")
    assert first["to_s"] < last["from_s"]
    assert first["began_at"] < first["ended_at"] < last["began_at"]
    assert first["source"] == f"http://{at}/video"
    assert err.count("connected, 480x300 pixels") == 2
    assert "trying again in 1 s" in err
    assert "2 walks in " in err
    assert "word" not in err + out


def test_an_rtsp_camera_s_pictures_have_its_times_over_all_connections() -> None:
    clip = crossing((1, *THROUGH), frames=40)
    stop = threading.Event()
    seen: list[Picture] = []
    words: list[str] = []
    with camera(rtsp, clip, clip) as (at, _):
        source = Camera(f"rtsp://{at}/stream", first_pause_s=0.1)
        for item in source.watch(stop):
            if isinstance(item, Picture):
                seen.append(item)
            else:
                words.append(type(item).__name__)
            if words.count("Dropped") == 2:
                stop.set()
    assert words == ["Connected", "Dropped", "Connected", "Dropped"]
    assert seen[0].image.shape == (300, 480, 3)
    times = [picture.seconds for picture in seen]
    assert times == sorted(times)
    steps = [round(after - before, 2) for before, after in pairwise(times)]
    assert steps.count(0.04) > 0.7 * len(steps)
    assert len(seen) + source.left_out == source.read


def test_pictures_wait_for_who_is_slow_for_a_moment() -> None:
    stop = threading.Event()
    seen = 0
    with camera(mjpeg, crossing((1, *THROUGH), frames=50)) as (at, _):
        source = Camera(f"http://{at}/", first_pause_s=0.1)
        for item in source.watch(stop):
            if isinstance(item, Picture):
                seen += 1
                time.sleep(1.0 if seen == 10 else 0.0)
            elif isinstance(item, Dropped):
                stop.set()
    assert source.left_out == 0
    assert seen == source.read == 50


@pytest.mark.parametrize(("bound", "value"), [("_WAITING_S", 0.3), ("_WAITING_BYTES", 2**22)])
def test_pictures_that_nobody_takes_in_time_are_left_out_and_counted(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: float
) -> None:
    monkeypatch.setattr(f"service.cli.camera.{bound}", value)
    stop = threading.Event()
    lags = []
    with camera(mjpeg, crossing((1, *THROUGH), frames=75)) as (at, _):
        source = Camera(f"http://{at}/", first_pause_s=0.1)
        began = time.monotonic()
        for item in source.watch(stop):
            if isinstance(item, Picture):
                time.sleep(0.2)  # a fifth of what the camera sends
                lags.append(time.monotonic() - began - item.seconds)
            elif isinstance(item, Dropped):
                stop.set()
    assert source.left_out > 30
    assert len(lags) + source.left_out == source.read
    assert max(lags) < 2  # some pictures, not the length of the stream


class Watched(Camera):
    """A quiet minute, and in the midst of it a second of which most is left out."""

    def watch(self, stop: threading.Event) -> Iterator[Picture | Connected | Dropped]:
        assert not stop.is_set()
        yield Connected(4, 4)
        for number in range(60 * 25):
            self.read += 1
            if number < 50 or 700 <= number < 720:  # 50: what a new connection begins with
                self.left_out += 1
            else:
                yield Picture(number / 25, np.zeros((4, 4, 3), np.uint8))


def test_a_moment_of_which_much_is_left_out_is_said_in_a_long_quiet_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("service.cli.camera.Camera", Watched)
    with Client("http://nobody") as client:
        watching = _Watching(client, "http://camera/", "default", None, lambda seen: None)
        watching.run(BackgroundSegmenter(), threading.Event())
    told = [line for line in capsys.readouterr().err.splitlines() if "too slow" in line]
    (line,) = told
    assert line.startswith("gaitid: 20 of 1")  # of five seconds' pictures


def test_a_camera_that_is_not_there_is_tried_ever_less_often_and_its_password_not_said() -> None:
    stop = threading.Event()
    drops: list[Dropped] = []
    with camera(mjpeg) as (at, _):
        pass
    for item in Camera(f"rtsp://me:pass@{at}/", first_pause_s=0.05).watch(stop):
        assert isinstance(item, Dropped)
        drops.append(item)
        if len(drops) == 3:
            stop.set()
    assert [drop.pause_s for drop in drops] == [0.05, 0.1, 0.2]
    assert "pass" not in "".join(drop.reason for drop in drops)
    assert shown("rtsp://me:pass@host:554/a?key=b#c") == "rtsp://host:554/a"
    assert shown("hall@night.mp4") == "hall@night.mp4"


def test_a_camera_cannot_name_a_file_of_this_machine(tmp_path: Path) -> None:
    secret = tmp_path / "film.mp4"
    secret.write_bytes(encode(crossing((1, *THROUGH), frames=10)))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{secret}\n#EXT-X-ENDLIST\n"

    def serve(taken: Any, _clip: Any) -> None:
        taken.recv(65536)
        head = "HTTP/1.0 200 OK\r\nContent-Type: application/vnd.apple.mpegurl\r\n\r\n"
        taken.sendall((head + playlist).encode())

    stop = threading.Event()
    words = []
    with camera(serve, [], []) as (at, _):
        for item in Camera(f"http://{at}/list.m3u8", first_pause_s=0.1).watch(stop):
            words.append(item)
            stop.set()
    assert not any(isinstance(item, Picture | Connected) for item in words)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.mp4",), "there is no file"),
        (("ftp://host/film",), "begins with rtsp://"),
        (("hall.mp4", "--webhook", "http://127.0.0.1:9/"), "set GAITID_WEBHOOK_SECRET"),
        (("hall.mp4", "--webhook-secret-file", "hall.mp4"), "is for --webhook"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_asked(
    gaitid: Gaitid, film: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...],
    said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(film.parent)
    monkeypatch.setenv("GAITID_URL", "http://127.0.0.1:9")
    status, out, err = gaitid(*arguments)
    assert (status, out) == (2, "")
    assert said in err
