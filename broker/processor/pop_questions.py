"""Questions about pops: what would one give now (200052), and how many are held (200055). They change nothing."""

from __future__ import annotations

from broker.config import BrokerConfig
from broker.filter.selection import ALL
from broker.metadata.ops import key_of
from broker.processor.pop_checks import COUNT_MAX, check_wait, topic_of
from broker.processor.pop_choosing import PopChoosing
from broker.processor.request import Request
from broker.replication.intake import Intake
from broker.service.pop_waits import PopWait, PopWaits
from broker.store.message_store import MessageStore
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.pop import INIT_MIN, PeekHeader, PollingInfoHeader, PollingInfoResponse, PopResponse

__all__ = ["PopQuestions"]


class PopQuestions:
    """Serves one replica."""

    def __init__(
        self, config: BrokerConfig, store: MessageStore, intake: Intake, choosing: PopChoosing, waits: PopWaits
    ) -> None:
        self._config = config
        self._store = store
        self._intake = intake
        self._choosing = choosing
        self._waits = waits

    async def peek(self, request: Request) -> bytes:
        """Code 200052: what a pop would give now; nothing becomes invisible."""
        header = PeekHeader.from_ext(request.ext)
        wait = PopWait(
            reply=request.reply,
            opaque=request.command.opaque,
            serialize=request.serialize,
            group=header.consumer_group,
            topic=header.topic,
            queue=header.queue_id,
            count=min(max(1, header.max_msg_nums), COUNT_MAX),
            invisible_ms=0,
            ordered=False,
            attempt="",
            filter=ALL,
            init=INIT_MIN,
            deadline=0.0,
        )
        check_wait(self._config, self._intake, wait)
        parts: list[bytes] = []
        rest, left = 0, wait.count
        gid = self._intake.ensure_group(wait.group).gid
        for _, topic, queue in self._choosing.queues(wait):
            key = key_of(topic.tid, queue)
            start = max(self._choosing.start(wait, gid, key), self._store.queues.first_offset(key))
            rest += max(0, self._store.queues.next_offset(key) - start)
            if left and start < self._store.queues.next_offset(key):
                found = await self._store.get_from_disk(key, start, left, self._config.hot_bytes, None)
                parts += found.parts
                left -= found.count
        ext = PopResponse(rest_num=rest).to_ext()
        if not parts:
            return request.answer(ResponseCode.PULL_NOT_FOUND, "NO_MESSAGE_IN_QUEUE", ext)
        return request.success(ext, body=b"".join(parts), remark="FOUND")

    async def polling_info(self, request: Request) -> bytes:
        """Code 200055: how many pops are held for this queue (-1: for any)."""
        header = PollingInfoHeader.from_ext(request.ext)
        topic_of(self._intake.view, header.topic)
        held = self._waits.waiting((header.consumer_group, header.topic))
        count = sum(wait.queue == header.queue_id and not wait.asks_only for wait in held)
        return request.success(PollingInfoResponse(polling_num=count).to_ext())
