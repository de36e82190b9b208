"""The table that the interop tests fill."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import table
from tests.interop.table import FAILED, NOT_TO_BE_HAD, PASSED, Row


def test_the_newest_row_of_a_feature_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "TABLE", tmp_path / "deep" / "table.jsonl")
    monkeypatch.setattr(table, "recorded", [])
    assert table.read() == []
    go = Row(client="go", version="2", feature="send", result=FAILED, messages=7, lost=1)
    table.record(go)
    lua = table.record(Row(client="lua", version="1", feature="send", result=NOT_TO_BE_HAD, note="no registry has it"))
    mended = table.record(Row(client="go", version="2", feature="send", result=PASSED, messages=10_000, lost=0))
    assert table.read() == [mended, lua]
    table.clear()
    assert table.read() == []


def test_what_is_published_can_be_read_again_and_only_what_ran_again_is_replaced(tmp_path: Path) -> None:
    readme, document = tmp_path / "README.md", tmp_path / "compatibility.md"
    frame = f"before\n\n{table.BEGIN}\n{table.END}\n\nafter\n"
    readme.write_text(frame)
    document.write_text(frame)
    go = Row(client="go", version="2", feature="a|b", result=FAILED, messages=10_000, lost=1, note="x | y")
    push = Row(client="go", version="2", feature="push", result=PASSED, messages=5, kills=2, errors=0)
    lua = Row(client="lua", version="1", feature="send", result=NOT_TO_BE_HAD, note="no registry has it")
    table.publish([go, push, lua], readme=readme, document=document)
    assert table.parse(document.read_text()) == [go, push, lua]
    assert "| go | 2 | a\\|b · push | 1 of 2 passed; a\\|b: failed | 10,005 | 2 | 1 | 0 | 0 |" in readme.read_text()
    mended = Row(client="go", version="2", feature="a|b", result=PASSED, messages=10_000, lost=0)
    table.publish([mended], readme=readme, document=document)
    assert table.parse(document.read_text()) == [mended, push, lua]
    assert "2 of 2 passed" in readme.read_text()
    for path in (readme, document):
        assert path.read_text().startswith("before\n\n")
        assert path.read_text().endswith("\n\nafter\n")


def test_the_readme_says_what_the_document_says() -> None:
    """Both are written by the suite; a line changed by hand shows here."""
    rows = table.parse(table.DOCUMENT.read_text(encoding="utf-8"))
    assert rows == sorted(rows, key=lambda row: (row.client, row.version, row.feature))
    assert f"{table.BEGIN}\n\n{table.summary(rows)}\n{table.END}" in table.README.read_text(encoding="utf-8")


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
