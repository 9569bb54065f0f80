"""What must be refused over HTTP: the right 4xx as problem+json, and the gallery as it was."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest

from tests.models.silhouettes import uploads
from tests.models.silhouettes.uploads import image, tarred, video, zipped
from tests.service.requests import contents, enrol, identify, problem, verify
from tests.service.server import serving, settings_for
from tests.service.walkers import npz, walk, walker


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, models: object) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("refusals")
    settings = settings_for(
        folder,
        models,  # type: ignore[arg-type]
        max_request_bytes=8 * 2**20,
        max_decoded_bytes=32 * 2**20,
    )
    with serving(settings) as client:
        assert enrol(client, "anna", walk(1)).status_code == 201
        yield client


@pytest.fixture(autouse=True)
def gallery_stays_as_it_was(client: httpx.Client) -> Iterator[None]:
    before = contents(client)
    yield
    assert contents(client) == before
    assert client.get("/readyz").status_code == 200


def huge_png() -> bytes:
    """A PNG that claims 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


BAD_UPLOADS: dict[str, tuple[Callable[[], bytes], set[int]]] = {
    "a zip bomb": (
        lambda: zipped([("silhouettes.npy", bytes(2**28))], compression=zipfile.ZIP_DEFLATED),
        {400, 413},
    ),
    "a zip of a huge png": (lambda: zipped((f"{n}.png", huge_png()) for n in range(20)), {413}),
    "a huge png": (huge_png, {413}),
    "a truncated video": (lambda: video([*walker(1)])[:2000], {400}),
    "a pickle": (lambda: pickle.dumps([1, 2]), {415}),
    "a pickle that numpy wrote": (
        lambda: uploads.npz(silhouettes=np.array([{"a": 1}], dtype=object)),
        {400, 415},
    ),
    "a zip with ../ names": (
        lambda: zipped((f"../{n:03}.png", image(frame)) for n, frame in enumerate(walker(1))),
        {400},
    ),
    "a tar with ../ names": (
        lambda: tarred([("../../etc/cron.d/evil.png", image(walker(1)[0]))]),
        {400},
    ),
    "text named .png in a zip": (
        lambda: zipped([("0.png", b"hello"), ("1.png", b"you")]),
        {400, 415},
    ),
    "text": (lambda: b"this is no picture", {415}),
    "nothing": (lambda: b"", {400}),
    "an empty zip": (lambda: zipped([]), {400}),
    "no frames": (lambda: npz(np.zeros((0, 64, 44), np.uint8)), {400, 422}),
    "one frame": (lambda: npz(walker(1)[:1]), {422}),
    "all black": (lambda: npz(np.zeros((40, 64, 44), np.uint8)), {422}),
    "all white": (lambda: npz(np.full((40, 64, 44), 255, np.uint8)), {422}),
    "NaN": (lambda: npz(np.full((40, 64, 44), np.nan, np.float32)), {400, 415}),
    "no numbers": (lambda: npz(np.full((12, 64, 64), np.nan)), {400, 415}),
    "too many frames": (lambda: npz(np.zeros((1001, 8, 8), np.uint8)), {413}),
    "a frame with a side too long": (lambda: npz(np.zeros((2, 8, 5000), np.uint8)), {413}),
    "two dimensions": (lambda: npz(np.zeros((64, 44), np.uint8)), {400}),
    "a truncated zip": (lambda: walk(1)[:-200], {400}),
}


@pytest.mark.parametrize("what", BAD_UPLOADS)
def test_a_bad_upload_is_refused_and_named(client: httpx.Client, what: str) -> None:
    make, statuses = BAD_UPLOADS[what]
    data = make()
    for answer in (
        enrol(client, "anna", data),
        identify(client, data),
        verify(client, "anna", data),
    ):
        assert answer.status_code in statuses, (answer.status_code, answer.text)
        body = problem(answer, answer.status_code)
        assert body["errors"]
        assert body["errors"][0]["where"].startswith("sequence")
        assert "Traceback" not in answer.text


def test_text_named_png_is_no_sequence(client: httpx.Client) -> None:
    files = {"sequence": ("walk.png", b"I am text", "image/png")}
    answer = client.post("/enroll", data={"subject_id": "anna"}, files=files)
    assert "walk.png" in problem(answer, 415)["errors"][0]["where"]


def test_of_two_files_the_bad_one_is_named_and_neither_is_enrolled(client: httpx.Client) -> None:
    files = [
        ("sequence", ("good.npz", walk(2))),
        ("sequence", ("bad.npz", npz(np.zeros((40, 64, 44), np.uint8)))),
    ]
    answer = client.post("/enroll", data={"subject_id": "bert"}, files=files)
    body = problem(answer, 422)
    assert {error["where"] for error in body["errors"]} == {"sequence[1] bad.npz"}
    assert "empty_frames" in {error["reason"] for error in body["errors"]}


@pytest.mark.parametrize("subject", ["a/b", "", "x" * 129, "a b", "ä", "..", "a\n", "a\0"])
def test_a_subject_id_that_breaks_the_rules_is_refused(client: httpx.Client, subject: str) -> None:
    body = problem(enrol(client, subject, walk(2)), 422)
    assert [error["where"] for error in body["errors"]] == ["subject_id"]


def test_unknown_form_fields_and_parameters_are_named(client: httpx.Client) -> None:
    body = problem(enrol(client, "anna", walk(2), subjet="x", sequences="y"), 422)
    assert {error["where"] for error in body["errors"]} == {"subjet", "sequences"}
    body = problem(identify(client, walk(1), topk="3"), 422)
    assert body["errors"] == [{"where": "topk", "reason": "Unknown field"}]
    for path in ("/subjects?limt=3", "/galleries?x=1", "/healthz?a=1", "/subjects/anna?b=1"):
        assert len(problem(client.get(path), 422)["errors"]) == 1
    body = problem(client.post("/galleries", json={"name": "g", "colour": "red"}), 422)
    assert body["errors"][0]["where"] == "colour"


def test_a_field_sent_twice_is_refused(client: httpx.Client) -> None:
    answer = client.post(
        "/identify", files=[("sequence", ("a", walk(1)))], data={"top_k": ["3", "4"]}
    )
    assert problem(answer, 422)["errors"][0]["where"] == "top_k"
    answer = client.get("/subjects?limit=3&limit=4")
    assert problem(answer, 422)["errors"] == [{"where": "limit", "reason": "Sent more than once"}]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ('{"name": "one", "name": "two"}', "name"),
        ('{"name": "one", "metadata": {"a": 1, "a": 2}}', "a"),
        ('{"name": "one", "n\\u0061me": "two"}', "name"),
    ],
)
def test_a_field_sent_twice_in_json_is_refused(client: httpx.Client, body: str, where: str) -> None:
    headers = {"content-type": "application/json"}
    answer = client.post("/galleries", headers=headers, content=body)
    assert problem(answer, 422)["errors"] == [{"where": where, "reason": "Sent more than once"}]


def test_json_of_any_depth_is_refused(client: httpx.Client) -> None:
    """Just short of what the framework's reader takes, ours must not fall over."""
    headers = {"content-type": "application/json"}
    for depth in range(800, 1000, 2):
        body = '{"name": "deep", "metadata": ' + '{"a": ' * depth + "1" + "}" * (depth + 1)
        answer = client.post("/galleries", headers=headers, content=body)
        assert answer.status_code in (400, 422)


@pytest.mark.parametrize("threshold", ["false", "true", "nan", "inf", "-inf", "1e999", "", "2"])
def test_a_threshold_that_is_no_similarity_is_refused(client: httpx.Client, threshold: str) -> None:
    for answer in (
        identify(client, walk(1), threshold=threshold),
        verify(client, "anna", walk(1), threshold=threshold),
    ):
        assert problem(answer, 422)["errors"][0]["where"] == "threshold"


@pytest.mark.parametrize(
    ("field", "value"),
    [("top_k", "0"), ("top_k", "101"), ("top_k", "3.5"), ("top_k", "x"), ("explain", "perhaps")],
)
def test_a_field_out_of_range_is_named(client: httpx.Client, field: str, value: str) -> None:
    assert problem(identify(client, walk(1), **{field: value}), 422)["errors"][0]["where"] == field


BAD_OBJECTS = [
    "",
    "view=090",
    "[]",
    "3",
    '"text"',
    '{"view": NaN}',
    '{"view": 1e999}',
    '{"view": {"deep": 1}}',
    '{"view": 1, "view": 2}',
    '{"view": "\\ud800"}',
    '{"view": "a\\u0000b"}',
    '{"": 1}',
    '{"view": 99999999999999999999999}',
    "[" * 10_000,
    '{"view":' * 3000,
    '{"view": ' + "9" * 5000 + "}",
    json.dumps({"view": "x" * 20_000}),
    json.dumps({str(n): n for n in range(65)}),
]


@pytest.mark.parametrize("text", BAD_OBJECTS)
def test_metadata_and_filters_are_strict_json_objects(client: httpx.Client, text: str) -> None:
    answer = enrol(client, "anna", walk(2), metadata=text)
    assert problem(answer, 422)["errors"][0]["where"].startswith("metadata")
    answer = identify(client, walk(1), filter=text)
    assert problem(answer, 422)["errors"][0]["where"].startswith("filter")


def test_metadata_holds_no_lists_and_a_filter_no_empty_ones(client: httpx.Client) -> None:
    problem(enrol(client, "anna", walk(2), metadata='{"view": ["090"]}'), 422)
    problem(identify(client, walk(2), filter='{"view": []}'), 422)
    problem(identify(client, walk(2), filter='{"view": [["090"]]}'), 422)
    assert "view" in problem(enrol(client, "a", walk(2), metadata='{"view": [1]}'), 422)["detail"]


def test_a_missing_gallery_is_404_and_says_how_to_create_it(client: httpx.Client) -> None:
    for answer in (
        enrol(client, "anna", walk(2), gallery="missing"),
        identify(client, walk(2), gallery="missing"),
        verify(client, "anna", walk(2), gallery="missing"),
        client.get("/subjects", params={"gallery": "missing"}),
        client.get("/galleries/missing"),
        client.delete("/galleries/missing"),
    ):
        assert "POST /galleries" in problem(answer, 404)["detail"]


@pytest.mark.parametrize("name", ["a/b", "", ".hidden", "x" * 65, "ä", "a b"])
def test_a_gallery_s_name_has_rules(client: httpx.Client, name: str) -> None:
    assert problem(client.post("/galleries", json={"name": name}), 422)["errors"]
    problem(enrol(client, "anna", walk(2), gallery=name), 422)


def test_missing_fields_are_all_named(client: httpx.Client) -> None:
    body = problem(client.post("/verify"), 422)
    assert {error["where"] for error in body["errors"]} == {"subject_id", "sequence"}
    alone = problem(client.post("/enroll", data={"subject_id": "anna"}), 422)
    assert alone["errors"] == [{"where": "sequence", "reason": "required"}]  # or a found walk


def test_text_where_a_file_belongs_is_refused(client: httpx.Client) -> None:
    answer = client.post("/identify", data={"sequence": "/etc/passwd"})
    assert problem(answer, 422)["errors"][0]["where"] == "sequence[0]"
    answer = client.post("/identify", files={"sequence": ("", b"")})
    assert answer.status_code in (400, 422)


def test_a_file_where_text_belongs_is_refused(client: httpx.Client) -> None:
    files = {"sequence": ("a", walk(1)), "subject_id": ("b", b"anna")}
    assert problem(client.post("/enroll", files=files), 422)["errors"][0]["where"] == "subject_id"


MULTIPART = {"content-type": "multipart/form-data; boundary=XX"}


def part(name: str, data: bytes, filename: str | None = None) -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    head = f'--XX\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
    return head.encode() + data + b"\r\n"


def test_a_multipart_body_without_its_end_enrols_nothing(client: httpx.Client) -> None:
    whole = part("subject_id", b"bert") + part("sequence", walk(2), "a.npz")
    cut = whole + part("sequence", walk(3), "b.npz")[:-50]
    problem(client.post("/enroll", headers=MULTIPART, content=cut), 400)
    problem(client.post("/enroll", headers=MULTIPART, content=whole), 400)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (MULTIPART, b"garbage"),
        ({"content-type": "multipart/form-data"}, b"garbage"),
        ({"content-type": "multipart/form-data; boundary=" + "x" * 300}, b"garbage"),
        (MULTIPART, b"--XX\r\nContent-Disposition: form-data\r\n\r\nx\r\n--XX--\r\n"),
    ],
)
def test_a_multipart_body_that_cannot_be_read_is_400(
    client: httpx.Client, headers: dict[str, str], body: bytes
) -> None:
    problem(client.post("/enroll", headers=headers, content=body), 400)


@pytest.mark.parametrize("body", [b"{", b"\xff\xfe", b"{'name': 1}", b"[" * 60_000])
def test_json_that_cannot_be_read_is_400(client: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    problem(client.post("/galleries", headers=headers, content=body), 400)


@pytest.mark.parametrize("body", [b"[]", b"3", b"null", b'{"name": 3}', b"{}"])
def test_json_of_another_shape_is_422(client: httpx.Client, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    problem(client.post("/galleries", headers=headers, content=body), 422)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain"])
@pytest.mark.parametrize("path", ["/galleries", "/jobs/calibrate", "/models/rollback"])
def test_json_that_is_not_said_to_be_json_is_422_and_says_so(
    client: httpx.Client, path: str, kind: str
) -> None:
    refusal = problem(client.post(path, headers={"content-type": kind}, content=b"{}"), 422)
    assert refusal["errors"] == [{"where": "Content-Type", "reason": "must be application/json"}]
    assert "Content-Type" in refusal["detail"]


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream", "text/plain"])
@pytest.mark.parametrize("path", ["/enroll", "/identify", "/verify", "/models"])
def test_what_is_not_said_to_be_a_form_is_422_and_says_so(
    client: httpx.Client, path: str, kind: str
) -> None:
    refusal = problem(client.post(path, headers={"content-type": kind}, content=b"{}"), 422)
    assert refusal["errors"] == [{"where": "Content-Type", "reason": "must be multipart/form-data"}]


def test_a_body_over_the_limit_is_413_announced_or_not(client: httpx.Client) -> None:
    data = bytes(9 * 2**20)
    announced = client.post("/enroll", data={"subject_id": "a"}, files={"sequence": ("a", data)})
    problem(announced, 413)

    def chunks() -> Iterator[bytes]:
        yield b'--XX\r\nContent-Disposition: form-data; name="sequence"; filename="a"\r\n\r\n'
        for _ in range(9 * 16):
            yield bytes(2**16)
        yield b"\r\n--XX--\r\n"

    problem(client.post("/enroll", headers=MULTIPART, content=chunks()), 413)

    def json_chunks() -> Iterator[bytes]:
        for _ in range(33):
            yield b" " * 2**15

    headers = {"content-type": "application/json"}
    problem(client.post("/galleries", headers=headers, content=json_chunks()), 413)


def test_nowhere_and_wrong_methods_are_problems_too(client: httpx.Client) -> None:
    problem(client.get("/nowhere"), 404)
    problem(client.get("/subjects/a/b"), 404)
    problem(client.put("/enroll"), 405)
    problem(client.get("/subjects/nobody"), 404)
    problem(client.get("/sequences/nothing"), 404)
    problem(client.get("/sequences/nothing/silhouettes.npz"), 404)
    problem(client.delete("/sequences/nothing"), 404)
    problem(client.delete("/subjects/nobody"), 404)


@pytest.mark.parametrize("cursor", ["", "!", "AAA", "YQ==", "%00", "w4Q", "x" * 600])
def test_a_cursor_that_was_not_given_is_refused(client: httpx.Client, cursor: str) -> None:
    answer = client.get("/subjects", params={"cursor": cursor})
    if answer.status_code == 200:
        assert cursor == "w4Q"  # well-formed: it points behind every id
        return
    assert problem(answer, 422)["errors"][0]["where"] == "cursor"


def test_strange_names_of_files_come_back_printable_and_short(client: httpx.Client) -> None:
    name = "\x1b[31m" + "x" * 500 + ".npz"
    files = {"sequence": (name, b"text")}
    answer = client.post("/enroll", data={"subject_id": "a"}, files=files)
    where = problem(answer, 415)["errors"][0]["where"]
    assert where.isprintable()
    assert len(where) < 120


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "gzip, identity"])
def test_a_compressed_body_is_415_and_says_to_send_it_plain(
    client: httpx.Client, coding: str
) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    body = problem(client.post("/galleries", headers=headers, content=b'{"name": "x"}'), 415)
    assert body["type"] == "/problems/content-encoding"
    problem(client.get("/galleries/x"), 404)


@pytest.mark.parametrize("address", ["/subjects/a%00b", "/galleries/%00", "/sequences/%00"])
def test_an_address_with_a_control_character_is_nowhere(client: httpx.Client, address: str) -> None:
    problem(client.get(address), 404)
    problem(client.delete(address), 404)


def test_of_thousands_of_unknown_fields_a_few_are_named(client: httpx.Client) -> None:
    answer = client.get("/subjects", params={f"field{number}": "1" for number in range(2000)})
    body = problem(answer, 422)
    assert len(body["detail"]) < 500
    assert len(body["errors"]) == 100


@pytest.mark.slow
def test_a_form_with_too_much_beside_its_files_is_over_a_limit(client: httpx.Client) -> None:
    walks = {"sequence": ("a", walk(1))}
    for form in ({"gallery": "x" * 2**21}, {f"field-{i}": "x" for i in range(1100)}):
        refused = problem(client.post("/identify", data=form, files=walks), 413)
        assert refused["type"] == "/problems/too-large"
