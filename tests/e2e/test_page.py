"""The page in a real browser (Debian's chromium) against the real service."""

import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import cv2
import httpx
import numpy as np
import pytest
from playwright.sync_api import (
    Browser,
    FilePayload,
    Locator,
    Page,
    Request,
    ViewportSize,
    expect,
    sync_playwright,
)
from playwright.sync_api import Route as Reply
from sqlalchemy import update
from sqlalchemy.orm import Session

from models.footage import MissingWeights
from service.access.keys import Scope, create_key
from service.client import Client
from service.gallery.store import GalleryStore
from service.gallery.tables import GalleryRow
from service.storage.database import open_database, writing
from tests.e2e.deployment import Deployment
from tests.models.footage.clips import COLUMNS, crossing, encode, scene
from tests.service.conftest import save_tiny_model
from tests.service.jobs.galleries import add, made_walk
from tests.service.walkers import walk, walker

pytestmark = [pytest.mark.slow]

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip(
        "no chromium is on this machine, so the page was not opened in a browser: "
        "apt-get install chromium",
        allow_module_level=True,
    )
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECTIONS = ("identify", "enrol", "gallery", "jobs", "models")
PHONES: list[ViewportSize] = [{"width": 390, "height": 844}, {"width": 320, "height": 640}]
PATIENCE_MS = 30_000  # the machine may be busy
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, shipped: Path) -> Iterator[Deployment]:
    """One service for this file; each test has a gallery of its own."""
    deployment = Deployment(tmp_path_factory.mktemp("page"), shipped)
    deployment.set(GAITID_SEGMENTER="background")  # needs no networks
    deployment.start()
    yield deployment
    deployment.stop()


@pytest.fixture
def client(served: Deployment) -> Iterator[Client]:
    with Client(served.url) as client:
        yield client


@pytest.fixture
def gallery(served: Deployment, request: pytest.FixtureRequest) -> str:
    whole = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))
    name = f"{whole[:30]}{whole[30:][-30:]}".rstrip("-_")
    httpx.post(f"{served.url}/galleries", json={"name": name}).raise_for_status()
    return name


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A tab; afterwards, nothing went wrong in it and nothing came from another host."""
    context = browser.new_context(locale="en-GB")
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    wrong: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda line: wrong.append(line.text) if "Policy" in line.text else None)
    page.on("request", lambda sent: hosts.add(sent.url.split("/")[2]) if _goes_out(sent) else None)
    yield page
    served_from = page.url.split("/")[2]
    context.close()
    assert wrong == []
    assert hosts == {served_from}


def _goes_out(request: Request) -> bool:
    return not request.url.startswith(("blob:", "data:"))


def opened(page: Page, served: Deployment, section: str, gallery: str = "default") -> Locator:
    """The page at a section, with a gallery chosen; returns the section."""
    page.goto(f"{served.url}/#{section}")
    expect(page.locator("#ready")).to_have_text("ready, model default")
    page.locator("#gallery-choice").select_option(gallery)
    return page.locator(f"#{section}")


def npz(person: int, *, phase: float = 0.0) -> FilePayload:
    return {
        "name": f"walk-{person}.npz",
        "mimeType": "application/octet-stream",
        "buffer": walk(person, phase=phase),
    }


def zipped(person: int) -> FilePayload:
    file = BytesIO()
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        for index, frame in enumerate(walker(person)):
            archive.writestr(f"frame-{index}.png", cv2.imencode(".png", frame)[1].tobytes())
    return {"name": "walk.zip", "mimeType": "application/zip", "buffer": file.getvalue()}


def file_of(text: bytes, name: str) -> FilePayload:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": text}


def lit(canvas: Locator) -> int:
    """How many pixels of a player are white."""
    count = canvas.evaluate(
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)"
        ".data.filter((value, i) => i % 4 === 0 && value > 127).length"
    )
    return int(count)


def test_a_walk_is_dropped_watched_enrolled_and_recognised(
    page: Page, served: Deployment, gallery: str
) -> None:
    section = opened(page, served, "enrol", gallery)
    for person in (1, 2):
        section.locator("#enrol-file").set_input_files([npz(person), npz(person, phase=0.7)])
        expect(section.locator("#enrol-preview canvas")).to_have_count(2)
        section.get_by_label("Subject").fill(f"p{person}")
        section.get_by_label("View").fill("090")
        section.get_by_role("button", name="Enrol", exact=True).click()
        result = section.locator("#enrol-result")
        expect(result.get_by_role("heading", name=f"p{person}", exact=True)).to_be_visible()
    expect(page.locator("#announcer")).to_have_text("Enrolled 2 walks of p2")
    expect(result.locator("canvas")).to_have_count(2)
    assert (
        200 < lit(result.locator("canvas").first) < 64 * 64 / 2
    )  # a person, as the service sees it

    page.get_by_role("link", name="Identify").click()
    section = page.locator("#identify")
    payload = page.evaluate_handle(
        "bytes => { const transfer = new DataTransfer();"
        "transfer.items.add(new File([new Uint8Array(bytes)], 'dropped.npz')); return transfer; }",
        list(walk(2)),
    )
    section.locator("#identify-drop").dispatch_event("drop", {"dataTransfer": payload})
    counter = section.locator("#identify-preview .counter")
    before = counter.inner_text()
    expect(counter).not_to_have_text(before)  # it plays
    section.get_by_role("button", name="Pause").click()
    assert lit(section.locator("#identify-preview canvas")) > 500
    section.get_by_role("button", name="Identify", exact=True).click()
    decision = section.locator(".decision")
    expect(decision.locator(".verdict")).to_have_text("Match")
    expect(decision.get_by_role("heading")).to_have_text("p2")
    expect(decision).to_contain_text("0.990, the model’s own")
    expect(page.locator("#announcer")).to_have_text("Match: p2")
    names = section.locator(".candidate h3")
    expect(names).to_have_text(["1. p2", "2. p1"])
    energy = section.get_by_alt_text("Gait energy image of p2")
    expect(energy).to_have_js_property("naturalWidth", 44)
    expect(section.locator(".candidate").first.locator(".parts .over")).to_have_count(4)
    expect(section.locator(".candidate").first).to_contain_text("Head to feet, 4 parts")
    section.get_by_role("button", name="Play the walk of p1").click()
    expect(section.get_by_role("img", name="the walk of p1", exact=True)).to_be_visible()
    assert page.url == f"{served.url}/#identify"  # nothing about anybody


def film(data: bytes, name: str = "hall.mp4", kind: str = "video/mp4") -> FilePayload:
    return {"name": name, "mimeType": kind, "buffer": data}


@cache
def people_crossing() -> list[np.ndarray]:
    """Pictures of two people who are never near each other."""
    return list(crossing((1, -60.0, 400.0), (3, 540.0, 80.0), frames=90))


def two_people() -> bytes:
    return encode(people_crossing())


def pixels(canvas: Locator) -> np.ndarray:
    """What a canvas shows, uint8 `[h, w, 3]`, red first."""
    data, rows, columns = canvas.evaluate(
        "canvas => [[...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)"
        ".data], canvas.height, canvas.width]"
    )
    return np.array(data, np.uint8).reshape(rows, columns, 4)[..., :3]


def is_drawn(canvas: Locator, track: dict[str, Any], colour: tuple[int, int, int]) -> bool:
    """Whether a person is shown where the walk begins: a box, a mask, both in a colour."""
    shown = pixels(canvas).astype(int)
    corners = np.array(track["outlines"][0]["points"], np.int32).reshape(-1, 2)
    left, right, bottom = corners[:, 0].min(), corners[:, 0].max(), corners[:, 1].max()
    box = (np.abs(shown[bottom, left:right] - colour).max(axis=1) < 3).mean()
    mask = cv2.fillPoly(np.zeros(shown.shape[:2], np.uint8), [corners], 255)
    inside = cv2.erode(mask, np.ones((7, 7), np.uint8)) > 0
    inside[: corners[:, 1].min() + 6] = False  # the number is there
    before = people_crossing()[round(track["from_s"] * 25)][..., ::-1].astype(int)
    off = np.abs(shown - (0.55 * before + 0.45 * np.array(colour)))[inside].mean()
    return bool(box > 0.9 and off < 8)


def test_of_several_people_in_a_video_one_is_chosen_enrolled_and_recognised(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    clip = two_people()
    section = opened(page, served, "enrol", gallery)
    section.locator("#enrol-file").set_input_files(film(clip))
    expect(section.locator("#enrol-preview video")).to_have_js_property("videoWidth", COLUMNS)
    section.get_by_label("Subject").fill("anna")
    with page.expect_response("**/enroll") as refused:
        section.get_by_role("button", name="Enrol", exact=True).click()
    tracks = refused.value.json()["tracks"]
    result = section.locator("#enrol-result")
    expect(result.get_by_role("heading", name="2 people walk in this footage")).to_be_visible()
    expect(page.locator("#announcer")).to_contain_text("choose one of 2")
    for number, track in enumerate(tracks, 1):
        item = result.locator(".people > li").nth(number - 1)
        expect(item).to_contain_text(f"{track['from_s']:.1f} to {track['to_s']:.1f} s")
        thumbnail = item.get_by_alt_text(f"Person {number} in the footage")
        expect(thumbnail).to_have_js_property("naturalWidth", 160)
        item.get_by_role("button", name=f"Show person {number} in the footage").click()
        expect(item).to_have_attribute("aria-current", "true")
        begins = result.get_by_role(
            "img", name=re.compile(f"{track['from_s']:.1f} s: .*n {number}")
        )
        expect(begins).to_be_visible()
        assert is_drawn(begins, track, ((76, 201, 240), (255, 183, 3))[number - 1])
    assert list(client.subjects(gallery=gallery)) == []
    canvas = result.locator(".footage canvas")
    left, top, width, height = tracks[1]["box"]
    place = canvas.bounding_box()
    assert place is not None
    scale = place["width"] / COLUMNS
    canvas.click(position={"x": (left + width / 2) * scale, "y": (top + height / 2) * scale})
    expect(result.get_by_role("button", name="Choose person 2")).to_be_focused()
    result.get_by_role("button", name="Play the footage").click()
    time = result.get_by_role("slider", name="Time in the footage")
    before = time.input_value()
    expect(time).not_to_have_value(before)
    result.get_by_role("button", name="Pause the footage").click()
    time.press("Home")
    expect(result.get_by_role("img", name="The footage at 0.0 s: nobody walks")).to_be_visible()
    result.get_by_role("button", name="Choose person 1").click()
    expect(result.get_by_role("heading", name="anna", exact=True)).to_be_visible()
    expect(result.locator(".verdict")).to_have_text("Enrolled")

    page.get_by_role("link", name="Identify").click()
    section = page.locator("#identify")
    section.locator("#identify-file").set_input_files(film(clip))
    section.get_by_role("button", name="Identify", exact=True).click()
    section.get_by_role("button", name="Choose person 1").click()
    decision = section.locator(".decision")
    expect(decision.locator(".verdict")).to_have_text("Match")
    first = tracks[0]
    expect(decision).to_contain_text(f"track {first['track']}; silhouettes by what moves")
    assert re.search(r"In the footage\s*\d\.\d to \d\.\d s, track", decision.inner_text())


def test_a_video_that_no_browser_plays_still_shows_its_people(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.npz", walk(1))], gallery=gallery)
    pictures = crossing((1, -60.0, 400.0), (3, 540.0, 80.0), frames=90)
    clip = encode(pictures, codec="mpeg4", container="avi")
    section = opened(page, served, "identify", gallery)
    section.locator("#identify-file").set_input_files(film(clip, "hall.avi", "video/x-msvideo"))
    section.get_by_label("Is it this person?").check()
    section.get_by_label("Subject").fill("anna")
    section.get_by_role("button", name="Verify").click()
    people = section.locator(".people img")
    expect(people).to_have_count(2)
    expect(people.first).to_have_js_property("naturalWidth", 160)
    expect(section.locator(".scene")).to_contain_text("This browser does not play the footage")
    section.get_by_role("button", name="Choose person 2").click()
    expect(section.locator(".decision")).to_contain_text("In the footage")


def test_a_job_s_walks_are_a_timeline_from_which_one_is_enrolled(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.mp4", encode(crossing((1, -60.0, 540.0), frames=75)))],
                  gallery=gallery)  # fmt: skip
    first = crossing((1, -60.0, 540.0), frames=75)
    clip = encode([*first, *[scene()] * 15, *crossing((3, -60.0, 540.0), frames=75)])
    section = opened(page, served, "jobs", gallery)
    section.get_by_text("Look through a long clip").click()
    form = section.locator("#footage-form")
    form.get_by_label("Clip", exact=True).set_input_files(film(clip))
    expect(form.get_by_label("Gallery to search")).to_have_value(gallery)
    form.get_by_role("button", name="Start").click()
    detail = section.locator("#job-detail")
    expect(detail.locator(".badge")).to_have_text("succeeded", timeout=120_000)
    expect(detail).to_contain_text("2 walks in 0:00:06")
    rows = detail.locator(".tracks > li")
    expect(rows).to_have_count(2)
    bars = detail.locator(".strip button")
    names = [bar.get_attribute("aria-label") or "" for bar in bars.all()]
    assert re.fullmatch(r"Track 1, 0:00:0\d\.\d to 0:00:0\d\.\d: anna", names[0])
    starts = [bar.evaluate("bar => bar.getBoundingClientRect().left") for bar in bars.all()]
    strip = rows.first.locator(".strip").bounding_box()
    assert strip is not None
    for bar, left in zip(bars.all(), starts, strict=True):
        from_s = float(bar.evaluate("bar => bar.style.getPropertyValue('--from')"))
        assert abs(left - strip["x"] - strip["width"] * from_s / 6.6) < 0.02 * strip["width"]

    bars.first.focus()
    page.keyboard.press("ArrowDown")
    expect(bars.nth(1)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    chosen = detail.locator(".decision").first
    expect(chosen.locator(".verdict")).to_have_text("Match")
    expect(chosen.locator(".candidate h3")).to_have_text(["1. anna"])
    expect(chosen.get_by_label("Subject")).to_have_value("anna")
    page.keyboard.press("Tab")
    bars.nth(1).click()
    chosen.get_by_label("Subject").fill("berta")
    chosen.get_by_role("button", name="Enrol this walk").click()
    again = chosen.get_by_role("button", name="Enrol anyway")
    enrolled = chosen.get_by_role("heading", name="berta")
    expect(again.or_(enrolled)).to_be_visible()
    if again.is_visible():
        again.click()
    expect(enrolled).to_be_visible()
    expect(chosen.get_by_role("button", name="Enrol this walk")).to_be_hidden()
    expect(bars.nth(1)).to_have_class(re.compile("enrolled"))
    assert {one.subject_id for one in client.subjects(gallery=gallery)} == {"anna", "berta"}


def test_a_clip_that_a_job_cannot_read_says_why(
    page: Page, served: Deployment, gallery: str
) -> None:
    section = opened(page, served, "jobs", gallery)
    section.get_by_text("Look through a long clip").click()
    section.locator("#footage-form").get_by_label("Clip", exact=True).set_input_files(
        film(b"no film")
    )
    section.locator("#footage-form").get_by_role("button", name="Start").click()
    detail = section.locator("#job-detail")
    expect(detail.locator(".badge")).to_have_text("failed", timeout=120_000)
    expect(detail.get_by_role("alert")).to_contain_text("no footage")


def test_footage_that_cannot_be_answered_says_what_to_do(
    page: Page, served: Deployment, gallery: str
) -> None:
    section = opened(page, served, "identify", gallery)
    section.locator("#identify-file").set_input_files(film(encode([scene()] * 40)))
    section.get_by_role("button", name="Identify", exact=True).click()
    alert = section.get_by_role("alert")
    expect(alert).to_contain_text("nobody was seen; send footage in which somebody walks")
    expect(alert).to_contain_text("nobody walks in full view: film somebody from head to feet")

    section.get_by_text("Options").click()
    section.get_by_label("What is in the file").select_option("silhouettes")
    section.get_by_role("button", name="Identify", exact=True).click()
    expect(alert).not_to_contain_text("nobody walks in full view")

    missing = {"type": "/problems/not-a-sequence", "title": "Not a sequence of silhouettes"}
    content = missing | {"status": 415, "detail": str(MissingWeights())}
    page.route("**/identify", lambda route: route.fulfill(
        status=415, body=json.dumps(content), content_type="application/problem+json"))  # fmt: skip
    section.get_by_role("button", name="Identify", exact=True).click()
    expect(alert).to_contain_text("two networks that are not installed")
    expect(alert).to_contain_text("python -m models.footage")


def test_a_threshold_of_ones_own_decides_and_a_person_can_be_verified(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.npz", walk(1))], gallery=gallery)
    section = opened(page, served, "identify", gallery)
    section.locator("#identify-file").set_input_files(npz(3))
    section.get_by_text("Options").click()
    section.get_by_label("Threshold").fill("1")
    section.get_by_role("button", name="Identify", exact=True).click()
    decision = section.locator(".decision")
    expect(decision.locator(".verdict")).to_have_text("No match")
    expect(decision).to_contain_text("The most similar person is anna, below the threshold.")
    expect(decision).to_contain_text("1.000, yours")

    section.get_by_label("Is it this person?").check()
    section.get_by_label("Subject").fill("anna")
    section.get_by_label("Threshold").fill("0.5")
    section.locator("#identify-file").set_input_files(npz(1))
    section.get_by_role("button", name="Verify").click()
    expect(decision.locator(".verdict")).to_have_text("Verified")
    expect(section.locator(".candidate")).to_have_count(1)


def test_an_empty_gallery_says_so(page: Page, served: Deployment, gallery: str) -> None:
    section = opened(page, served, "identify", gallery)
    section.locator("#identify-file").set_input_files(npz(1))
    section.get_by_role("button", name="Identify", exact=True).click()
    expect(section.locator(".decision")).to_contain_text(
        f"Nobody is enrolled in the gallery {gallery}"
    )


def test_a_refusal_says_which_file_and_what_to_do(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    section = opened(page, served, "enrol", gallery)
    section.get_by_label("Subject").fill("anna")
    section.locator("#enrol-file").set_input_files([npz(1), file_of(b"Dear diary", "diary.txt")])
    section.get_by_role("button", name="Enrol", exact=True).click()
    alert = section.get_by_role("alert")
    expect(alert).to_contain_text("diary.txt")
    expect(alert).to_contain_text("send a zip or tar of images")
    assert list(client.subjects(gallery=gallery)) == []


def test_a_walk_that_may_be_somebody_else_s_is_asked_about_and_enrolled_when_meant(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.npz", walk(1))], gallery=gallery, metadata={"view": "000"})
    section = opened(page, served, "enrol", gallery)
    section.get_by_label("Subject").fill("bert")
    section.get_by_label("View").fill("090")
    section.locator("#enrol-file").set_input_files(npz(1))
    section.get_by_role("button", name="Enrol", exact=True).click()
    alert = section.get_by_role("alert")
    expect(alert).to_contain_text("is enrolled already as anna")
    expect(alert).to_contain_text("Similarity to anna: 1.000; to bert: nothing to compare with")
    expect(alert.get_by_alt_text("Gait energy image of anna")).to_have_js_property(
        "naturalWidth", 44
    )
    assert [one.subject_id for one in client.subjects(gallery=gallery)] == ["anna"]
    alert.get_by_role("button", name="Enrol anyway").click()
    result = section.locator("#enrol-result")
    expect(result.locator(".verdict")).to_have_text("Enrolled")
    expect(result.locator(".coverage")).to_contain_text("Covered: 1 walk; views 090.")
    expect(result.locator(".coverage")).to_contain_text("Enrol another walk")
    expect(result.locator(".coverage")).to_contain_text("Others here also have views: 000.")
    expect(result).to_contain_text("may be somebody who is enrolled already")

    section.locator("#enrol-file").set_input_files(npz(1))
    section.get_by_role("button", name="Enrol", exact=True).click()
    expect(result.locator(".verdict")).to_have_text("Already enrolled")
    expect(result.locator(".walks .badge")).to_have_text("already enrolled")
    assert [one.sequences for one in client.subjects(gallery=gallery)] == [1, 1]


def test_an_audit_lists_who_may_be_one_person_and_leads_to_them(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.npz", walk(1))], gallery=gallery)
    client.enroll("bert", [("a.npz", walk(1))], gallery=gallery, accept_conflict=True)
    section = opened(page, served, "gallery", gallery)
    section.get_by_role("button", name="Audit this gallery").click()
    found = section.locator("#audit-result")
    pairs = found.locator("table").filter(has_text="Subjects who may be one person: 1")
    expect(pairs.locator("tbody td")).to_have_text(["anna", "bert", "1.000"], timeout=60_000)
    expect(found).to_contain_text("Walks that are nearer to another person: 2")
    pairs.get_by_role("link", name="bert").click()
    detail = section.locator("#subject-detail")
    expect(detail.get_by_role("heading", name="bert")).to_be_visible()
    expect(detail.locator(".coverage")).to_contain_text("Say the view with each walk")

    page.get_by_role("link", name="Jobs").click()
    page.locator("#job-list tbody tr").first.get_by_role("link").click()
    audit = page.locator("#job-detail .audit")
    expect(audit).to_contain_text("Subjects who may be one person: 1")
    page.locator("#gallery-choice").select_option("default")  # not the one that was audited
    audit.get_by_role("link", name="bert").first.click()
    expect(page.get_by_role("heading", name="bert")).to_be_visible()
    expect(page.locator("#gallery-choice")).to_have_value(gallery)


def test_zips_play_and_a_damaged_one_says_why_not(page: Page, served: Deployment) -> None:
    section = opened(page, served, "identify")
    preview = section.locator("#identify-preview")
    whole = zipped(1)
    section.locator("#identify-file").set_input_files(whole)
    expect(preview.locator(".counter")).to_contain_text("/ 40")
    damaged = file_of(whole["buffer"][:4000], "cut.zip")
    section.locator("#identify-file").set_input_files(damaged)
    expect(preview).to_contain_text("It cannot be played: not a zip.")
    section.locator("#identify-file").set_input_files(file_of(b"\x1f\x8b rest", "walk.tar.gz"))
    expect(preview).to_contain_text("This kind of file is not played here")


def test_a_gallery_is_paged_and_an_erasure_is_confirmed_and_shows_its_receipt(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    for number in range(14):
        client.enroll(
            f"p{number:02}", [("a.npz", walk(number))], gallery=gallery, accept_conflict=True
        )
    client.enroll(
        "p13",
        [("b.npz", walk(13, phase=0.7))],
        gallery=gallery,
        metadata={"note": "<img src=x onerror=document.title='hacked'>"},
        accept_conflict=True,
    )
    section = opened(page, served, "gallery", gallery)
    expect(section.locator("#gallery-summary")).to_contain_text("Subjects14Walks15")
    rows = section.locator("#subject-list tbody tr")
    expect(rows).to_have_count(12)
    section.get_by_role("button", name="Next").click()
    expect(rows).to_have_count(2)
    expect(section.get_by_role("button", name="Next")).to_be_disabled()
    section.get_by_role("button", name="Previous").click()
    expect(rows).to_have_count(12)

    section.get_by_label("Go to a subject").fill("p13")
    section.get_by_role("button", name="Show").click()
    detail = section.locator("#subject-detail")
    expect(detail.locator(".walks > li")).to_have_count(2)
    expect(detail).to_contain_text("note <img src=x onerror")  # text, never markup
    expect(detail.get_by_alt_text("Gait energy image of walk 1")).to_have_js_property(
        "naturalWidth", 44
    )
    dialog = page.get_by_role("dialog")
    detail.get_by_role("button", name="Delete subject").click()
    expect(dialog).to_contain_text("All 2 walks")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert "p13" in [subject.subject_id for subject in client.subjects(gallery=gallery)]
    detail.get_by_role("button", name="Delete subject").click()
    dialog.get_by_role("button", name="Delete").click()
    receipt = section.locator("#gallery-receipt")
    expect(receipt).to_contain_text("Subjects1Walks2Embeddings2")
    expect(section.locator("#gallery-summary")).to_contain_text("Subjects13Walks13")
    receipt.get_by_text("The receipt as the service gave it").click()
    assert json.loads(receipt.locator("pre").inner_text())["subject_id"] == "p13"
    assert "p13" not in [subject.subject_id for subject in client.subjects(gallery=gallery)]
    assert "hacked" not in page.title()


def test_what_is_enrolled_is_corrected_and_people_have_names(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    for person, subject in enumerate(("anna", "bert", "carl"), 1):
        client.enroll(
            subject, [("a.npz", walk(person))], gallery=gallery, accept_conflict=True,
            metadata={"camera": "north"},
        )  # fmt: skip
    section = opened(page, served, "gallery", gallery)
    detail, rows = section.locator("#subject-detail"), section.locator("#subject-list tbody th")
    rows.get_by_role("link", name="anna").click()

    def correct(where: Locator, label: str, value: str, button: str) -> None:
        where.get_by_text("Correct", exact=True).first.click()
        where.get_by_label(label, exact=True).first.fill(value)
        where.get_by_role("button", name=button, exact=True).first.click()

    correct(detail, "Name", "Ánna <b>李", "Save name")
    expect(detail.get_by_role("heading", name="anna Ánna <b>李")).to_be_visible()
    expect(rows.first).to_have_text("anna Ánna <b>李")
    walks = detail.locator(".walks > li").first
    correct(walks, "View", "090", "Save")
    expect(detail.locator(".coverage")).to_contain_text("views 090")
    expect(walks).to_contain_text("camera north, view 090")
    correct(detail, "Id", "bert", "Rename")
    expect(detail.get_by_role("alert")).to_contain_text("is enrolled already")
    detail.get_by_label("Id", exact=True).fill("a-1")
    detail.get_by_role("button", name="Rename").click()
    expect(rows).to_have_text(["a-1 Ánna <b>李", "bert", "carl"])
    correct(walks, "Walk of", "bert", "Move")
    expect(rows).to_have_text(["bert", "carl"])
    expect(detail.locator(".walks > li")).to_have_count(2)
    correct(detail, "The same person as", "carl", "Merge …")
    page.get_by_role("dialog").get_by_role("button", name="Merge").click()
    expect(rows).to_have_text(["carl"])
    expect(detail.locator(".walks > li")).to_have_count(3)

    client.edit_subject("carl", gallery=gallery, display_name="Carl")
    section = opened(page, served, "identify", gallery)
    section.locator("#identify-file").set_input_files(npz(1))
    section.get_by_role("button", name="Identify").click()
    expect(section.locator(".decision h2")).to_have_text("carl Carl")
    expect(section.locator(".candidate h3")).to_have_text("1. carl Carl")


def test_a_gallery_chosen_while_the_page_still_reads_stays_chosen(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.npz", walk(1))], gallery=gallery)
    opened(page, served, "enrol")
    slow: list[Reply] = []
    page.route("**/galleries?*", lambda reply: slow.append(reply))
    page.get_by_role("link", name="Gallery").click()
    page.locator("#gallery-choice").select_option(gallery)
    expect(page.locator("#gallery-summary[aria-busy]")).to_be_attached()
    expect(page.locator("#calibration-form")).to_have_attribute("inert", "")  # is still another's
    page.unroute("**/galleries?*")  # which lets those that wait go on
    assert slow
    expect(page.locator("#calibration-form:not([inert])")).to_be_attached()
    section = page.locator("#gallery")
    expect(section.locator("#gallery-summary")).to_contain_text(f"Gallery{gallery}")
    expect(section.locator("#subject-list tbody th")).to_have_text(["anna"])
    expect(page.locator("#gallery-choice")).to_have_value(gallery)


def test_a_gallery_is_calibrated_and_its_curve_says_what_other_rates_would_ask_for(
    page: Page, served: Deployment, gallery: str
) -> None:
    enrol_crowd(served, gallery, 24)
    section = opened(page, served, "gallery", gallery)
    expect(section.locator("#gallery-summary")).to_contain_text(f"Gallery{gallery}")
    card = section.locator("#calibration-card")
    expect(card).to_contain_text("Not calibrated: the model’s own threshold decides")
    target = card.get_by_label("Strangers matched, at most")
    expect(target).to_have_value("0.01")
    target.select_option("10 %")
    card.get_by_role("button", name="Calibrate").click()
    expect(card.get_by_role("status")).to_contain_text("Calibrated: the threshold is")
    point = shown_gallery(served, gallery)["operating_point"]
    assert point["target_fpir"] == 0.1
    threshold = f"{point['threshold']:.4f}"
    expect(card).to_contain_text(
        f"At most 10 % of people who are not enrolled reach a similarity of {threshold}"
    )
    expect(section.locator("#gallery-summary")).to_contain_text(f"{threshold}, calibrated for 10 %")
    expect(card).to_contain_text("24 people, 72 walks")
    picture = card.locator("svg.thresholds")
    expect(picture.locator("circle")).to_have_count(4)  # so few people show nothing below 1 %
    expect(picture.locator("circle.chosen")).to_have_count(1)
    expect(picture.locator("text.chosen")).to_have_text("10 %")
    expect(picture).to_have_attribute(
        "aria-label", re.compile(f"{point['threshold']:.3f} for 10 %")
    )
    heights = picture.locator("circle").evaluate_all(
        "all => all.map((one) => Number(one.getAttribute('cy')))"
    )
    assert heights == sorted(heights, reverse=True)  # the rarer, the higher up
    low, high = point["interval"]
    expect(card.locator("tr[aria-current]")).to_have_text(
        f"10 %{point['threshold']:.3f}{low:.3f} – {high:.3f}extended from here"
    )

    page.get_by_role("link", name="Jobs").click()
    page.locator("#job-list tbody tr").first.get_by_role("link").click()
    expect(page.locator("#job-detail svg.thresholds circle")).to_have_count(4)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"gallery_subjects": 9}, "There were 9 people when this was measured, and there are 24"),
        ({"digest": "another"}, "another than the one this was measured with"),
    ],
    ids=["grown", "another-model"],
)
def test_a_calibration_that_is_out_of_date_says_why(
    page: Page, served: Deployment, gallery: str, change: dict[str, Any], why: str
) -> None:
    enrol_crowd(served, gallery, 24)
    digest = shown_gallery(served, gallery)["model"]["digest"]
    point = {
        "threshold": 0.71, "interval": None, "confidence": 0.95, "method": "observed",
        "target_fpir": 0.02, "gallery_subjects": 24, "gallery_sequences": 72, "digest": digest,
        "calibrated_at": "2026-11-22T12:19:08Z", "rerun": {"subjects": 24, "digest": digest},
    }  # fmt: skip
    engine = open_database(f"sqlite:///{served.data / 'gaitid.sqlite'}")
    with Session(writing(engine)) as session, session.begin():
        session.execute(
            update(GalleryRow)
            .where(GalleryRow.name == gallery)
            .values(operating_point={**point, **change})
        )
    engine.dispose()
    section = opened(page, served, "gallery", gallery)
    card = section.locator("#calibration-card")
    expect(card.locator(".notice")).to_contain_text(why)
    expect(card).to_contain_text("Calibrate again to see what other rates would ask for.")
    expect(card.get_by_label("Strangers matched, at most")).to_have_value("0.02")
    expect(section.locator("#gallery-summary")).to_contain_text("2 % of strangers, out of date")


def test_a_gallery_that_cannot_be_calibrated_says_what_it_takes(
    page: Page, served: Deployment, gallery: str
) -> None:
    enrol_crowd(served, gallery, 2)
    section = opened(page, served, "gallery", gallery)
    card = section.locator("#calibration-card")
    card.get_by_role("button", name="Calibrate").click()
    expect(card.get_by_role("alert")).to_contain_text("enrol 20 subjects")
    expect(card.get_by_role("button", name="Calibrate")).to_be_enabled()


def test_how_long_walks_are_kept_is_shown_and_a_shorter_time_is_confirmed(
    page: Page, served: Deployment, gallery: str
) -> None:
    section = opened(page, served, "gallery", gallery)
    summary = section.locator("#gallery-summary")
    expect(summary).to_contain_text("until somebody erases them")
    section.get_by_text("Retention, export, import, deletion").click()
    days = section.get_by_label("Days after the enrolment")
    days.fill("90")
    section.get_by_role("button", name="Save", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Keep walks for 90 days only?")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert shown_gallery(served, gallery)["max_age_days"] is None
    section.get_by_role("button", name="Save", exact=True).click()
    dialog.get_by_role("button", name="Erase what is older").click()
    expect(summary).to_contain_text("for 90 days")
    assert shown_gallery(served, gallery)["max_age_days"] == 90
    days.fill("")  # kept longer, so nothing is asked
    section.get_by_role("button", name="Save", exact=True).click()
    expect(summary).to_contain_text("until somebody erases them")
    assert shown_gallery(served, gallery)["max_age_days"] is None


def test_a_gallery_is_saved_as_a_file_and_brought_in_again(
    page: Page, served: Deployment, client: Client, gallery: str, tmp_path: Path
) -> None:
    client.enroll("anna", [("a.npz", walk(1)), ("b.npz", walk(1, phase=0.7))], gallery=gallery)
    section = opened(page, served, "gallery", gallery)
    section.get_by_text("Retention, export, import, deletion").click()
    with page.expect_download() as saved:
        section.get_by_role("button", name="Export").click()
    assert saved.value.suggested_filename == f"{gallery}.zip"
    file = tmp_path / "saved (1).zip"
    saved.value.save_as(file)
    expect(section.locator("#export-problem")).to_contain_text(f"{gallery}.zip, 0.")

    section.get_by_label("Gallery file").set_input_files(file)
    name = section.get_by_label("Name of the imported gallery")
    expect(name).to_have_value("saved")
    name.fill(gallery)
    section.get_by_role("button", name="Import").click()
    result = section.locator("#import-result")
    expect(result.get_by_role("alert")).to_contain_text("exists")
    name.fill(f"{gallery[:50]}-again")
    section.get_by_role("button", name="Import").click()
    expect(result).to_contain_text("1 person, 2 walks. The walks have new ids")
    expect(page.locator("#gallery-choice")).to_have_value(f"{gallery[:50]}-again")
    expect(section.locator("#gallery-summary")).to_contain_text("Subjects1Walks2")

    cut = file_of(file.read_bytes()[:3000], "cut.zip")
    section.get_by_label("Gallery file").set_input_files(cut)
    section.get_by_role("button", name="Import").click()
    expect(result.get_by_role("alert")).to_be_visible()
    expect(page.locator("#gallery-choice option", has_text="cut")).to_have_count(0)


def test_a_receipt_names_the_models_that_learned_from_who_is_erased(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.npz", walk(1)), ("b.npz", walk(1, phase=0.7))], gallery=gallery)
    job = client.distill(
        recipe="demo", name="learned", dataset={"gallery": gallery}, teachers=["default"]
    )
    list(client.follow(job.id))
    assert client.job(job.id).status == "succeeded"
    section = opened(page, served, "gallery", gallery)
    section.get_by_role("link", name="anna").click()
    section.get_by_role("button", name="Delete subject").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    receipt = section.locator("#gallery-receipt")
    expect(receipt).to_contain_text("A model has learned from anna")
    expect(receipt.locator("li")).to_have_text(["learned"])
    receipt.get_by_role("link", name="See the models").click()
    expect(page.get_by_role("heading", name="learned", exact=True)).to_be_visible()


def enrol_crowd(served: Deployment, gallery: str, people: int) -> None:
    """Enrol by made-up embeddings, straight into the database: real walks of so many take long."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((people, 1, 4, 16))  # as the tiny model has parts and channels
    crowd = (centres + 0.3 * rng.standard_normal((people, 3, 4, 16))).astype(np.float32)
    digest = shown_gallery(served, gallery)["model"]["digest"]
    engine = open_database(f"sqlite:///{served.data / 'gaitid.sqlite'}")
    for number, walks in enumerate(crowd):
        add(GalleryStore(engine), gallery, f"p{number}", map(made_walk, walks), digest)
    engine.dispose()


def shown_gallery(served: Deployment, gallery: str) -> Any:
    return httpx.get(f"{served.url}/galleries/{gallery}").raise_for_status().json()


def test_a_distillation_draws_its_curve_and_makes_a_model(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.npz", walk(1)), ("b.npz", walk(1, phase=0.7))], gallery=gallery)
    section = opened(page, served, "jobs", gallery)
    start_distillation(section, gallery, "from-the-page", steps=60)
    detail = section.locator("#job-detail")
    expect(detail.locator("polyline")).to_be_attached(timeout=30_000)
    expect(detail.locator(".badge")).to_have_text("succeeded", timeout=60_000)
    points = detail.locator("polyline").get_attribute("points")
    assert points is not None
    job = next(
        job for job in client.jobs() if job.result and job.result["model"] == "from-the-page"
    )
    events = [event for event in client.follow(job.id) if event.kind == "progress"]
    assert len(points.split()) == len(events) > 1
    expect(detail.locator(".curve")).to_have_attribute(
        "aria-label", "loss over steps: 0.0167 at step 60"
    )
    expect(section.locator("#job-list tbody tr").first).to_contain_text("distill from-the-page")
    detail.get_by_role("link", name="See the models").click()
    models = page.locator("#models")
    expect(models.get_by_role("heading", name="from-the-page")).to_be_visible()
    made = models.locator("article").filter(has_text="from-the-page")
    expect(made).not_to_contain_text("Active in")
    # A copy of its teacher, so there is nothing to change.
    made.get_by_role("button", name=f"Activate in {gallery}").click()
    expect(models.get_by_role("alert")).to_contain_text("active")
    made.get_by_role("button", name="Remove from-the-page").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(made).to_have_count(0)


def test_a_checkpoint_is_added_activated_compared_and_taken_back(
    page: Page, served: Deployment, client: Client, gallery: str, tmp_path: Path
) -> None:
    for person in range(3):
        walks = [("a.npz", walk(person)), ("b.npz", walk(person, phase=0.7))]
        client.enroll(f"p{person}", walks, gallery=gallery, accept_conflict=True)
    save_tiny_model(tmp_path / "other", seed=7)
    section = opened(page, served, "models", gallery)
    active = section.locator("#active-model")
    expect(active).to_contain_text(f"The gallery {gallery} is searched with default.")
    expect(active.get_by_role("button")).to_have_count(0)  # there is nothing to go back to

    section.get_by_text("Add a model").click()
    section.get_by_label("Name of the model").fill("other")
    section.get_by_label("Weights").set_input_files(tmp_path / "other" / "weights.safetensors")
    section.get_by_label("Card").set_input_files(file_of(b"{}", "card.json"))
    section.get_by_role("button", name="Add", exact=True).click()
    expect(section.get_by_role("alert")).to_contain_text("not a checkpoint that can serve")
    section.get_by_label("Card").set_input_files(tmp_path / "other" / "card.json")
    section.get_by_role("button", name="Add", exact=True).click()
    expect(section.locator("#checkpoint-result")).to_contain_text("Added other.")

    card = section.locator("article").filter(has=page.get_by_role("heading", name="other"))
    card.get_by_text("Details").click()
    expect(card).to_contain_text("Compared bycosine")
    card.get_by_role("button", name=f"Activate in {gallery}").click()
    outcome = section.locator("#activation-result")
    expect(outcome).to_contain_text(f"{gallery} now uses other instead of default.")
    expect(outcome.locator(".share")).to_have_count(2)
    expect(outcome.locator(".comparison")).to_contain_text("6 walks of 3 people")
    expect(outcome.locator(".comparison")).to_contain_text("Same first answer")
    expect(active).to_contain_text("is searched with other.")
    expect(card).to_contain_text(f"Active in the gallery {gallery}.")
    expect(card.get_by_role("button")).to_have_count(0)  # neither again nor away
    assert shown_gallery(served, gallery)["model"]["name"] == "other"

    active.get_by_role("button", name="Go back to default").click()
    expect(active).to_contain_text("is searched with default.")
    expect(outcome).to_contain_text(f"{gallery} now uses default instead of other.")
    assert shown_gallery(served, gallery)["model"]["name"] == "default"

    page.get_by_role("link", name="Jobs").click()
    rows = page.locator("#job-list tbody tr")
    rows.filter(has_text="activate other").get_by_role("link").click()
    expect(page.locator("#job-detail .comparison")).to_contain_text("6 walks of 3 people")


def test_a_distillation_says_whether_the_new_model_is_better(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.npz", walk(1)), ("b.npz", walk(1, phase=0.7))], gallery=gallery)
    section = opened(page, served, "jobs", gallery)
    section.get_by_label("Activate it in that gallery, if it is better").check()
    start_distillation(section, gallery, "maybe-better", steps=5)
    detail = section.locator("#job-detail")
    expect(detail).to_contain_text("It is not activated", timeout=2 * PATIENCE_MS)
    expect(detail).to_contain_text("10 are needed to show anything")
    expect(detail.locator("polyline")).to_be_attached()
    assert shown_gallery(served, gallery)["model"]["name"] == "default"


def test_an_evaluation_is_asked_for_by_a_protocol_or_by_conditions_of_ones_own(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    section = opened(page, served, "jobs", gallery)
    section.get_by_text("Evaluate a model").click()
    form = section.locator("#evaluate-form")
    protocol, start = form.get_by_label("Protocol"), form.get_by_role("button", name="Start")
    expect(protocol.locator("option")).to_contain_text(["casia-b", "ou-mvlp", "of your own"])
    expect(protocol).to_have_value("cross-view")
    expect(form.get_by_label("Enrolled", exact=True)).to_be_hidden()
    form.get_by_label("Walks of the gallery").select_option(gallery)
    protocol.select_option("conditions of your own")
    start.click()  # which the browser refuses: both must be filled in
    form.get_by_label("Enrolled", exact=True).fill("nm-*")
    form.get_by_label("Asked, by name").fill("coat=cl-01,cl-* bg-01")
    dataset = {"model": "default", "dataset": {"gallery": gallery}}
    asked = {"coat": ["cl-01", "cl-*"], "bg-01": ["bg-01"]}
    conditions = {"enrolled": ["nm-*"], "asked": asked, "apart": 0}
    with page.expect_response("**/jobs/evaluate") as answer:
        start.click()
    assert answer.value.request.post_data_json == {**dataset, "conditions": conditions}
    client.cancel(answer.value.json()["id"])
    protocol.select_option("first-walk")
    expect(form.get_by_label("Enrolled", exact=True)).to_be_hidden()
    with page.expect_response("**/jobs/evaluate") as answer:
        start.click()
    assert answer.value.request.post_data_json == {**dataset, "protocol": "first-walk"}
    client.cancel(answer.value.json()["id"])


def start_distillation(section: Locator, gallery: str, name: str, *, steps: int) -> None:
    form = section.locator("#distill-form")
    form.get_by_label("Name of the new model").fill(name)
    form.get_by_label("Walks of the gallery").select_option(gallery)
    form.get_by_label("default", exact=True).check()
    form.get_by_label("Steps").fill(str(steps))
    form.get_by_role("button", name="Start").click()


def test_a_running_job_is_cancelled(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.npz", walk(1))], gallery=gallery)
    section = opened(page, served, "jobs", gallery)
    start_distillation(section, gallery, "never", steps=100_000)
    detail = section.locator("#job-detail")
    expect(detail.locator("polyline")).to_be_attached(timeout=30_000)
    detail.get_by_role("button", name="Cancel").click()
    expect(detail.locator(".badge")).to_have_text("cancelled", timeout=30_000)
    expect(detail.get_by_role("button", name="Cancel")).to_be_hidden()
    expect(section.locator("#job-list tbody tr").first).to_contain_text("cancelled")


def test_the_list_of_jobs_stands_beside_the_forms_and_says_when_each_was_asked_for(
    page: Page, served: Deployment, gallery: str
) -> None:
    with Client(served.url) as client:
        client.reindex(gallery=gallery)
    section = opened(page, served, "jobs", gallery)
    expect(section.get_by_role("columnheader", name="Created")).to_be_visible()
    form = section.locator("details.card").first.bounding_box()
    jobs = section.locator(".result > .card").bounding_box()
    assert form is not None
    assert jobs is not None
    assert form["y"] == jobs["y"]


def test_a_refused_job_says_which_field(page: Page, served: Deployment, gallery: str) -> None:
    section = opened(page, served, "jobs", gallery)
    section.get_by_label("Recipe").fill("nowhere")
    start_distillation(section, gallery, "never", steps=3)
    expect(section.get_by_role("alert")).to_contain_text("nowhere")


def test_what_the_service_cannot_do_is_not_offered(
    page: Page, served: Deployment, gallery: str
) -> None:
    paths = httpx.get(f"{served.url}/openapi.json").json()["paths"]
    section = opened(page, served, "jobs", gallery)
    expect(section.get_by_text("Calibrate a gallery")).to_be_visible(
        visible="/jobs/calibrate" in paths
    )
    without = {"info": {"version": "0"}, "components": {"schemas": {}}, "paths": {}}
    page.route("**/openapi.json", lambda reply: reply.fulfill(json=without))
    page.reload()
    expect(section.get_by_role("heading", name="All jobs")).to_be_visible()
    expect(page.locator("#version")).to_have_text("0")
    expect(section.get_by_text("Calibrate a gallery")).to_be_hidden()


def test_a_broken_stream_of_events_is_taken_up_after_the_last_event(
    page: Page, served: Deployment, client: Client, gallery: str
) -> None:
    client.enroll("anna", [("a.npz", walk(1))], gallery=gallery)
    job = client.distill(
        recipe="demo",
        name="resumed",
        dataset={"gallery": gallery},
        teachers=["default"],
        overrides={"steps": 8, "seconds": 0.3},
    )
    events = list(client.follow(job.id))
    asked: list[str | None] = []

    def break_the_first(reply: Reply, request: Request) -> None:
        asked.append(request.headers.get("last-event-id"))
        if len(asked) > 1:
            reply.continue_()
            return
        begun = "".join(
            f"id: {event.sequence}\r\nevent: {event.kind}\r\ndata: {json.dumps(event.data)}\r\n\r\n"
            for event in events[:5]
        )
        reply.fulfill(content_type="text/event-stream", body=begun + "id: 6\r\nevent: pro")

    page.route("**/events", break_the_first)
    section = opened(page, served, "jobs", gallery)
    section.locator(f"[data-job='{job.id}']").get_by_role("link").click()
    detail = section.locator("#job-detail")
    expect(detail.locator(".badge")).to_have_text("succeeded")
    progress = [event.data["step"] for event in events if event.kind == "progress"]
    assert len(progress) >= 3
    # One point a progress event, none lost and none twice, once the second stream has been read.
    each_once = re.compile(rf"^\S+( \S+){{{len(progress) - 1}}}$")
    expect(detail.locator("polyline")).to_have_attribute("points", each_once)
    assert asked == [None, str(events[4].sequence)]


def test_a_service_with_keys_is_usable_and_the_key_stays_in_the_tab(
    page: Page, tmp_path: Path, shipped: Path
) -> None:
    deployment = Deployment(tmp_path, shipped)
    deployment.start().enroll("anna", [("a.npz", walk(1))])
    try:
        engine = open_database(f"sqlite:///{deployment.data / 'gaitid.sqlite'}")
        _, token = create_key(engine, [Scope.ADMIN], "page")
        _, reader = create_key(engine, [Scope.IDENTIFY], "reader")
        engine.dispose()
        page.goto(f"{deployment.url}/#gallery")
        dialog = page.get_by_role("dialog", name="API key")
        expect(dialog).to_be_visible()  # asked for, because the service wants one
        dialog.get_by_label("Key").fill("gid_wrong")
        page.keyboard.press("Enter")
        expect(page.locator("#service-problem").get_by_role("alert")).to_contain_text("keys add")
        expect(dialog).to_be_visible()
        dialog.get_by_label("Key").fill(token)
        page.keyboard.press("Enter")
        page.get_by_role("link", name="anna").click()
        image = page.get_by_alt_text("Gait energy image of walk 1 of anna")
        expect(image).to_have_js_property("naturalWidth", 44)
        kept = page.evaluate("() => [JSON.stringify(localStorage), document.cookie, location.href]")
        assert kept == ["{}", "", f"{deployment.url}/#gallery/default/anna"]

        page.get_by_role("button", name="API key").click()
        dialog.get_by_label("Key").fill(reader)
        page.keyboard.press("Enter")
        page.get_by_role("link", name="Jobs").click()
        refusal = page.locator("#jobs-problem").get_by_role("alert")
        expect(refusal).to_contain_text("a key with the scope `jobs`")
        page.get_by_role("button", name="API key").click()
        dialog.get_by_role("button", name="Forget").click()
        expect(dialog).to_be_visible()  # and asked for again
        assert page.evaluate("() => sessionStorage.length") == 0
    finally:
        deployment.stop()


def test_the_keyboard_reaches_everything_and_shows_where_it_is(
    page: Page, served: Deployment
) -> None:
    page.goto(served.url)
    expect(page.locator("#ready")).to_have_text("ready, model default")
    reached = []
    for _ in range(12):
        page.keyboard.press("Tab")
        focused = page.locator(":focus-visible")
        assert focused.evaluate("one => getComputedStyle(one).outlineStyle") != "none"
        reached.append(focused.evaluate("one => one.id || one.textContent.trim() || one.name"))
    assert reached[:7] == [
        "Skip to the content", "Identify", "Enrol", "Gallery", "Jobs", "Models", "gallery-choice",
    ]  # fmt: skip
    assert {"key-button", "identify-file", "question", "Options", "Identify"} <= set(reached[7:])
    page.get_by_role("link", name="Models").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Models", level=1)).to_be_focused()


@pytest.mark.parametrize(("scheme", "phone"), [("light", PHONES[0]), ("dark", PHONES[1])])
def test_nothing_is_wider_than_a_phone(
    browser: Browser, served: Deployment, client: Client, scheme: str, phone: ViewportSize
) -> None:
    client.enroll("somebody-with-a-rather-long-name@example.org", [("a.npz", walk(1))])
    context = browser.new_context(viewport=phone, color_scheme=scheme, has_touch=True)  # type: ignore[arg-type]
    page = context.new_page()
    for section in SECTIONS:
        opened(page, served, section)
        if section == "gallery":
            page.get_by_text("Retention, export, import, deletion").click()
            page.get_by_role("link", name="somebody-with").click()
            expect(page.locator("#subject-detail canvas").first).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= phone["width"]
        last = page.get_by_role("link", name="Models").bounding_box()
        assert last is not None
        assert last["x"] + last["width"] <= phone["width"]
    ground = page.locator("body").evaluate("body => getComputedStyle(body).backgroundColor")
    assert (ground == "rgb(16, 23, 26)") == (scheme == "dark")
    context.close()


def test_a_service_that_has_gone_is_said_to_be(page: Page, deployment: Deployment) -> None:
    deployment.start()
    section = opened(page, deployment, "models")
    deployment.stop()
    section.page.get_by_role("link", name="Gallery").click()
    expect(page.locator("#subject-list").get_by_role("alert")).to_contain_text("cannot be reached")
