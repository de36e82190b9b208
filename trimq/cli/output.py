"""What commands print: a table for people, one JSON document for programs (`--json`).

rich is imported only when a table is drawn, and only decorates on a terminal: piped output is plain columns.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

__all__ = ["json_option", "namesrv_option", "print_json", "print_table"]

DEFAULT_NAMESRV = "127.0.0.1:9876"

namesrv_option: Callable[[Any], Any] = click.option(
    "-n",
    "--namesrv",
    envvar="NAMESRV_ADDR",
    default=DEFAULT_NAMESRV,
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT[;HOST:PORT...]",
    help="Name server(s).",
)
json_option: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Columns on standard output; numbers are right-aligned."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    numeric = [bool(cells) and all(_is_number(row[at]) for row in cells) for at in range(len(columns))]
    if sys.stdout.isatty():
        _draw(columns, cells, numeric, title)
        return
    widths = [max(len(row[at]) for row in [list(columns), *cells]) for at in range(len(columns))]
    for row in [list(columns), *cells]:
        parts = [cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)]
        click.echo("  ".join(parts).rstrip())


def _draw(columns: Sequence[str], cells: list[list[str]], numeric: list[bool], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in cells:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


def _is_number(text: str) -> bool:
    return text == "" or text.lstrip("-").replace(".", "", 1).isdigit()
