from __future__ import annotations

import base64

import cv2
import httpx
import numpy as np
import pytest

from models.footage.weights import installed
from tests.models.footage.clips import COLUMNS, crossing, encode, photos, scene, still
from tests.service.requests import enrol, identify, verify
from tests.service.server import Serve

THROUGH = (-60.0, COLUMNS + 60.0)
BACK = (COLUMNS + 60.0, -60.0)


def one(person: int = 1, *, masks: bool = False) -> bytes:
    return encode(crossing((person, *THROUGH), frames=75, masks=masks))


def refused(answer: httpx.Response, status: int, slug: str) -> dict[str, object]:
    assert answer.status_code == status, answer.text
    body: dict[str, object] = answer.json()
    assert body["type"] == f"/problems/{slug}"
    return body


def test_one_walker_in_footage_is_enrolled_identified_and_verified(serve: Serve) -> None:
    client = serve(segmenter="background")
    answer = enrol(client, "anna", one(1))
    assert answer.status_code == 201, answer.text
    enrol(client, "berta", one(3))
    body = identify(client, one(1)).json()
    assert body["candidates"][0]["subject_id"] == "anna"
    probe = body["probe"]
    assert (probe["input"], probe["segmenter"]) == ("footage", "background")
    assert 0 < probe["from_s"] < 1.5 < probe["to_s"] < 3
    assert probe["frames"] > 20
    verified = verify(client, "anna", one(1)).json()
    assert verified["probe"]["input"] == "footage"
    assert verified["similarity"] == pytest.approx(body["candidates"][0]["similarity"], abs=0.02)


def test_several_people_are_listed_and_one_of_them_can_be_chosen(serve: Serve) -> None:
    client = serve(segmenter="background")
    both = encode(crossing((1, -60.0, 400.0), (3, 540.0, 80.0), frames=90))
    body = refused(identify(client, both), 422, "several-people")
    assert body["errors"] == [{"where": "sequence probe.npz", "reason": "several_people"}]
    tracks = body["tracks"]
    assert isinstance(tracks, list)
    assert len(tracks) == 2
    for track in tracks:
        assert set(track) == {"track", "from_s", "to_s", "box", "outlines", "thumbnail"}
        times = [outline["at_s"] for outline in track["outlines"]]
        assert times == sorted(times)
        assert (times[0], times[-1]) == (track["from_s"], track["to_s"])
        corners = np.array(track["outlines"][0]["points"]).reshape(-1, 2)
        assert 8 < len(corners) <= 32
        ends = np.array([*corners.min(axis=0), *corners.max(axis=0)])
        left, top, width, height = track["box"]
        assert np.abs(ends - (left, top, left + width, top + height)).max() < 6
        kind, _, picture = track["thumbnail"].partition(",")
        assert kind == "data:image/jpeg;base64"
        pixels = np.frombuffer(base64.b64decode(picture), np.uint8)
        assert cv2.imdecode(pixels, cv2.IMREAD_COLOR) is not None
    left = min(tracks, key=lambda track: track["box"][0])
    chosen = identify(client, both, track=str(left["track"])).json()
    assert chosen["probe"]["track"] == left["track"]
    assert left["from_s"] <= chosen["probe"]["from_s"] < chosen["probe"]["to_s"] <= left["to_s"]
    missing = refused(identify(client, both, track="99"), 422, "no-walker")
    assert "track 99 is not in the footage" in str(missing["detail"])


def test_a_camera_s_frames_in_a_zip_are_footage_and_single_photos_are_refused(
    serve: Serve,
) -> None:
    client = serve(segmenter="background")
    there = crossing((1, *THROUGH), frames=75)
    assert enrol(client, "anna", photos(there)).status_code == 201
    body = identify(client, photos(there[::2]), frame_rate="12.5").json()
    assert body["candidates"][0]["subject_id"] == "anna"
    probe = body["probe"]
    assert (probe["input"], probe["segmenter"]) == ("footage", "background")
    assert 2.0 < probe["to_s"] < 3.0
    for sent in (still(there[30]), photos(there[30:35])):
        refusal = refused(identify(client, sent), 400, "malformed-sequence")
        assert "no gait; send a video" in str(refusal["detail"])
    assert identify(client, photos(there), frame_rate="0").status_code == 422


def test_footage_without_a_walker_says_what_was_seen(serve: Serve) -> None:
    client = serve(segmenter="background")
    empty = refused(identify(client, encode([scene()] * 40)), 422, "no-walker")
    assert "nobody was seen" in str(empty["detail"])
    standing = encode(crossing((1, 240.0, 240.0), frames=2, masks=True)[1:] * 60)
    body = refused(enrol(client, "anna", standing, input="footage"), 422, "no-walker")
    assert "nobody walks" in str(body["detail"])
    assert body["errors"] == [{"where": "sequence[0] 0.npz", "reason": "no_walker"}]


def test_a_video_of_silhouettes_is_read_as_before(serve: Serve) -> None:
    client = serve(segmenter="background")
    probe = identify(client, one(masks=True)).json()["probe"]
    assert probe["input"] == "silhouettes"
    assert (probe["segmenter"], probe["from_s"], probe["to_s"]) == (None, None, None)


def test_masks_that_are_said_to_be_footage_need_no_segmenter(serve: Serve) -> None:
    client = serve(segmenter="background")
    probe = identify(client, one(masks=True), input="footage").json()["probe"]
    assert (probe["input"], probe["segmenter"]) == ("footage", "masks")


def test_a_clip_longer_than_is_read_is_refused(serve: Serve) -> None:
    client = serve(segmenter="background", max_footage_seconds=2.0)
    body = refused(identify(client, one()), 413, "sequence-too-large")
    assert "2 s that are read" in str(body["detail"])


@pytest.mark.skipif(installed(), reason="the networks are installed")
def test_without_the_networks_footage_is_refused_and_silhouettes_are_read(serve: Serve) -> None:
    client = serve()
    body = refused(identify(client, one()), 415, "not-a-sequence")
    assert "python -m models.footage" in str(body["detail"])
    assert identify(client, one(masks=True)).status_code == 200


@pytest.mark.skipif(not installed(), reason="`make setup` fetches the networks")
def test_the_networks_run_within_a_decoder_s_bounds(serve: Serve) -> None:
    client = serve(max_footage_decode_seconds=240.0)
    client.timeout = httpx.Timeout(270)
    answer = identify(client, one())
    assert answer.status_code == 200, answer.text
    assert answer.json()["probe"]["segmenter"] == "network"
