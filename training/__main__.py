"""`python -m training`: the processor is settled first, which only libraries still to load heed."""

from __future__ import annotations

import os

from models.networks.allocator import keep_all_freed_memory
from training.process.processor import configure_processor


def main() -> None:
    """Run the command line."""
    configure_processor(os.environ)
    keep_all_freed_memory()
    from training.cli.commands import app

    app()


if __name__ == "__main__":
    main()
