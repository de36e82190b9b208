"""Tidying up by request: expired log (329), index (306), topics nobody uses (316).

RocketMQ's brokers need the last two because files of their queues outlive what they belong to. Here the index follows
the log, and a topic's queues go with the topic; there is nothing left to tidy, and the answer says so. 329 runs the
retention that runs by itself too: what it may remove is a question of fileReservedTime and the disk, not of who asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.processor.request import Refused, Request
from broker.store.errors import StoreError
from trimq.wire.codes import ResponseCode

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["Upkeep"]


class Upkeep:
    """Serves one replica."""

    def __init__(self, store: MessageStore) -> None:
        self._store = store

    async def expired_log(self, request: Request) -> bytes:
        """Code 329."""
        try:
            removed = await self._store.retain()
        except (StoreError, OSError) as error:
            raise Refused(ResponseCode.SYSTEM_ERROR, f"retention failed: {error}") from None
        return request.success(remark=f"{removed} segments removed")

    async def expired_index(self, request: Request) -> bytes:
        """Code 306."""
        return request.success(remark="nothing to do: the index follows the log by itself")

    async def unused_topics(self, request: Request) -> bytes:
        """Code 316."""
        return request.success(remark="nothing to do: a deleted topic's queues go with it")
