"""OpenGait's checkpoints, turned into ours."""

from models.opengait.importing import OpenGaitError, convert, import_opengait

__all__ = ["OpenGaitError", "convert", "import_opengait"]
