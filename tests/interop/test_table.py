"""The table that the interop tests fill."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import table
from tests.interop.table import FAILED, NOT_TO_BE_HAD, PASSED, Row


def test_the_newest_row_of_a_feature_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "TABLE", tmp_path / "deep" / "table.jsonl")
    assert table.read() == []
    go = Row(client="go", version="2", feature="send", result=FAILED, messages=7, lost=1)
    table.record(go)
    lua = table.record(Row(client="lua", version="1", feature="send", result=NOT_TO_BE_HAD, note="no registry has it"))
    mended = table.record(Row(client="go", version="2", feature="send", result=PASSED, messages=10_000, lost=0))
    assert table.read() == [mended, lua]
    table.clear()
    assert table.read() == []


def test_the_table_names_a_client_once_and_shows_what_does_not_apply_as_nothing() -> None:
    rows = [
        Row(
            client="go", version="2", feature="a|b", result=PASSED, messages=10_000, kills=3, lost=0, twice=0, errors=2
        ),
        Row(client="go", version="2", feature="push", result=PASSED),
    ]
    assert table.markdown(rows).splitlines()[2:] == [
        "| go | 2 | a\\|b | passed | 10,000 | 3 | 0 | 0 | 2 |  |",
        "|  |  | push | passed |  |  |  |  |  |  |",
    ]
