"""Whose store this is: cluster and replica group by name, and the format of the whole.

Written once, when the store is first opened; compared at every later start. A folder that was copied to the wrong node
or given to the wrong group is refused before anything in it is read as data.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

import cbor2

from .errors import StoreRefused
from .fs import FileSystem, read_whole, write_whole

__all__ = ["FORMAT", "check_identity"]

IDENTITY_PATH: Final = "identity"
FORMAT: Final = 1
"""Rises when files under the root change in a way that an older version would misread."""

_LIMIT: Final = 64 * 1024


async def check_identity(fs: FileSystem, *, cluster: str, group: str) -> None:
    """Compare the store with what was configured, or write the file in a new store.

    Raises `StoreRefused` (another cluster or group, a newer format) and `OSError`. A file that is damaged is written
    anew: the log's own lineage still tells strangers apart.
    """
    try:
        found = _parse(await read_whole(fs, IDENTITY_PATH, limit=_LIMIT))
    except FileNotFoundError:
        found = None
    if found is None:
        await write_whole(fs, IDENTITY_PATH, [_pack(cluster, group)])
        return
    version, there_cluster, there_group = found
    if version > FORMAT:
        raise StoreRefused(f"the store has format {version}, this version reads {FORMAT}: start it with a newer trimq")
    for what, there, here in (("cluster", there_cluster, cluster), ("group", there_group, group)):
        if there != here:
            raise StoreRefused(
                f"the store belongs to {what} {there!r}, the configuration says {here!r}: "
                "check storePathRootDir, brokerClusterName and brokerName"
            )


def _pack(cluster: str, group: str) -> bytes:
    body = cbor2.dumps([FORMAT, cluster, group], canonical=True)
    return struct.pack(">I", crc32(body)) + body


def _parse(data: bytes) -> tuple[int, str, str] | None:
    if len(data) < 5 or struct.unpack(">I", data[:4])[0] != crc32(data[4:]):
        return None
    fields = cbor2.loads(data[4:])
    if not isinstance(fields, list) or len(fields) < 3 or not isinstance(fields[0], int):
        return None
    return fields[0], str(fields[1]), str(fields[2])
