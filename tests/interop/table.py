"""One row per thing that a foreign client did against us: what the compatibility table is made of.

Every interop test calls `record` with what it measured, also when it measured something poor, and before it asserts.
Rows are kept in a file beside the clients' environments, one JSON object a line; the last row of a (client, version,
feature) counts, so a suite that runs in several sittings still makes one table. `python -m tests.interop.table` prints
it as Markdown, and with `--publish` enters it in `docs/compatibility.md` (every row) and in the README (a line per
client and version), as the suite does at its end; nobody writes it by hand. Rows that were not run again stay.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

__all__ = [
    "FAILED",
    "NOT_TO_BE_HAD",
    "PASSED",
    "Row",
    "clear",
    "markdown",
    "parse",
    "publish",
    "read",
    "record",
    "recorded",
    "summary",
]

ROOT = Path(__file__).resolve().parents[2]
README, DOCUMENT = ROOT / "README.md", ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- compatibility: written by tests/run.sh --interop -->", "<!-- compatibility ends -->"

PASSED = "passed"
FAILED = "failed"
NOT_TO_BE_HAD = "not to be had here"
"""The registries of this machine do not have the client; `note` says what was asked for."""

TABLE = Path(os.environ.get("TRIMQ_INTEROP_TABLE", ROOT / ".interop" / "table.jsonl"))
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


recorded: list[Row] = []
"""By this process."""


def record(row: Row) -> Row:
    """Keep a row and print it; returns it, for the assertions that follow."""
    recorded.append(row)
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


_HEAD = (
    "| client | version | what it did | result | messages | kills | lost | twice | errors | |",
    "|---|---|---|---|---:|---:|---:|---:|---:|---|",
)


def markdown(rows: Iterable[Row]) -> str:
    """The table, repeated names left out."""
    lines = [*_HEAD]
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


def parse(text: str) -> list[Row]:
    """The rows of a table as `markdown` writes it, wherever it stands in a text."""
    rows: list[Row] = []
    _, _, table = text.partition(_HEAD[1] + "\n")
    for line in table.splitlines():
        if not line.startswith("| "):
            break
        cells = [cell.replace("\0", "|").strip() for cell in line.replace("\\|", "\0").split("|")[1:-1]]
        client = cells[0] or rows[-1].client
        counts = [int(cell.replace(",", "")) if cell else None for cell in cells[4:9]]
        rows.append(
            Row(
                client=client,
                version=cells[1] if cells[0] else rows[-1].version,
                feature=cells[2],
                result=cells[3],
                messages=counts[0],
                kills=counts[1],
                lost=counts[2],
                twice=counts[3],
                errors=counts[4],
                note=cells[9],
            )
        )
    return rows


def summary(rows: Sequence[Row]) -> str:
    """A line per client and version."""
    lines = [
        "| client | version | features run | result | messages | kills | lost | twice | errors |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for (client, version), group in groupby(rows, key=lambda row: (row.client, row.version)):
        mine = list(group)
        others = [row for row in mine if row.result != PASSED]
        result = f"{len(mine) - len(others)} of {len(mine)} passed"
        if others:
            result += "; " + ", ".join(f"{row.feature}: {row.result}" for row in others)
        totals = [
            sum(getattr(row, name) or 0 for row in mine) for name in ("messages", "kills", "lost", "twice", "errors")
        ]
        cells = [client, version, " · ".join(row.feature for row in mine), result, *(f"{total:,}" for total in totals)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def publish(rows: Iterable[Row], *, readme: Path = README, document: Path = DOCUMENT) -> None:
    """Enter rows in the documents, between the markers; rows there that these do not replace stay."""
    text = document.read_text(encoding="utf-8")
    merged = {(row.client, row.version, row.feature): row for row in (*parse(text), *rows)}
    ordered = [merged[key] for key in sorted(merged)]
    document.write_text(_between(text, markdown(ordered), document), encoding="utf-8")
    text = readme.read_text(encoding="utf-8")
    readme.write_text(_between(text, summary(ordered), readme), encoding="utf-8")


def _between(text: str, table: str, where: Path) -> str:
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{where} has no markers for the table")
    return f"{head}{BEGIN}\n\n{table}\n{END}{tail}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--clear"]:
        clear()
    elif sys.argv[1:] == ["--publish"]:
        publish(read())
    else:
        sys.stdout.write(markdown(read()))
