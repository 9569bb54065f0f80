"""Jobs, their events and workers in the database."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from service.jobs.job import JsonObject
from service.storage.database import Table


class JobRow(Table):
    """One job. While it runs, only the holder of the lease `lease_number` may write to the row."""

    __tablename__ = "job"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    type: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    request: Mapped[JsonObject] = mapped_column(JSON)
    # What a worker must have to take it, as `service.jobs.labels.as_text` writes it.
    needs: Mapped[str] = mapped_column(Text, default="{}", server_default="{}")
    # The trace that it belongs to, as W3C Trace Context has it.
    traceparent: Mapped[str | None] = mapped_column(String(64))
    # What only one unfinished job may claim ("model:NAME"); null once the job has ended.
    claim: Mapped[str | None] = mapped_column(String(128), unique=True)
    step: Mapped[int] = mapped_column(BigInteger, default=0)
    total_steps: Mapped[int | None] = mapped_column(BigInteger)
    eta_s: Mapped[float | None]
    metrics: Mapped[JsonObject] = mapped_column(JSON, default=dict)
    result: Mapped[JsonObject | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[str | None] = mapped_column(Text)
    # The gallery whose people the result and events of an audit or a footage job may name.
    findings_of: Mapped[str | None] = mapped_column(String(64))
    attempts: Mapped[int] = mapped_column(default=0)
    lease_number: Mapped[int] = mapped_column(default=0, server_default="0")
    lease_renewals: Mapped[int] = mapped_column(default=0, server_default="0")
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_job_status_id", "status", "id"),
        Index("ix_job_findings", "findings_of"),
    )


class WorkerRow(Table):
    """One worker process; times are the database's."""

    __tablename__ = "worker"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    labels: Mapped[str] = mapped_column(Text)
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]


class JobEventRow(Table):
    """One entry of a job's history; rows are only ever added."""

    __tablename__ = "job_event"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[JsonObject] = mapped_column(JSON)
