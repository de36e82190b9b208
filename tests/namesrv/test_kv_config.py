"""Key-value settings: a pure table and its file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from namesrv import kv_config
from namesrv.kv_config import KVConfig, KVFile, KVFull


def test_keys_are_set_changed_and_removed_in_a_new_table() -> None:
    empty = KVConfig()
    one = empty.changed("ns", "k", "v")
    assert empty.get("ns", "k") is None
    assert one.get("ns", "k") == "v"
    assert one.changed("ns", "k", "w").namespace("ns") == {"k": "w"}
    assert one.changed("ns", "k", None).namespace("ns") is None
    assert one.changed("other", "k", None).namespace("ns") == {"k": "v"}


def test_the_file_form_is_rocketmqs_and_reads_back() -> None:
    table = KVConfig().changed("ORDER_TOPIC_CONFIG", "T", "broker-a:4").changed("ns", "ключ", "значение \ud800")
    data = table.encode()
    assert b'"configTable"' in data
    assert KVConfig.decode(KVConfig().changed("ns", "k", "v").encode()).namespace("ns") == {"k": "v"}


@pytest.mark.parametrize("data", [b"", b"nonsense", b"[]", b'{"configTable":{"ns":1}}', b"[" * 100_000, b"\xff"])
def test_anything_else_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        KVConfig.decode(data)


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_config, "BYTES_MAX", 10)
    table = KVConfig().changed("ns", "k", "1234567")
    with pytest.raises(KVFull):
        table.changed("ns", "k2", "")
    assert table.changed("ns", "k", None).get("ns", "k") is None


@pytest.mark.trio
async def test_a_saved_table_is_loaded_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    file = KVFile(tmp_path / "deep" / "kv.json")
    assert await file.load() is None
    await file.save(b"one")
    await file.save(b"two")
    assert await file.load() == b"two"
    assert os.listdir(tmp_path / "deep") == ["kv.json"]


@pytest.mark.trio
async def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = KVFile(tmp_path / "kv.json")
    await file.save(b"old")
    (tmp_path / "kv.json.new").mkdir()
    with pytest.raises(OSError):
        await file.save(b"new")
    assert await file.load() == b"old"
