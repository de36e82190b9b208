"""The store's export and staging as the installer of package `raft` wants them, with the membership notes beside."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from broker.replication.raft_storage import MEMBERS_PATH
from broker.store.entry import EntryId
from broker.store.errors import StoreError
from broker.store.fs import FileSystem, read_whole
from broker.store.install import Export, ExportFile, ExportSource, Staging, open_export
from raft.core.types import EntryId as CoreEntryId
from raft.installer import ExportFailed

__all__ = ["ExportedFiles", "StagedFiles", "open_exported_files"]


class ExportedFiles:
    """`raft.installer.ExportLike`."""

    def __init__(self, export: Export, members: bytes) -> None:
        self.files: Sequence[tuple[str, int]] = [
            (MEMBERS_PATH, len(members)),
            *((file.name, file.size) for file in export.files),
        ]
        self.lineage = export.lineage
        last = export.last
        self.last = CoreEntryId(last.index, last.term, last.crc, last.end)
        self._export = export
        self._members = members

    async def read(self, name: str, at: int, size: int) -> bytes:
        if name == MEMBERS_PATH:
            return self._members[at : at + size]
        return await self._export.read(name, at, size)


@asynccontextmanager
async def open_exported_files(store: ExportSource) -> AsyncIterator[ExportedFiles]:
    """Pin this replica's files. Raises ExportFailed when it has nothing to give."""
    try:
        async with open_export(store) as export:
            yield ExportedFiles(export, await read_whole(store.fs, MEMBERS_PATH))
    except (StoreError, FileNotFoundError) as error:
        raise ExportFailed(str(error)) from error


class StagedFiles:
    """`raft.installer.StagingLike`."""

    def __init__(self, fs: FileSystem) -> None:
        self._staging = Staging(fs)

    async def begin(self, files: Sequence[tuple[str, int]], lineage: int, last: CoreEntryId) -> Mapping[str, int]:
        try:
            return await self._staging.begin(
                [ExportFile(name, size) for name, size in files],
                lineage,
                EntryId(last.index, last.term, last.crc, last.end),
            )
        except StoreError as error:
            raise ExportFailed(str(error)) from error

    async def write(self, name: str, at: int, data: bytes) -> None:
        try:
            await self._staging.write(name, at, data)
        except StoreError as error:
            raise ExportFailed(str(error)) from error

    async def finish(self) -> None:
        try:
            await self._staging.finish()
        except StoreError as error:
            raise ExportFailed(str(error)) from error

    async def aclose(self) -> None:
        await self._staging.aclose()
