"""The page as it is served; what it does in a browser is in tests/e2e/test_page.py."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from service.access.keys import Scope, create_key
from tests.service.requests import problem
from tests.service.server import Serve

WEB = Path(__file__).parents[3] / "service" / "http" / "web"
FILES = sorted(path.name for path in WEB.iterdir())


def test_the_page_may_load_nothing_from_elsewhere_and_run_nothing_inline(
    shared: httpx.Client,
) -> None:
    answer = shared.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        directive.split(" ", 1)
        for directive in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["form-action"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_the_documentation_may_load_nothing_and_run_nothing(shared: httpx.Client) -> None:
    answer = shared.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src" not in policy
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(policy.split("; "))
    styles = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    hashes = [b64encode(sha256(style.encode()).digest()).decode() for style in styles]
    assert re.findall(r"'sha256-([^']*)'", policy) == hashes  # so that it is shown as it is meant
    assert not re.search(r"<script|\bstyle=|\bon[a-z]+=", answer.text)


@pytest.mark.parametrize("path", ["/", "/docs", "/page/app.js", "/openapi.json", "/nowhere"])
def test_nothing_that_is_sent_can_be_framed_or_taken_for_something_else(
    shared: httpx.Client, path: str
) -> None:
    headers = shared.get(path).headers
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_served_and_names_no_other_host(shared: httpx.Client, name: str) -> None:
    answer = shared.get(f"/page/{name}")
    assert answer.status_code == 200
    assert answer.content == (WEB / name).read_bytes()
    assert answer.headers["x-content-type-options"] == "nosniff"
    hosts = set(re.findall(r"(?:https?:)?//([a-z0-9.-]+\.[a-z]{2,})", answer.text))
    assert hosts <= {"www.w3.org"}  # the name of SVG, which nobody fetches


def test_what_the_files_name_is_there() -> None:
    front = (WEB / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'"page/([\w.-]+)"', front))
    ids = set(re.findall(r'\bid="([\w-]+)"', front))
    for script in WEB.glob("*.js"):
        source = script.read_text(encoding="utf-8")
        named |= set(re.findall(r'from "\./([\w.-]+)"', source))
        assert set(re.findall(r'byId\("([\w-]+)"\)', source)) <= ids, script.name
    assert named | {"index.html"} == set(FILES)  # all of them are needed, too


def test_an_unchanged_file_is_not_sent_again(shared: httpx.Client) -> None:
    first = shared.get("/page/app.js")
    again = shared.get("/page/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert first.headers["cache-control"] == again.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "__init__.py", ""])
def test_what_is_no_file_of_the_page_is_not_found(shared: httpx.Client, name: str) -> None:
    problem(shared.get(f"/page/{name}"), 404)


def test_the_page_needs_no_key_where_everything_else_does(serve: Serve, engine: Engine) -> None:
    client = serve()
    create_key(engine, [Scope.ADMIN])
    for path in ("/", "/page/app.js", "/openapi.json"):
        assert client.get(path).status_code == 200
    problem(client.get("/galleries"), 401)


@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("text", "ground"), ("text", "surface"), ("faint", "ground"), ("faint", "surface"),
        ("accent", "surface"), ("accent", "accent-soft"), ("on-accent", "accent"),
        ("good", "good-soft"), ("warm", "warm-soft"), ("bad", "bad-soft"), ("bad", "surface"),
        ("text", "bad-soft"),
    ],
)  # fmt: skip
def test_text_is_legible_by_day_and_by_night(text: str, ground: str) -> None:
    style = (WEB / "style.css").read_text(encoding="utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    for colours in (light, {**light, **dark}):
        assert contrast(colours[text], colours[ground]) >= 4.5


def contrast(one: str, other: str) -> float:
    """By WCAG 2: from 1, the same, to 21, black on white."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (
        value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4
        for value in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
