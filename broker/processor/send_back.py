"""A consumer could not process a message (code 36): it comes back later, or becomes a dead letter.

The message is read from the log by its position, and a copy with one more attempt waits in the schedule topic for the
retry topic of the consumer group (`broker.service.schedule` delivers it). After the last attempt, or when the client
says so, it goes to the dead-letter topic. The answer comes when the copy is acknowledged.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from broker.config import BrokerConfig
from broker.metadata.group_settings import settings_of
from broker.metrics import Counters
from broker.processor.request import Refused, Request
from broker.processor.send_message import MAX_RECONSUME_VERSION
from broker.replication.base import Replicator
from broker.replication.intake import Intake
from broker.replication.requests import PutMessage
from broker.service.delay import copy_of, delayed
from broker.store.errors import StoreError
from trimq.errors import RecordError
from trimq.message import names, properties
from trimq.message.ids import offset_message_id
from trimq.message.record import Record, unpack_record
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.send import SendBackHeader

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["SendBackProcessor"]

FIRST_RETRY_LEVEL = 3
"""10 s with the default levels; each attempt waits one level longer."""


class SendBackProcessor:
    """Takes messages back. Register it for a leader that admits."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        counters: Counters,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._counters = counters
        self._rng = rng

    async def send_back(self, request: Request) -> bytes | None:
        """Read the message, place its copy. The intake answers. Raises `Refused`."""
        header = SendBackHeader.from_ext(request.ext)
        info = self._intake.view.group(header.group)
        if info is None:
            raise Refused(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
                f"consumer group {header.group} does not exist here: it is created by its first heartbeat",
            )
        if not self._config.permission & 2:
            raise Refused(ResponseCode.NO_PERMISSION, f"the broker {self._config.broker_name} is read only")
        settings = settings_of(info.settings)
        if settings.retry_queue_nums <= 0:
            return request.success()
        record = await self._read(header.offset)
        limit = settings.retry_max_times
        if request.command.version >= MAX_RECONSUME_VERSION and header.max_reconsume_times is not None:
            limit = header.max_reconsume_times
        message = copy_of(record)
        found = properties.parse(record.properties)
        found.setdefault(properties.ORIGIN_MESSAGE_ID, offset_message_id(record.store_host, record.position))
        found.setdefault(properties.RETRY_TOPIC, record.topic.decode())
        message.reconsume_times = record.reconsume_times + 1
        if header.delay_level < 0 or record.reconsume_times >= limit >= 0:
            self._bury(message, found, header.group)
        else:
            self._retry(message, found, header, settings.retry_queue_nums, record.reconsume_times)
        self._intake.put(message, request.later(request.success()))
        self._counters.send_backs += 1
        return None

    async def _read(self, position: int) -> Record:
        """The committed message at a position of the log."""
        missing = Refused(
            ResponseCode.SYSTEM_ERROR, f"no message at position {position}: it expired, or the id is of another group"
        )
        if not 0 <= position < self._replicator.visible():
            raise missing
        try:
            return unpack_record(await self._store.read_record(position))
        except (RecordError, StoreError, OSError):
            raise missing from None

    def _bury(self, message: PutMessage, found: dict[str, str], group: str) -> None:
        found.pop(properties.DELAY, None)
        message.topic = names.dlq_topic(group).encode()
        message.queue_id = 0
        message.properties = properties.format(found).encode()
        self._intake.ensure_topic(message.topic)
        self._counters.dead_letters += 1

    def _retry(
        self, message: PutMessage, found: dict[str, str], header: SendBackHeader, queues: int, attempts: int
    ) -> None:
        topic = names.retry_topic(header.group)
        info = self._intake.ensure_topic(topic.encode())
        level = header.delay_level or FIRST_RETRY_LEVEL + attempts
        level = min(level, len(self._config.delay_levels_ms))
        delayed(message, found, level, topic, self._rng.randrange(max(1, min(queues, info.write_queues))))
