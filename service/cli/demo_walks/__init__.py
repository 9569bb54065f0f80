"""Walkers that ship with GaitID: `PERSON/walk-N.zip`, silhouettes as a segmenter left them.

They are rendered, nobody is in them: see `LICENCE.md` beside them.
"""

from pathlib import Path
from typing import Final

WALKS: Final = Path(__file__).parent
"""The folder with one folder a person; the last is the stranger."""
