"""One row per thing that a foreign client did against us: what the compatibility table is made of.

Every interop test calls `record` with what it measured, also when it measured something poor, and before it asserts.
Rows are kept in a file beside the clients' environments, one JSON object a line; the last row of a (client, version,
feature) counts, so a suite that runs in several sittings still makes one table. `python -m tests.interop.table` prints
it as Markdown; nobody writes it by hand.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

__all__ = ["FAILED", "NOT_TO_BE_HAD", "PASSED", "Row", "clear", "markdown", "read", "record"]

PASSED = "passed"
FAILED = "failed"
NOT_TO_BE_HAD = "not to be had here"
"""The registries of this machine do not have the client; `note` says what was asked for."""

TABLE = Path(os.environ.get("TRIMQ_INTEROP_TABLE", Path(__file__).resolve().parents[2] / ".interop" / "table.jsonl"))
"""Ignored by git, like the environments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one client did with one feature."""

    client: str
    """As its users call it: `rocketmq-client (Java)`, `ali-ons (npm)`."""
    version: str
    feature: str
    """A few words: `send + push, 3 leader kills`."""
    result: str
    """`PASSED`, `FAILED`, `NOT_TO_BE_HAD`, or a word of the test's own with a `note`."""
    messages: int | None = None
    """Messages that the client was told are stored. None in the counts: does not apply."""
    kills: int | None = None
    """Leaders killed meanwhile."""
    lost: int | None = None
    """Acknowledged and not found in any queue."""
    twice: int | None = None
    """Stored more than once."""
    errors: int | None = None
    """Errors that reached the application."""
    note: str = ""


def record(row: Row) -> Row:
    """Keep a row and print it; returns it, for the assertions that follow."""
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    # One write of one line: suites that run at the same time do not mix theirs.
    with TABLE.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(row)) + "\n")
    sys.stdout.write("\n" + " ".join(f"{key}={value}" for key, value in asdict(row).items() if value not in (None, "")))
    return row


def read(path: Path | None = None) -> list[Row]:
    """The newest row of each (client, version, feature), sorted."""
    path = path or TABLE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    newest = {(row.client, row.version, row.feature): row for row in (Row(**json.loads(line)) for line in lines)}
    return [newest[key] for key in sorted(newest)]


def clear() -> None:
    """Forget all rows: a full run of the suite begins with this."""
    TABLE.unlink(missing_ok=True)


def markdown(rows: Iterable[Row]) -> str:
    """The table, repeated names left out."""
    lines = [
        "| client | version | what it did | result | messages | kills | lost | twice | errors | |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    before: tuple[str, str] = ("", "")
    for row in rows:
        names = (row.client, row.version)
        shown = row if names != before else replace(row, client="", version="")
        before = names
        counts = [
            "" if count is None else f"{count:,}"
            for count in (row.messages, row.kills, row.lost, row.twice, row.errors)
        ]
        cells = [shown.client, shown.version, row.feature, row.result, *counts, row.note]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--clear"]:
        clear()
    else:
        sys.stdout.write(markdown(read()))
