"""`gaitid watch`: a camera, and who walks past it."""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from service.cli.connection import AsJson, Gallery, Threshold, asking
from service.cli.failure import CommandFailed, WrongUsage, failing_on
from service.cli.output import print_object, printable

if TYPE_CHECKING:
    from models.footage import FoundWalk, Picture, Segmenter, WalkFinder
    from service.cli.camera import Camera
    from service.cli.webhook import Webhook
    from service.client import Client

app = typer.Typer()

SECRET: Final = "GAITID_WEBHOOK_SECRET"  # noqa: S105 - the name of a variable

_PATIENT = 6  # attempts, over a quarter of a minute: the service may be restarted
_MOST_ASKED = 16  # walks that wait for the service's answer
_LOOK_S = 5.0  # in which pictures are counted: who walks past is soon gone, and costs most
_REPORT_S = 60.0  # from one word about pictures left out to the next
_MOST_LEFT_OUT = 0.05  # of the pictures
_SEGMENTERS = Literal["network", "background"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the service named nobody: the kind of problem, what it says, and codes."""

    slug: str
    detail: str
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SeenWalk:
    """One walk and what the service says of it; printed with `--json`, and posted.

    Attributes:
        source: the file or camera, without a password.
        gallery: that was asked.
        track: of one person; who leaves and comes back is another one.
        from_s, to_s: seconds since the beginning.
        began_at, ended_at: the same as times (RFC 3339, UTC); None for a file.
        frames: silhouettes of it.
        decision: `match` or `no_match`; None if refused.
        subject_id, display_name: who it is, if it is a match.
        similarity: to the most similar person.
        threshold: from which on it is a match.
        quality: score and codes of issues.
        search_id: of the service's answer.
        refused: why there is no decision.
    """

    source: str
    gallery: str
    track: int
    from_s: float
    to_s: float
    began_at: str | None
    ended_at: str | None
    frames: int
    decision: str | None = None
    subject_id: str | None = None
    display_name: str | None = None
    similarity: float | None = None
    threshold: float | None = None
    quality: dict[str, Any] | None = None
    search_id: str | None = None
    refused: Refusal | None = None


@asking(app, "watch", attempts=_PATIENT)
def watch(
    client: Client,
    source: Annotated[
        str,
        typer.Argument(
            envvar="GAITID_SOURCE",
            help="A video file, /dev/video0, or rtsp://… (also http://…). "
            "With a password in it, better set in the environment.",
        ),
    ],
    gallery: Gallery = "default",
    threshold: Threshold = None,
    segmenter: Annotated[
        _SEGMENTERS, typer.Option(help="What makes silhouettes; see docs/footage.md.")
    ] = "network",
    webhook: Annotated[str | None, typer.Option(help="Where to post each walk to.")] = None,
    webhook_secret_file: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help=f"Has the secret that signs posts; else {SECRET} has it.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say who walks past a camera, each as the walk ends; nothing is stored.

    People are found on this machine; the service gets silhouettes. Ctrl-C ends it with the walks
    that are under way, and once more at once.
    """
    if source.startswith("/dev/") or "://" in source:
        from service.cli.camera import is_camera

        if not is_camera(source):
            raise WrongUsage(
                "a camera's address begins with rtsp://, rtsps://, http:// or https://"
            )
    elif not Path(source).is_file():
        raise WrongUsage(f"there is no file {source!r}")
    posting = _webhook(webhook, webhook_secret_file)
    client.readiness()  # before the camera's first picture: is there such a service?
    client.gallery(gallery)
    with ExitStack() as stack:
        hook = None if posting is None else stack.enter_context(posting)

        def show(seen: SeenWalk) -> None:
            if hook is not None:
                hook.post(json.dumps(asdict(seen), ensure_ascii=False).encode())
            if as_json:
                print_object(asdict(seen))
            else:
                typer.echo(in_a_line(seen))

        watching = _Watching(client, source, gallery, threshold, show)
        watching.run(_segmenter(segmenter), stack.enter_context(_stopping()))


class _Watching:
    """Finds walks in one source and asks the service about each, in a thread of its own."""

    def __init__(
        self,
        client: Client,
        source: str,
        gallery: str,
        threshold: float | None,
        show: Callable[[SeenWalk], None],
    ) -> None:
        from service.cli.camera import Camera, is_camera, shown

        self._client = client
        self._source = source
        self._camera: Camera | None = Camera(source) if is_camera(source) else None
        self._shown = shown(source)
        self._gallery = gallery
        self._threshold = threshold
        self._show = show
        self._began = datetime.now(UTC)
        self._asked: deque[Future[None]] = deque()
        self._walks = 0

    def run(self, segmenter: Segmenter, stop: threading.Event) -> None:
        """Watch to the end of the file, or until told to stop.

        Raises:
            CommandFailed: the file cannot be read to its end.
            ClientError: no walk could be asked about.
        """
        from models.footage import WalkFinder

        finder = WalkFinder(segmenter)
        with ThreadPoolExecutor(1) as asking:
            try:
                for walk in self._found(finder, stop):
                    self._ask(asking, walk)
                while self._asked:
                    self._asked.popleft().result()
            finally:
                for waiting in self._asked:
                    waiting.cancel()
        if self._camera is not None:
            say(
                f"{self._walks} walks in {self._camera.read} pictures, "
                f"{self._camera.left_out} of them left out"
            )
        elif self._walks == 0:
            say("nobody walks there in full view")

    def _found(self, finder: WalkFinder, stop: threading.Event) -> Iterator[FoundWalk]:
        from models.silhouettes import SequenceError

        damage: SequenceError | None = None
        try:
            if self._camera is None:
                for picture in _pictures_of(Path(self._source)):
                    if stop.is_set():
                        break
                    yield from finder.see(picture)
            else:
                yield from self._seen_by(self._camera, finder, stop)
        except SequenceError as error:
            damage = error
        yield from finder.finish()
        if damage is not None:
            raise CommandFailed(f"{self._shown}: {damage}") from damage

    def _seen_by(
        self, camera: Camera, finder: WalkFinder, stop: threading.Event
    ) -> Iterator[FoundWalk]:
        from models.footage import Picture
        from service.cli.camera import Connected, Dropped

        looked_s = reported_s = -math.inf
        read = left_out = 0
        is_new = True  # a connection, which begins with more than can be looked at
        self._began = datetime.now(UTC)
        for item in camera.watch(stop):
            match item:
                case Connected(columns, rows):
                    say(f"{self._shown}: connected, {columns}x{rows} pixels")
                    is_new = True
                case Dropped(reason, pause_s):
                    yield from finder.finish()
                    say(f"{self._shown}: {reason}; trying again in {pause_s:g} s")
                case Picture():
                    yield from finder.see(item)
                    if item.seconds - looked_s < _LOOK_S:
                        continue
                    lost, came = camera.left_out - left_out, camera.read - read
                    if (
                        lost > _MOST_LEFT_OUT * came
                        and not is_new
                        and item.seconds - reported_s > _REPORT_S
                    ):
                        say(
                            f"{lost} of {came} pictures were left out: this machine is too slow "
                            "for all of them, and walks may be missed"
                        )
                        reported_s = item.seconds
                    looked_s, is_new = item.seconds, False
                    read, left_out = camera.read, camera.left_out

    def _ask(self, asking: ThreadPoolExecutor, walk: FoundWalk) -> None:
        """Have the service asked; of a camera, never wait for it."""
        self._walks += 1
        while self._asked and self._asked[0].done():
            self._asked.popleft().result()
        if len(self._asked) >= _MOST_ASKED:
            if self._camera is not None:
                say(f"a walk is left out: {_MOST_ASKED} wait for the service's answer")
                return
            self._asked.popleft().result()
        self._asked.append(asking.submit(lambda: self._show(self._identified(walk))))

    def _identified(self, walk: FoundWalk) -> SeenWalk:
        from service.client import (
            Forbidden,
            NotFound,
            Refused,
            ServiceUnreachable,
            Unauthenticated,
        )

        about: dict[str, Any] = {
            "source": self._shown,
            "gallery": self._gallery,
            "track": walk.track,
            "from_s": walk.from_s,
            "to_s": walk.to_s,
            "began_at": self._time(walk.from_s),
            "ended_at": self._time(walk.to_s),
            "frames": len(walk.frames),
        }
        try:
            answer = self._client.identify(
                ("walk.npz", _packed(walk)), gallery=self._gallery, top_k=1,
                threshold=self._threshold, include="metadata", input="silhouettes",
            )  # fmt: skip
        except (Unauthenticated, Forbidden, NotFound):
            raise  # and so would every other walk
        except Refused as error:
            reasons = tuple(fault.reason for fault in error.errors)
            return SeenWalk(**about, refused=Refusal(error.slug, error.detail, reasons))
        except ServiceUnreachable as error:
            if self._camera is None:
                raise
            return SeenWalk(**about, refused=Refusal("service-unreachable", str(error), ()))
        best = answer.candidates[0] if answer.candidates else None
        match = answer.decision == "match" and best is not None
        return SeenWalk(
            **about,
            decision=answer.decision,
            subject_id=best.subject_id if match and best else None,
            display_name=best.display_name if match and best else None,
            similarity=best.similarity if best else None,
            threshold=answer.threshold,
            quality=answer.probe.quality.model_dump(),
            search_id=answer.search_id,
        )

    def _time(self, seconds: float) -> str | None:
        if self._camera is None:
            return None
        return (self._began + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def in_a_line(seen: SeenWalk) -> str:
    """A walk for a person to read."""
    when = f"{seen.from_s:.1f} to {seen.to_s:.1f} s"
    if seen.began_at is not None and seen.ended_at is not None:
        times = (datetime.fromisoformat(at).astimezone() for at in (seen.began_at, seen.ended_at))
        when = " to ".join(f"{at:%H:%M:%S}" for at in times)
    if seen.refused is not None:
        why = ", ".join(seen.refused.reasons) or seen.refused.detail
        said = f"nobody could say: {printable(why)}"
    else:
        name = " ".join(filter(None, (seen.subject_id, seen.display_name)))
        who = printable(name) if seen.decision == "match" else "nobody you know"
        alike = (
            "nobody is enrolled"
            if seen.similarity is None
            else (f"similarity {seen.similarity:.3f}, threshold {seen.threshold:.3f}")
        )
        issues = (seen.quality or {}).get("issues", [])
        said = f"{seen.decision}  {who}  ({alike})"
        said += f"  issues: {', '.join(map(printable, issues))}" if issues else ""
    return f"{when}  track {seen.track}  {said}"


def say(text: str) -> None:
    """Tell the person at the terminal; never part of the output."""
    typer.echo(f"gaitid: {printable(text)}", err=True)


def _segmenter(name: str) -> Segmenter:
    from models.footage import BackgroundSegmenter, MissingWeights, NetworkSegmenter

    with failing_on(MissingWeights):
        return NetworkSegmenter() if name == "network" else BackgroundSegmenter()


def _webhook(url: str | None, secret_file: Path | None) -> Webhook | None:
    if url is None:
        if secret_file is not None:
            raise WrongUsage("--webhook-secret-file is for --webhook")
        return None
    from service.cli.webhook import UnusableWebhook, Webhook

    if secret_file is None:
        secret = os.environ.get(SECRET, "")
    else:
        with failing_on(OSError, UnicodeDecodeError):
            secret = secret_file.read_text("utf-8").strip()
    if not secret:
        raise WrongUsage(f"posts are signed: set {SECRET}, or give --webhook-secret-file")
    try:
        return Webhook(url, secret, say)
    except UnusableWebhook as error:
        raise WrongUsage(str(error)) from error


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, and SIGTERM; the second Ctrl-C ends the command at once."""
    stop = threading.Event()

    def told(_number: int, _frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, told) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        stop.set()  # also for the thread that reads a camera
        for number, handler in before.items():
            signal.signal(number, handler)


def _pictures_of(path: Path) -> Iterator[Picture]:
    """A file's pictures, however long it is; it is not held in memory."""
    from models.footage import FootageLimits, read_pictures

    endless = FootageLimits(float("inf"), sys.maxsize, max_seconds=float("inf"))
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            raise CommandFailed(f"{path} is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from read_pictures(data, endless)


def _packed(walk: FoundWalk) -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.savez_compressed(file, silhouettes=np.stack(walk.frames))
    return file.getvalue()
