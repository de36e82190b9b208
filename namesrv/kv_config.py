"""Key-value settings (codes 100-102, 219): the only thing that a name server keeps on disk.

`KVConfig` is a pure table; `KVFile` writes it. A change is answered when it is on the disk: the file is written under
another name, synced, renamed, and its directory synced, so that a crash leaves the old or the new one. The format is
RocketMQ's `kvConfig.json`, `{"configTable":{namespace:{key:value}}}`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol

import msgspec
import trio

__all__ = ["ORDER_TOPIC_CONFIG", "KVConfig", "KVFile", "KVFull", "KVStore"]

ORDER_TOPIC_CONFIG = "ORDER_TOPIC_CONFIG"
"""Namespace of order configurations: topic -> `broker-a:4;broker-b:4`."""

BYTES_MAX = 4 * 1024 * 1024
"""All names and values together: the table is written whole with every change."""


class KVFull(Exception):
    """The table would exceed `BYTES_MAX`."""


class KVStore(Protocol):
    """Where the table is kept."""

    async def load(self) -> bytes | None:
        """What was saved last; None when nothing was. Raises `OSError`."""
        ...

    async def save(self, data: bytes) -> None:
        """Returns when `data` is on the disk. Raises `OSError`; the old content is valid then."""
        ...


class KVConfig:
    """namespace -> key -> value."""

    def __init__(self, table: dict[str, dict[str, str]] | None = None) -> None:
        self._table = table or {}
        self._size = sum(
            len(namespace) + sum(len(k) + len(v) for k, v in kvs.items()) for namespace, kvs in self._table.items()
        )

    @classmethod
    def decode(cls, data: bytes) -> KVConfig:
        """Raises `ValueError` for anything that `encode` did not write."""
        try:
            stored = msgspec.json.decode(data, type=dict[str, dict[str, dict[str, str]]])
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        return cls(stored.get("configTable", {}))

    def encode(self) -> bytes:
        return json.dumps({"configTable": self._table}, indent=1, sort_keys=True, ensure_ascii=False).encode(
            "utf-8", "surrogatepass"
        )

    def get(self, namespace: str, key: str) -> str | None:
        return self._table.get(namespace, {}).get(key)

    def namespace(self, namespace: str) -> dict[str, str] | None:
        """A copy of all keys of a namespace; None when it has none."""
        kvs = self._table.get(namespace)
        return dict(kvs) if kvs else None

    def changed(self, namespace: str, key: str, value: str | None) -> KVConfig:
        """A new table with `key` set, or removed when `value` is None. Raises `KVFull`."""
        table = {name: dict(kvs) for name, kvs in self._table.items()}
        if value is None:
            table.get(namespace, {}).pop(key, None)
            if not table.get(namespace, True):
                del table[namespace]
        else:
            table.setdefault(namespace, {})[key] = value
        changed = KVConfig(table)
        if changed._size > BYTES_MAX:
            raise KVFull(f"key-value settings may have {BYTES_MAX} characters in all")
        return changed


class KVFile:
    """A file on the real disk; calls run in a thread."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> bytes | None:
        try:
            return await trio.to_thread.run_sync(self._path.read_bytes)
        except FileNotFoundError:
            return None

    async def save(self, data: bytes) -> None:
        await trio.to_thread.run_sync(self._save, data)

    def _save(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(self._path.name + ".new")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
