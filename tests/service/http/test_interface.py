"""The running service keeps what its OpenAPI document promises, whatever it is sent.

schemathesis makes requests from the document, good and bad ones, one after another and along links
that it infers from names of parameters. It checks every answer: no 5xx, declared status, content
type and schema, bad requests refused and good ones not, erased things gone, keys asked for, methods
as documented.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine

from service.access.keys import Scope, create_key
from service.foundation.settings import Settings
from tests.service.http.hooks import PERSON
from tests.service.requests import enrol
from tests.service.server import serving, settings_for
from tests.service.walkers import walk

ROOT = Path(__file__).parents[3]
_LEAST_CASES = 600
_FRUITFUL = {
    "enroll", "identify", "verify", "create_gallery", "import_gallery", "export_gallery",
    "erase_gallery", "job_distill", "job_calibrate", "job_audit-gallery", "job_reindex",
    "add_model", "remove_model", "job_activate",
}  # fmt: skip
"""What it carried out at least once, and was not only refused."""


def schemathesis(url: str, folder: Path, *options: str, **environment: str) -> str:
    """Run it in a process of its own; returns its report, and fails unless it found nothing."""
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run"]
    run = subprocess.run(
        [
            *(*command, f"{url}/openapi.json", "--seed=1", "--max-examples=20", "--workers=1"),
            *("--phases=examples,coverage,fuzzing,stateful", "--request-timeout=20"),
            *("--suppress-health-check=all", "--warnings=off", *options),
        ],
        cwd=folder,  # it leaves its own notes where it runs
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "SCHEMATHESIS_HOOKS": "tests.service.http.hooks",
            "PYTHONHASHSEED": "0",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def assert_it_looked_everywhere(report: str, client: httpx.Client) -> None:
    operations = sum(len(item) for item in client.get("/openapi.json").json()["paths"].values())
    assert f"Selected: {operations}/{operations}" in report
    assert f"Tested: {operations}" in report
    cases = re.search(r"(\d+) generated, (\d+) passed", report)
    links = re.search(r"API Links: +(\d+) covered", report)
    assert cases is not None
    assert links is not None
    assert int(cases[1]) >= _LEAST_CASES
    assert int(links[1]) >= 1  # how many is a matter of chance
    lines = client.get("/audit").text.splitlines()
    assert {json.loads(line)["action"] for line in lines} >= _FRUITFUL


@pytest.mark.slow
def test_without_keys_every_call_answers_as_the_document_says(tmp_path: Path, models: Path) -> None:
    with serving(settings_for(tmp_path / "data", models)) as client:
        assert enrol(client, PERSON, walk(1)).status_code == 201
        report = schemathesis(
            str(client.base_url), tmp_path, KEYLESS="1", CHECKPOINT=str(models / "uncalibrated")
        )
        assert_it_looked_everywhere(report, client)


@pytest.mark.slow
def test_with_keys_every_call_answers_as_the_document_says_and_asks_for_one(
    tmp_path: Path, models: Path, settings: Settings, engine: Engine
) -> None:
    _, key = create_key(engine, [Scope.ADMIN], "schemathesis")
    with serving(settings) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        assert enrol(client, PERSON, walk(1)).status_code == 201
        bearer = f"--header=Authorization: Bearer {key}"
        report = schemathesis(
            str(client.base_url), tmp_path, bearer, KEY=key, CHECKPOINT=str(models / "uncalibrated")
        )
        # Of what this seed draws few calls succeed with a key that others can be linked to.
        assert_it_looked_everywhere(report, client)
