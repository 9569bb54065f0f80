"""Options and arguments that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from service.cli.failure import WrongUsage

LOCAL = "http://127.0.0.1:8000"

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the deployment's data. [GAITID_DATA_DIR, else data]")
]
Url = Annotated[
    str, typer.Option(envvar="GAITID_URL", help="Where the service listens.", show_default=True)
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="GAITID_API_KEY", help="Better set in the environment.")
]
Gallery = Annotated[str, typer.Option(help="The gallery to use.")]
WalkFile = Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A walk's file.")]
Threshold = Annotated[
    float | None, typer.Option(min=-1, max=1, help="Instead of the gallery's or the model's.")
]
TargetFpir = Annotated[float, typer.Option(help="At most this share of strangers may be matched.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answers as JSON; of lists an object a line.")]
Wait = Annotated[bool, typer.Option(help="Follow the job to its end.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def json_object(option: str, text: str | None) -> dict[str, Any] | None:
    """An option's JSON object, if it was given; raises `WrongUsage` for anything else."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise WrongUsage(f"{option} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise WrongUsage(f"{option} must be a JSON object")
    return value
