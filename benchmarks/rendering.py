"""How many frames a second are rendered, starting up included, by one process and by more.

python -m benchmarks.rendering --mocap DIR [--recipe render-test] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from training.process.processor import usable_cores


def rendered(recipe: str, mocap: Path, out: Path, processes: int) -> dict[str, float]:
    """Render a recipe as a user does."""
    begin = time.perf_counter()
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "training", "render", recipe, "--json"),
            *("--mocap", mocap, "--out", out, "--workers", str(processes)),
        ],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - begin
    frames = json.loads(ran.stdout.splitlines()[-1])["metrics"]["frames"]
    return {"seconds": round(seconds, 1), "frames_a_second": round(frames / seconds)}


def main() -> None:
    """Run and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mocap", type=Path, required=True, help="folder of recordings")
    parser.add_argument("--recipe", default="render-test", help="what to render")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for processes in sorted({1, 2, usable_cores()}):
            out = Path(folder) / f"{processes}.pack"
            rows[f"processes: {processes}"] = rendered(
                options.recipe, options.mocap, out, processes
            )
    result = {"benchmark": "rendering", "machine": machine.describe(), "rows": rows}
    machine.publish(result, options.out)


if __name__ == "__main__":
    main()
