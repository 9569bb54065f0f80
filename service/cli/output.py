"""Answers, printed for people and for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from service.client.answers import Answer

Item = TypeVar("Item", bound="Answer")

_WIDE = 500  # columns where it is no terminal, so that nothing is cut off


def print_answer(answer: Answer) -> None:
    """Print one answer as JSON, indented in a terminal."""
    typer.echo(answer.model_dump_json(indent=2 if sys.stdout.isatty() else None))


def print_object(content: Mapping[str, Any]) -> None:
    """Print one line of JSON."""
    typer.echo(json.dumps(content, ensure_ascii=False))


def print_list(
    items: Iterable[Item], columns: Mapping[str, Callable[[Item], object]], *, as_json: bool
) -> None:
    """Print a table with these columns, or one JSON object a line."""
    if as_json:
        for item in items:
            typer.echo(item.model_dump_json())
    else:
        print_table(columns, ([value(item) for value in columns.values()] for item in items))


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a table. Characters that would control the terminal are replaced."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False).print(table)


def printable(value: object) -> str:
    """Return a value as text in one line, without characters that control the terminal."""
    from datetime import datetime

    if value is None:
        return "-"
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return " ".join(f"{name}={printable(item)}" for name, item in value.items()) or "-"
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
        for character in str(value)
    )
