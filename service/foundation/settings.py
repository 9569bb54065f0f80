"""Deployment settings, read once from the environment (GAITID_*)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    Field,
    IPvAnyNetwork,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.foundation.milvus_address import MilvusAddress
from service.foundation.rate import UNLIMITED, Rate

S3_SCHEME = "s3://"

_ROOT = Path(__file__).parents[2]
_PREFIX = "GAITID_"
_DATABASE = re.compile(r"(sqlite|postgres(ql)?)(\+\w+)?://")
_SEGMENT = r"/[A-Za-z0-9_~-][A-Za-z0-9._~-]*"
ROOT_PATH = f"({_SEGMENT})+"
"""A path under which a proxy shows the service, as a regular expression."""
_ORIGIN = r"https?://(\[[0-9a-f:]+\]|[a-z0-9.-]+)(:[0-9]{1,5})?"
_OF_THE_CLIENT = frozenset({"URL", "API_KEY", "SOURCE", "WEBHOOK_SECRET"})


class Settings(BaseSettings):
    """All settings; the environment has each as GAITID_<NAME>."""

    # A value that is refused may be a secret, so errors do not repeat it.
    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    data_dir: Path = Path("data")
    database_url: str | None = None  # default: sqlite file in data_dir
    # Where hosts share files: s3://bucket/prefix, or the absolute path of a folder that all mount.
    # Without it every file stays in data_dir.
    store: str | None = None
    # Of PostgreSQL. Eight are for writing; the audit record has four more.
    database_connections: int = Field(default=15, ge=10)
    database_statement_seconds: PositiveFloat = 60.0

    device: Literal["auto", "cpu", "cuda"] = "auto"
    index: str = "faiss"  # or memory, or where Milvus is
    milvus_token: SecretStr | None = None  # USER:PASSWORD, or a key
    # Milvus has vectors in plain. Somebody who encrypts the database has to say that they may be.
    milvus_unencrypted: bool = False
    model: str = "default"  # the registered model that galleries start with
    max_models: int = Field(default=4, ge=3)  # loaded at once, for all galleries
    shipped_models_dir: Path = _ROOT / "models" / "checkpoints"
    recipes_dir: Path = _ROOT / "training" / "recipes"

    # Without any API key the service listens on loopback only, unless the operator vouches for the
    # network in front of it (a container whose port is published on loopback, say).
    allow_unauthenticated: bool = False
    # Host names by which such a service may be called, beside loopback, addresses and names without
    # a dot: any other name may be an attacker's that resolves to us (DNS rebinding).
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()

    # Addresses and networks of proxies whose X-Forwarded-For says who calls. Nobody else's does.
    trusted_proxies: Annotated[tuple[IPvAnyNetwork, ...], NoDecode] = ()
    # After SIGTERM: that it still answers, for proxies to see that it is not ready any more, and
    # then that what was begun has to end.
    drain_seconds: float = Field(default=0.0, ge=0, le=3600)
    stop_seconds: PositiveFloat = 10.0
    # Under which path of a proxy the service is; a trusted proxy may say it in X-Forwarded-Prefix.
    root_path: str | None = Field(default=None, pattern=f"^{ROOT_PATH}$")
    # Origins whose pages may call the service from a browser, such as https://desk.example.
    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    max_connections: PositiveInt = 1024  # half of them from one address; fewer with few descriptors

    # Requests that a key may send, unless it has a rate of its own; without keys, an address.
    rate_limit: str = UNLIMITED
    wrong_key_rate: str = "30/minute"  # wrong keys that an address may send

    # The record of who did what
    audit: bool = True
    audit_max_age_days: int | None = Field(default=None, ge=30)  # as its triggers have it

    # Keys for silhouettes and embeddings, of 32 bytes in URL-safe Base64 with commas between. The
    # first one is written with, all are read with. The file holds the same, for a mounted secret.
    encryption_keys: SecretStr | None = None
    encryption_keys_file: Path | None = None
    # A small database with a key for each walk, sealed with the first of those: to end it is to
    # erase the walk from backups, too. It must not be backed up with the galleries' database.
    walk_keys_url: str | None = None

    # Uploads
    max_request_bytes: PositiveInt = 64 * 2**20
    max_frames: PositiveInt = 1000
    max_side: PositiveInt = 4096
    max_decoded_bytes: PositiveInt = 512 * 2**20
    max_decode_seconds: PositiveFloat = 20.0
    max_footage_seconds: PositiveFloat = 60.0  # that a clip may last; longer ones are a job's
    max_footage_decode_seconds: PositiveFloat = 120.0
    max_footage_bytes: PositiveInt = 8 * 2**30  # of a clip for a job; kept in data_dir until then
    max_footage_job_seconds: PositiveFloat = 86_400.0  # that a job may look at one clip
    segmenter: Literal["network", "background"] = "network"  # background: for fixed cameras
    max_sequences_per_request: PositiveInt = 50
    max_uploads: PositiveInt = 32  # requests with files at once; they are spooled to disk
    max_upload_idle_seconds: PositiveFloat = 30.0  # without a byte of an unfinished body
    max_json_bytes: PositiveInt = 2**16  # of a request whose body is JSON; read on the event loop
    max_streams: PositiveInt = 512  # of jobs' events, open at once
    max_streams_per_caller: PositiveInt = 64  # a key; without keys, an address
    max_import_bytes: PositiveInt = 4 * 2**30  # of a gallery that is imported; kept in data_dir
    decode_workers: PositiveInt = 2  # processes that decode, and as many for slow sequences
    clean_silhouettes: bool = True

    # Embedding
    # Each embeds frames of its own, so that none waits for another in every layer.
    embed_threads: PositiveInt = 2
    batch_frames: PositiveInt = 512  # frames embedded in one batch
    batch_wait_ms: float = Field(default=2.0, ge=0)
    max_pending: PositiveInt = 64  # sequences being decoded or embedded before 503
    max_wait_seconds: PositiveFloat = 2.0  # of work that a request may wait behind before 503

    # Search
    shortlist: PositiveInt = 100  # sequences re-ranked exactly with the checkpoint's own metric
    exact_below: PositiveInt = 20_000  # sequences that are all compared; larger galleries are coded
    index_memory_bytes: PositiveInt = 4 * 2**30  # galleries kept in memory, the last one always

    # Scenes
    adapt: bool = True  # off: no gallery is compared by a scene transform, and none is kept
    cohort: bool = False  # whether sums of walks of whoever passed may be added to a gallery

    # Jobs
    # What this machine's worker has beside what it finds out by itself: gpu=2,memory=64,site-a.
    worker_labels: Annotated[tuple[str, ...], NoDecode] = ()
    lease_seconds: PositiveFloat = 30.0
    job_max_attempts: PositiveInt = 3
    cancel_grace_seconds: PositiveFloat = 3.0

    # Retention
    sweep_seconds: PositiveFloat = 3600.0  # between two looks for what is too old
    job_retention_days: PositiveInt = 30  # of an ended job's folder
    reserve_bytes: NonNegativeInt = 16 * 2**20  # of the disk, so that a full one can be erased from

    @field_validator("database_url", "walk_keys_url")
    @classmethod
    def _known_database(cls, value: str | None) -> str | None:
        if value is not None and not _DATABASE.match(value):
            raise ValueError("write postgresql://USER@HOST/DATABASE, or sqlite:///FILE")
        return value

    @field_validator("rate_limit", "wrong_key_rate")
    @classmethod
    def _rate(cls, value: str) -> str:
        Rate.parse(value)
        return value

    @field_validator("index")
    @classmethod
    def _index(cls, value: str) -> str:
        if value not in ("faiss", "memory"):
            if not value.startswith("milvus"):
                raise ValueError("write faiss, memory, or where Milvus is: milvus://HOST:PORT")
            MilvusAddress.parse(value)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if not re.fullmatch(_ORIGIN, origin):
                raise ValueError(
                    f"{origin!r} is no origin: write each as https://name or https://name:port, in "
                    "lower case; * is not allowed"
                )
        return value

    @field_validator(
        "allowed_hosts", "trusted_proxies", "cors_origins", "worker_labels", mode="before"
    )
    @classmethod
    def _names(cls, value: object) -> object:
        """Read names from the environment: with commas between, or as a JSON list."""
        if not isinstance(value, str):
            return value
        if value.lstrip().startswith("["):
            try:
                return tuple(json.loads(value))
            except ValueError as error:
                raise ValueError("write names with commas between, or a JSON list") from error
        return tuple(name.strip() for name in value.split(",") if name.strip())

    @field_validator("store")
    @classmethod
    def _store(cls, value: str | None) -> str | None:
        bucket = rf"{S3_SCHEME}[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9_][A-Za-z0-9._-]*)*/?"
        if value is None or re.fullmatch(bucket, value) or value.startswith("/"):
            return value
        raise ValueError("name s3://bucket/prefix, or the absolute path of a folder")

    @property
    def milvus(self) -> MilvusAddress | None:
        """Where Milvus is; None unless galleries are searched there."""
        return MilvusAddress.parse(self.index) if self.index.startswith("milvus") else None

    @property
    def resolved_database_url(self) -> str:
        """The database's URL; by default one SQLite file in the data folder."""
        return self.database_url or f"sqlite:///{self.database_file}"

    @property
    def database_file(self) -> Path:
        """The SQLite file of a deployment that is not told another database."""
        return self.data_dir / "gaitid.sqlite"

    @property
    def resolved_audit_url(self) -> str:
        """The URL of the audit record: a SQLite file of its own, or the same other database."""
        own = self.database_url is None or self.database_url.startswith("sqlite")
        return f"sqlite:///{self.data_dir / 'audit.sqlite'}" if own else self.resolved_database_url

    @property
    def datasets_dir(self) -> Path:
        """Where packed datasets are found by name."""
        return self.data_dir / "datasets"

    @property
    def models_dir(self) -> Path:
        """Where this deployment keeps the checkpoints it made or was given."""
        return self.data_dir / "models"

    @property
    def cache_dir(self) -> Path:
        """Where a host keeps what it fetched from the store."""
        return self.data_dir / "cache"

    @property
    def indexes_dir(self) -> Path:
        """Where large galleries' indexes are kept for the next start."""
        return self.data_dir / "indexes"

    @property
    def reserve_file(self) -> Path:
        """The file that reserves space for erasures."""
        return self.data_dir / "reserve"

    @property
    def jobs_dir(self) -> Path:
        """Where each job has a folder for its run's files and log."""
        return self.data_dir / "jobs"


def misspelt(variables: Iterable[str]) -> list[str]:
    """Return a sentence for each variable that looks like a setting and is none."""
    known = {name.upper() for name in Settings.model_fields}
    complaints = []
    for variable in sorted(variables):
        name = variable.upper().removeprefix(_PREFIX)
        if name == variable.upper() or name in known | _OF_THE_CLIENT:
            continue
        near = get_close_matches(name, sorted(known), n=1)
        meant = f"; did you mean {_PREFIX}{near[0]}?" if near else ""
        complaints.append(f"{variable} is not a setting{meant}")
    return complaints
