"""Print the packages that pyproject.toml asks for: an image installs them before the source."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
wanted = [
    *project["build-system"]["requires"],
    *project["project"]["dependencies"],
    *project["project"]["optional-dependencies"][sys.argv[1]],
]
sys.stdout.write("\n".join(wanted) + "\n")
