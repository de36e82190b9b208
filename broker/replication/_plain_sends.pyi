"""Plain sends, where they are compiled (`_plain_sends.pyx`)."""

from collections.abc import Callable, Sequence
from typing import final

@final
class Run:
    """The plain sends at the beginning of a list of frames."""

    def __new__(cls, frames: Sequence[bytes], first: int, most: int, body_max: int) -> Run: ...
    @property
    def topics(self) -> list[bytes]: ...
    @property
    def count(self) -> int: ...
    @property
    def numbered(self) -> bool: ...
    def end_before_topic(self, topic: int) -> None: ...
    def end_at_queues(self, write_queues: list[int]) -> None: ...
    def keys(self, careful_key: Callable[[bytes, bytes, int], int]) -> list[int | None]: ...
    def sequence(self, number: int) -> tuple[int, int, int, int]: ...
    def without_id(self, first: int, end: int) -> int: ...
    def bytes_wanted(self, number: int, beside: int) -> int: ...
    def fitting(self, first: int, cost: int, limit: int, records: int, beside: int, run_bytes: int) -> int: ...
    def place(
        self,
        first: int,
        end: int,
        position: int,
        tids: list[int],
        following: dict[int, int],
        next_offset: Callable[[int], int],
    ) -> tuple[dict[int, int], list[tuple[int, int, int]]]: ...
    def records(
        self,
        first: int,
        end: int,
        crc32: Callable[[bytes], int],
        ids: list[str],
        multi_tags: list[bool],
        born_host: bytes,
        store_ms: int,
        store_host: bytes,
        multi_tags_flag: int,
    ) -> list[bytes]: ...
    def answers(
        self,
        first: int,
        end: int,
        before_id: bytes,
        before_queue: bytes,
        before_offset: bytes,
        before_opaque: bytes,
        after: bytes,
    ) -> tuple[bytes, list[int]]: ...
    def body_bytes(self, first: int, end: int) -> int: ...

@final
class Batch:
    """The elements of a batch's body; `count` is 0 when they are not all plain."""

    def __new__(cls, raw: bytes, numbered: bool) -> Batch: ...
    @property
    def count(self) -> int: ...
    @property
    def without_id(self) -> int: ...
    @property
    def text_bytes(self) -> int: ...
    def keys(
        self, topic: bytes, reconsume_times: int, careful_key: Callable[[bytes, bytes, int], int]
    ) -> list[int | None]: ...
    def records(
        self,
        crc32: Callable[[bytes], int],
        ids: list[str],
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
    ) -> tuple[list[bytes], list[int]]: ...
