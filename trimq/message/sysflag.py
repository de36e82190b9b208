"""The bits of a stored message's `sysFlag`.

Producers set compression, transaction and batch bits; the broker keeps what they sent but decides the host bits from
the real addresses, since these change the layout of the record.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "BORN_HOST_V6",
    "COMPRESSED",
    "COMPRESSION_LZ4",
    "COMPRESSION_MASK",
    "COMPRESSION_ZLIB",
    "COMPRESSION_ZSTD",
    "HOST_MASK",
    "INNER_BATCH",
    "MULTI_TAGS",
    "NEED_UNWRAP",
    "STORE_HOST_V6",
    "TRANSACTION_COMMIT",
    "TRANSACTION_MASK",
    "TRANSACTION_NONE",
    "TRANSACTION_PREPARED",
    "TRANSACTION_ROLLBACK",
    "with_hosts",
]

COMPRESSED: Final = 0x1
MULTI_TAGS: Final = 0x2
"""The topic's filter type is MULTI_TAG."""

TRANSACTION_MASK: Final = 0xC
TRANSACTION_NONE: Final = 0x0
TRANSACTION_PREPARED: Final = 0x4
TRANSACTION_COMMIT: Final = 0x8
TRANSACTION_ROLLBACK: Final = 0xC

BORN_HOST_V6: Final = 0x10
STORE_HOST_V6: Final = 0x20
HOST_MASK: Final = BORN_HOST_V6 | STORE_HOST_V6

NEED_UNWRAP: Final = 0x40
"""The consumer unwraps an inner batch (5.x batch topics)."""
INNER_BATCH: Final = 0x80

COMPRESSION_MASK: Final = 0x700
COMPRESSION_LZ4: Final = 0x100
COMPRESSION_ZSTD: Final = 0x200
COMPRESSION_ZLIB: Final = 0x300
"""Also what no compression bit at all means, beside COMPRESSED: old clients know only zlib."""


def with_hosts(sys_flag: int, born_host: bytes, store_host: bytes) -> int:
    """The flag with its host bits set from the two addresses (8 bytes: IPv4, 20 bytes: IPv6)."""
    flag = sys_flag & ~HOST_MASK
    if len(born_host) == 20:
        flag |= BORN_HOST_V6
    if len(store_host) == 20:
        flag |= STORE_HOST_V6
    return flag
