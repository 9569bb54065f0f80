"""Run the benchmarks that need nothing; write benchmarks/results/NAME.json and docs/benchmarks.md.

Those that need data sets are run by hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
NAMES = (
    *("embedding", "front_half", "identify", "activation", "access"),
    *("train_input", "train_step"),
)
SERVED = ("identify", "activation")
"""Here a service computes, in another process than the one whose threads a result tells."""
BY_HAND = Path(__file__).parent / "by_hand.md"
"""What the page says of the benchmarks that need data sets."""


def table(rows: dict[str, dict[str, Any]]) -> str:
    """A Markdown table: a line a row, a column a figure; figures of figures are spread out."""
    flat = {name: _spread(row) for name, row in rows.items()}
    columns = list(dict.fromkeys(column for row in flat.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {name} | {' | '.join(str(row.get(column, '')) for column in columns)} |"
        for name, row in flat.items()
    ]
    return "\n".join(lines)


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    spread: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            spread |= {f"{name}: {inner}": figure for inner, figure in value.items()}
        else:
            spread[name] = value
    return spread


def page(results: dict[str, dict[str, Any]]) -> str:
    """docs/benchmarks.md from the results of every benchmark."""
    machine = next(iter(results.values()))["machine"]
    shared = {key: value for key, value in machine.items() if key != "torch_threads" and value}
    about = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in shared.items())
    parts = [
        "# Benchmarks",
        "`make bench` writes this page and `benchmarks/results/*.json`. A table's figures come "
        "from one run: trust the ratios, machines are noisy.",
        f"Measured on: {about}.",
    ]
    for name, result in results.items():
        title = result["benchmark"]
        threads = "" if name in SERVED else f", torch threads {result['machine']['torch_threads']}"
        parts.append(f"## {title[0].upper()}{title[1:]}")
        parts.append(f"`python -m benchmarks.{name}`{threads}")
        parts.append(table(result["rows"]))
    return "\n\n".join([*parts, BY_HAND.read_text(encoding="utf-8")])


def main() -> None:
    """Run all of them, each in a process of its own."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    RESULTS.mkdir(exist_ok=True)
    for name in NAMES:
        sys.stdout.write(f"{name} …\n")
        out = str(RESULTS / f"{name}.json")
        subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", "--out", out],
            check=True,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
    results = {
        name: json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES
    }
    PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
