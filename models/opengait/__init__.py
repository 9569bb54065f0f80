"""OpenGait's checkpoints, turned into ours."""

from models.opengait.format import OpenGaitError
from models.opengait.importing import convert, import_opengait

__all__ = ["OpenGaitError", "convert", "import_opengait"]
