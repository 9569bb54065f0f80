"""What is shipped to deploy a cluster fits the service, and the schemas of those who read it."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml

from service.foundation.settings import Settings, misspelt

ROOT = Path(__file__).parents[1]
MANIFESTS = ROOT / "docker" / "kubernetes"
CLUSTER = ("docker-compose.cluster.yml", "docker/walk-keys.yml")
COMPOSE = ("docker-compose.yml", "docker/gpu.yml", *CLUSTER)
ENTRYPOINT = ROOT / "docker" / "entrypoint.sh"


def manifests() -> list[dict[str, Any]]:
    listed, job = (
        yaml.safe_load((MANIFESTS / file).read_text(encoding="utf-8"))
        for file in ("gaitid.yaml", "first-key.yaml")
    )
    assert (listed["kind"], listed["apiVersion"]) == ("List", "v1")
    return [*listed["items"], job]


def compose(file: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))
    return content


def pods(*kinds: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for manifest in manifests():
        if manifest["kind"] in kinds:
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def environments() -> Iterator[dict[str, str]]:
    """What every container of ours is given, wherever it is run."""
    for file in COMPOSE:
        for service in compose(file)["services"].values():
            if service.get("image", "gaitid").startswith("gaitid"):  # or what is added to ours
                yield service.get("environment", {})
    for manifest in manifests():
        if manifest["kind"] == "ConfigMap":
            yield manifest["data"]
    for _, pod in pods("Deployment", "Job"):
        for container in pod["containers"]:
            yield {item["name"]: item["value"] for item in container["env"]}


@pytest.mark.parametrize("version", ["1.34", "1.37"])
def test_the_manifests_are_what_kubernetes_accepts(version: str) -> None:
    found = manifests()
    for manifest in found:
        kubernetes_validate.validate(manifest, version, strict=True)
    assert len(found) == len({(item["kind"], item["metadata"]["name"]) for item in found})

    found[1]["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(found[1], version, strict=True)


def test_what_manifests_select_and_name_is_there() -> None:
    labels = [
        manifest["spec"]["template"]["metadata"]["labels"]
        for manifest in manifests()
        if manifest["kind"] == "Deployment"
    ]
    maps = [item["metadata"]["name"] for item in manifests() if item["kind"] == "ConfigMap"]
    for manifest in manifests():
        selector = manifest.get("spec", {}).get("selector")
        if selector is not None:
            assert selector.get("matchLabels", selector) in labels, manifest["metadata"]["name"]
    for name, pod in pods("Deployment", "Job"):
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes, name
            for source in container.get("envFrom", []):
                assert source["configMapRef"]["name"] in maps


def test_every_variable_that_containers_are_given_is_a_setting() -> None:
    """By the way of the entry point, which reads secrets from files first."""
    read = re.search(r"for name in (.*);", ENTRYPOINT.read_text(encoding="utf-8"))
    assert read is not None
    files = {f"{name}_FILE" for name in read[1].split()}
    given = [set(environment) for environment in environments()]
    assert len(given) >= 6
    for names in given:
        assert misspelt(names - files) == []
    assert files == {name for names in given for name in names if name.endswith("_FILE")} - {
        "GAITID_ENCRYPTION_KEYS_FILE"
    }


def test_containers_run_without_rights_and_leave_their_root_as_it_is() -> None:
    services = compose("docker-compose.yml")["services"]
    services |= compose("docker-compose.cluster.yml")["services"]
    services["walk-keys"] = compose("docker/walk-keys.yml")["services"]["walk-keys"]
    assert len(services) == 6
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
    for name, pod in pods("Deployment", "Job"):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_a_secret_is_read_from_its_file_and_the_rest_stays_as_it_is(tmp_path: Path) -> None:
    secret = "postgresql://a:b@c/d?e=f&g='h' $(touch hacked) `i`"  # noqa: S105
    (tmp_path / "url").write_text(secret + "\n", encoding="utf-8")
    program = tmp_path / "gaitid"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nenv\n', encoding="utf-8")
    program.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "GAITID_DATABASE_URL_FILE": str(tmp_path / "url"),
        "AWS_ACCESS_KEY_ID": "as it was",
    }
    command = ["sh", str(ENTRYPOINT), "serve", "--host", "a b"]
    said = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said[:3] == ["serve", "--host", "a b"]
    assert f"GAITID_DATABASE_URL={secret}" in said
    assert "AWS_ACCESS_KEY_ID=as it was" in said
    assert not any(line.startswith("GAITID_DATABASE_URL_FILE") for line in said)
    assert not (tmp_path / "hacked").exists()

    environment["GAITID_DATABASE_URL_FILE"] = str(tmp_path / "missing")
    failed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "missing" in failed.stderr
    assert failed.stdout == ""


def test_secrets_are_made_once_and_only_their_owner_gets_at_them(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    script = ROOT / "docker" / "secrets.sh"
    subprocess.run(["sh", script, folder], check=True)
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert folder.stat().st_mode & 0o777 == 0o700
    wanted = {
        Path(secret["file"]).name
        for file in CLUSTER
        for secret in compose(file)["secrets"].values()
    }
    assert wanted <= made.keys()
    assert made["database_password"].strip() in made["database_url"]
    assert made["walk_keys_password"].strip() in made["walk_keys_url"]
    assert made["walk_keys_password"] != made["database_password"]
    subprocess.run(["sh", script, folder], check=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == made


class _Replica(BaseHTTPRequestHandler):
    """Answers with what it was asked, and ends on /gait/dies without an answer."""

    def do_GET(self) -> None:
        if self.path == "/gait/dies":
            self.close_connection = True
            return
        asked = json.dumps({"path": self.path, **dict(self.headers)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(asked)))
        self.end_headers()
        with suppress(ConnectionResetError):  # whoever looks at its health goes early
            self.wfile.write(asked)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[tuple[httpx.Client, ssl.SSLContext, ThreadingHTTPServer]]:
    """HAProxy with the shipped configuration before one replica, and a caller of it."""
    subprocess.run(["sh", ROOT / "docker" / "secrets.sh", tmp_path], check=True)
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        port = chosen.getsockname()[1]
    replica = ThreadingHTTPServer(("127.0.0.1", 0), _Replica)
    thread = threading.Thread(target=replica.serve_forever, daemon=True)
    thread.start()
    shipped = (ROOT / "docker" / "haproxy.cfg").read_text(encoding="utf-8")
    server = f"    server api 127.0.0.1:{replica.server_port}\n"
    config = tmp_path / "haproxy.cfg"
    config.write_text(re.sub(r"^    server-template .*\n", server, shipped, flags=re.MULTILINE))
    environment = {
        **os.environ,
        **compose("docker-compose.cluster.yml")["services"]["proxy"]["environment"],
        "PROXY_BIND": f"127.0.0.1:{port}",
        "PROXY_CERTIFICATE": str(tmp_path / "certificate.pem"),
    }
    trust = ssl.create_default_context(cafile=str(tmp_path / "trusted.pem"))
    with (
        subprocess.Popen(
            ["haproxy", "-db", "-f", str(config)], env=environment, stdout=subprocess.DEVNULL
        ) as running,
        httpx.Client(base_url=f"https://localhost:{port}", verify=trust) as client,
    ):
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    if client.get("/gait/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.05)
            yield client, trust, replica
        finally:
            running.terminate()
            replica.shutdown()
            replica.server_close()
            thread.join(10)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed")
def test_the_proxy_passes_what_is_under_its_prefix_and_says_when_to_come_again(
    proxy: tuple[httpx.Client, ssl.SSLContext, ThreadingHTTPServer],
) -> None:
    client, trust, replica = proxy
    forged = {"X-Forwarded-For": "10.9.8.7", "X-Forwarded-Prefix": "/elsewhere"}
    asked = client.get("/gait/subjects?limit=5", headers=forged).json()
    assert asked["path"] == "/gait/subjects?limit=5"  # the service takes the prefix off
    assert asked["x-forwarded-for"] == "127.0.0.1"
    assert "x-forwarded-prefix" not in asked

    for path in ("/", "/readyz", "/gaitid", "/gait/metrics", "/gait/%6detrics", "/gait/metrics?a"):
        assert client.get(path).status_code == 404, path

    with httpx.Client(base_url=client.base_url, verify=trust) as another:
        lost = another.get("/gait/dies")
    assert (lost.status_code, lost.json()["status"], lost.json()["type"]) == (
        503, 503, "/problems/replica-lost",
    )  # fmt: skip
    replica.shutdown()
    replica.server_close()
    gone = client.get("/gait/subjects")
    assert (gone.status_code, gone.json()["type"]) == (503, "/problems/no-replica")
    for answer in (lost, gone):
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.headers["Content-Type"] == "application/problem+json"


def test_who_is_stopped_has_the_time_that_the_service_takes() -> None:
    for service in compose("docker-compose.cluster.yml")["services"].values():
        if service.get("image", "").startswith("gaitid"):
            drain = float(service["environment"]["GAITID_DRAIN_SECONDS"])
            grace = float(service["stop_grace_period"].removesuffix("s"))
            assert grace >= drain + Settings().stop_seconds + 10
    for name, pod in pods("Deployment"):
        pause = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {})
        grace = pod["terminationGracePeriodSeconds"]
        assert grace >= pause.get("seconds", 0) + Settings().stop_seconds + 10, name
