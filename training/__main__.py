"""`python -m training`: the processor is settled first, which only libraries still to load heed."""

from __future__ import annotations

import os

from models.networks.allocator import keep_all_freed_memory
from training.process.processor import settle


def main() -> None:
    """Run the command line."""
    settle(os.environ)
    keep_all_freed_memory()
    from training.cli.commands import app

    app()


if __name__ == "__main__":
    main()
