"""The compiled loops, where there are any (`_fast.pyx`)."""

from array import array
from collections.abc import Callable
from typing import Any

from trimq.message.record import Buffer

def walk(
    records: Buffer,
    topic_id: Callable[[bytes], int],
    key_seed: Callable[[int], int],
    code_of: Callable[[bytes], int],
    timer_topic: bytes,
) -> tuple[Any, ...] | None:
    """The fields of `Columns`, or None when the careful walk has to say what is there."""

def enter_ids(
    fresh: dict[int, int],
    topics: list[bytes],
    uniques: list[bytes | None],
    reconsumes: array[int],
    positions: array[int],
    covered: Buffer,
    careful_key: Callable[[bytes, bytes, int], int],
) -> None:
    """See `broker.metadata.id_window.enter_carefully`."""
