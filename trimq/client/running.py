"""What a push consumer knows of its own work, for operators (`mqadmin consumerStatus`) and for traces."""

from __future__ import annotations

from collections.abc import Mapping

import anyio

from trimq.client.instance import Instance
from trimq.client.model import Queue
from trimq.client.rates import ConsumeRates
from trimq.client.reader import Reader
from trimq.client.received import Received
from trimq.wire.body.heartbeat import SubscriptionData
from trimq.wire.body.lock import MQ
from trimq.wire.body.running import ConsumerRunningInfo, ProcessQueueInfo

__all__ = ["Running"]


class Running:
    """Told of each pull and of each message's block."""

    def __init__(self, instance: Instance, group: str, readers: Mapping[Queue, Reader], *, ordered: bool) -> None:
        self._instance = instance
        self._group = group
        self._readers = readers
        self._ordered = ordered
        self._rates = ConsumeRates()
        self._entered_at: dict[tuple[Queue, int], float] = {}
        self._last_consumed: dict[Queue, int] = {}

    def pulled(self, reader: Reader, count: int) -> None:
        """One pull brought so many messages."""
        self._rates.pulled(reader.queue.topic, count, reader.last_pull_s, anyio.current_time())

    def entered(self, message: Received, now: float) -> None:
        self._entered_at[message.queue, message.offset] = now

    def left(self, message: Received) -> None:
        self._entered_at.pop((message.queue, message.offset), None)

    def handled(self, message: Received, *, ok: bool) -> None:
        """A handler is done with it; noted once, and not for what never was in a block."""
        began = self._entered_at.pop((message.queue, message.offset), None)
        if began is not None:
            now = anyio.current_time()
            self._rates.handled(message.topic, now - began, now, ok=ok)
            self._last_consumed[message.queue] = self._instance.clock.wall_ms()
            if self._instance.tracer is not None:
                self._instance.tracer.consumed(message, self._group, now - began, ok=ok)

    def info(self, subscriptions: list[SubscriptionData], since_ms: int) -> ConsumerRunningInfo:
        """What `mqadmin consumerStatus` shows."""
        now_ms = self._instance.clock.wall_ms()
        return ConsumerRunningInfo(
            properties={
                "PROP_NAMESERVER_ADDR": ";".join(self._instance.namesrv.addresses),
                "PROP_CONSUME_TYPE": "CONSUME_PASSIVELY",
                "PROP_CONSUMEORDERLY": str(self._ordered).lower(),
                "PROP_CLIENT_VERSION": "V5_3_3",
                "PROP_THREADPOOL_CORE_SIZE": "0",
                "PROP_CONSUMER_START_TIMESTAMP": str(since_ms),
            },
            subscriptions=list(subscriptions),
            queues={
                MQ(brokerName=queue.group, queueId=queue.id, topic=queue.topic): ProcessQueueInfo(
                    cachedMsgCount=len(reader.process),
                    cachedMsgMinOffset=reader.process.commit_offset,
                    cachedMsgMaxOffset=max(reader.process.next_offset - 1, 0),
                    cachedMsgSizeInMiB=reader.process.bytes_held >> 20,
                    commitOffset=reader.process.commit_offset,
                    locked=self._ordered,
                    lastLockTimestamp=now_ms if self._ordered else 0,
                    lastPullTimestamp=reader.last_pull_ms,
                    lastConsumeTimestamp=self._last_consumed.get(queue, 0),
                )
                for queue, reader in self._readers.items()
            },
            statuses=self._rates.statuses(anyio.current_time()),
        )
