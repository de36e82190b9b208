"""The compiled loops, where there are any (`_fast.pyx`)."""

from array import array
from collections.abc import Callable
from typing import Any

from trimq.message.batch import BatchElement
from trimq.message.record import Buffer

def walk(
    records: Buffer,
    topic_id: Callable[[bytes], int],
    key_seed: Callable[[int], int],
    code_of: Callable[[bytes], int],
    timer_topic: bytes,
) -> tuple[Any, ...] | None:
    """The fields of `Columns`, or None when the careful walk has to say what is there."""

def pack_run(
    elements: list[BatchElement],
    crc32: Callable[[bytes], int],
    topic: bytes,
    queue_id: int,
    queue_offset: int,
    position: int,
    sys_flag: int,
    born_ms: int,
    born_host: bytes,
    store_ms: int,
    store_host: bytes,
    reconsume_times: int,
    prepared_offset: int,
) -> list[bytes] | None:
    """See `trimq.message.batch.pack_run_carefully`; None when that has to look. `OverflowError` for a large number."""

def enter_ids(
    fresh: dict[int, int],
    topics: list[bytes],
    uniques: list[bytes | None],
    reconsumes: array[int],
    positions: array[int],
    covered: Buffer,
    id_key: Callable[[bytes, bytes, int], int],
) -> None:
    """See `broker.metadata.id_window.enter_carefully`."""
