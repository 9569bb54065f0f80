"""Requests for jobs. They hold names only, never a path or a URL."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    WithJsonSchema,
    model_validator,
)

from service.gallery.fields import GalleryName, storable
from service.jobs.findings import FOOTAGE
from service.jobs.labels import LABEL_NAME
from service.serving.adaptation import ADAPT, ADAPTATION_CLAIM
from service.serving.model_files import NAME
from service.serving.thresholds import CALIBRATE, CALIBRATION_CLAIM

_PLAIN_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_LONGEST_TEXT = 256
_LARGEST_NUMBER = 2**53
_KEY = r"^[a-z_]{1,40}(\.([a-z_]{1,40}|[0-9]{1,3})){0,5}$"
MOST_MINUTES = 7 * 24 * 60
"""That a footage job's walks are kept, at most."""
_EMBEDDINGS = "embeddings:{gallery}"  # one job at a time makes or prunes them
# These say where files are, and which worker may take it: the request's own fields say that.
_PLACES = ("data.dataset", "student.checkpoint", "teachers", "needs")
_PLACE_OF_STAGE = re.compile(r"stages\.[0-9]+(\.dataset(\..*)?)?")


def _not_a_place(key: str) -> str:
    if (
        key == "stages"
        or _PLACE_OF_STAGE.fullmatch(key)
        or any(key == place or key.startswith(f"{place}.") for place in _PLACES)
    ):
        raise ValueError("use the fields dataset, teachers, student and needs instead")
    return key


def _plain_value(value: object) -> object:
    """Refuse in one sentence what the union below would refuse once for each of its members."""
    for item in value if isinstance(value, list) else [value]:
        match item:
            case bool():
                pass
            case int() | float() if abs(item) <= _LARGEST_NUMBER:  # neither infinite nor NaN
                pass
            case str() if not storable(item):
                raise ValueError("holds characters that cannot be kept")
            case str() if len(item) <= _LONGEST_TEXT:
                pass
            case _:
                raise ValueError("must be text, a number, true, false, or a list of these")
    return value


def _kind_of_dataset(value: object) -> str:
    return "pack" if isinstance(value, str) else "gallery"


ModelName = Annotated[str, Field(pattern=NAME)]
OverrideKey = Annotated[str, Field(pattern=_KEY), AfterValidator(_not_a_place)]
Scalar = bool | int | float | str
_SCALAR_SCHEMA = {
    "anyOf": [
        {"type": "boolean"},
        {"type": "number", "minimum": -_LARGEST_NUMBER, "maximum": _LARGEST_NUMBER},
        {"type": "string", "maxLength": _LONGEST_TEXT, "pattern": r"^[^\x00]*$"},
    ]
}
Override = Annotated[
    Scalar | Annotated[list[Scalar], Field(max_length=64)],
    BeforeValidator(_plain_value),
    WithJsonSchema(
        {
            "anyOf": [
                *_SCALAR_SCHEMA["anyOf"],
                {"type": "array", "maxItems": 64, "items": _SCALAR_SCHEMA},
            ]
        }
    ),
]
Protocol = Literal[
    "casia-b",
    "casia-b-mixed-gallery",
    "casia-e",
    "ccgr-mini",
    "ccpg",
    "ccpg-reid",
    "cross-view",
    "first-walk",
    "gait3d",
    "grew",
    "hid",
    "mixed-gallery",
    "mixed-scenes",
    "nine-pairs",
    "ou-mvlp",
    "ou-mvlp-mixed-gallery",
    "sustech1k",
]
"""The protocols of `python -m training evaluate`, which is another program: a test compares."""


Needs = Annotated[
    dict[
        Annotated[str, Field(pattern=LABEL_NAME)],
        Annotated[float, Field(ge=0, le=_LARGEST_NUMBER, allow_inf_nan=False, strict=True)],
    ],
    Field(
        max_length=8,
        description="Labels that a worker must have to take the job: `gpu`, `cpu`, GiB of "
        "`memory`, or its operator's own.",
        json_schema_extra={"additionalProperties": False},
    ),
]


class Request(BaseModel):
    """What a client sends; a field that is not known is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class JobRequest(Request):
    """A request for a job of the type `job_type`.

    Attributes:
        claims: what only one unfinished job may claim, by this request's fields; None for nothing.
        claimed_by: the field that an error names when another job has claimed it.
    """

    job_type: ClassVar[str]
    claims: ClassVar[str | None] = None
    claimed_by: ClassVar[str] = "gallery"

    @property
    def claim(self) -> str | None:
        """What this job claims."""
        return None if self.claims is None else self.claims.format_map(dict(self))


def _example(**fields: JsonValue) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


class GalleryDataset(Request):
    """What is enrolled in a gallery when the job starts, as a dataset."""

    gallery: GalleryName


Dataset = Annotated[
    Annotated[str, Field(pattern=_PLAIN_NAME), Tag("pack")]
    | Annotated[GalleryDataset, Tag("gallery")],
    Discriminator(_kind_of_dataset),
]


class DistillRequest(JobRequest):
    """Train a student from teachers by a recipe, and register it as the model `name`."""

    job_type = "distill"
    claims = "model:{name}"
    claimed_by = "name"
    model_config = _example(
        recipe="demo", name="my-student", dataset={"gallery": "default"}, teachers=["default"]
    )

    recipe: Annotated[str, Field(pattern=_PLAIN_NAME)]
    name: ModelName
    dataset: Dataset
    teachers: Annotated[list[ModelName], Field(max_length=8)]
    student: ModelName | None = None
    overrides: Annotated[
        dict[OverrideKey, Override],
        Field(max_length=64, json_schema_extra={"additionalProperties": False}),
    ] = {}
    needs: Needs = {}
    activate: Literal["never", "if_better"] = "never"
    gallery: GalleryName | None = Field(
        default=None,
        description="Where it is activated if better: by default the dataset's, else `default`.",
    )

    @property
    def target(self) -> str:
        """The gallery whose model the new one may become."""
        of_dataset = self.dataset.gallery if isinstance(self.dataset, GalleryDataset) else "default"
        return self.gallery or of_dataset

    @property
    def holds_out(self) -> bool:
        """Whether a fifth of the dataset's people is kept for comparing."""
        return self.activate == "if_better"

    @property
    def ancestors(self) -> list[str]:
        """The models that the new one is made from."""
        return [*self.teachers, *filter(None, [self.student])]


# Control characters and U+FEFF are spelt out: what `\s` holds differs between JSON Schema and here.
_CONDITION: Final = r"^[^,=\s\x00-\x1f\x7f-\x9f\ufeff]{1,64}$"
Conditions = Annotated[
    list[Annotated[str, Field(pattern=_CONDITION)]],
    Field(min_length=1, max_length=64),
]
"""Patterns of names of conditions, with `*`, `?` and `[…]`."""


class OwnConditions(Request):
    """These conditions enrolled, those ask: a protocol of one's own.

    Attributes:
        asked: by the name that its figures get.
        apart: degrees up to which views count as the same; identical ones always do.
    """

    enrolled: Conditions
    asked: Annotated[
        dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")], Conditions],
        Field(min_length=1, max_length=16, json_schema_extra={"additionalProperties": False}),
    ]
    apart: Annotated[float, Field(ge=0, le=180, strict=True, allow_inf_nan=False)] = 0


class EvaluateRequest(JobRequest):
    """Measure a registered model on a dataset by a protocol, or by conditions of one's own.

    Attributes:
        protocol: `cross-view` where neither is given.
    """

    job_type = "evaluate"
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "default", "dataset": {"gallery": "default"}, "protocol": "cross-view"}
            ],
            "not": {  # both; a job keeps what it was asked with null for the one not given
                "required": ["protocol", "conditions"],
                "properties": {"protocol": {"type": "string"}, "conditions": {"type": "object"}},
            },
        }
    )

    model: ModelName
    dataset: Dataset
    protocol: Protocol | None = None
    needs: Needs = {}
    conditions: OwnConditions | None = None

    @model_validator(mode="after")
    def _one_way(self) -> EvaluateRequest:
        if self.protocol and self.conditions:
            raise ValueError("give either a protocol or conditions")
        return self

    def by(self) -> Protocol | OwnConditions:
        """How the model is measured."""
        return self.conditions or self.protocol or "cross-view"


class GalleryChoice(Request):
    """Which gallery is meant."""

    gallery: GalleryName = "default"


class ActivateRequest(GalleryChoice, JobRequest):
    """Give a gallery another model; `instead_of` is the digest it was compared with, if any."""

    job_type = "activate"
    claims = _EMBEDDINGS

    name: ModelName
    instead_of: str | None = None


class ReindexRequest(GalleryChoice, JobRequest):
    """Make a gallery's embeddings complete and its indexes equal to the database."""

    job_type = "reindex"
    claims = _EMBEDDINGS


class CalibrateRequest(GalleryChoice, JobRequest):
    """Find the threshold at which a gallery falsely matches a stranger at most at this rate."""

    job_type = CALIBRATE
    claims = CALIBRATION_CLAIM

    target_fpir: Annotated[float, Field(ge=1e-6, le=0.25, strict=True, allow_inf_nan=False)] = 0.01


class AdaptRequest(GalleryChoice, JobRequest):
    """Fit a gallery's scene transform, and compare by it if that helps."""

    job_type = ADAPT
    claims = ADAPTATION_CLAIM


class FootageRequest(GalleryChoice, JobRequest):
    """Find the walks of everybody in a clip, and who they are.

    The clip lies in the job's folder. `filter` is metadata of candidates: a value, or several.
    """

    job_type = FOOTAGE

    top_k: Annotated[int, Field(ge=1, le=100)] = 5
    filter: dict[str, Scalar | list[Scalar | None] | None] | None = None
    keep_minutes: Annotated[int, Field(ge=1, le=MOST_MINUTES)] = 60


class AuditRequest(GalleryChoice, JobRequest):
    """List what in a gallery attracts other people."""

    job_type = "audit-gallery"
    claims = "audit:{gallery}"
