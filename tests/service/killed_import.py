"""Imports an export and dies of SIGKILL in the middle of the transaction that adds it.

usage: killed_import.py DATABASE_URL EXPORT AFTER (how many reads of the spool)
"""

import os
import signal
import sys
from pathlib import Path
from tempfile import TemporaryFile

from service.storage.database import open_database
from service.transfer.export_file import ExportFile
from service.transfer.importing import GalleryImport, Spool

url, file, after = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])


class Fatal(Spool):
    """A spool that ends its reader."""

    reads = 0

    def read(self) -> bytes:
        """The next one, and after so many none."""
        self.reads += 1
        if self.reads > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read()


with (
    file.open("rb") as opened,
    TemporaryFile() as copies,
    ExportFile(opened, max_frames=1000) as export,
):
    new = GalleryImport(open_database(url), export, {}, Fatal(copies))
    new.check()
    new.add("copy")
