"""Sends: codes 10, 310 and 320, answered synchronously for a whole read pass.

The checks stand in RocketMQ's order with its codes (remoting-protocol, "Send"), so that a client sees the same refusal
it would see there. What passes them becomes a `PutMessage` for the intake, which fixes queue and offset, recognises
what is stored already, and answers once the entry is acknowledged. Nothing here awaits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from broker.config import BrokerConfig
from broker.metadata.group_settings import settings_of
from broker.metadata.topics import TopicInfo
from broker.metadata.transactions import OPEN_MAX
from broker.metrics import Counters
from broker.processor.request import Refused, Typed, later
from broker.replication.base import ReplyTo
from broker.replication.intake import Intake
from broker.replication.plain_runs import make_batch
from broker.replication.requests import NO_HOST, Answer, PutMessage
from broker.service.delay import PROPERTIES_MAX
from broker.service.half import HALF_TOPIC, halve
from broker.service.placing import Placing
from broker.service.timed import TIMER_KEYS
from trimq.errors import BadName, BadRequest, RecordError
from trimq.message import names, properties
from trimq.message.batch import iter_batch
from trimq.message.ids import host_bytes
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.headers.send import SendHeader

__all__ = ["MAX_RECONSUME_VERSION", "SendProcessor", "born_host"]

MAX_RECONSUME_VERSION = 121
"""V3_4_9: from here on a client's own maxReconsumeTimes counts."""


class SendProcessor:
    """Takes sends of one replica. Register it for a leader that admits."""

    def __init__(
        self,
        config: BrokerConfig,
        intake: Intake,
        placing: Placing,
        counters: Counters,
        cancel: Callable[[str, str, Answer], None],
    ) -> None:
        self._cancel = cancel
        self._config = config
        self._intake = intake
        self._placing = placing
        self._counters = counters

    def send(self, request: Typed[SendHeader], reply: ReplyTo) -> bytes | None:
        """Admit one send; the intake answers. Raises `Refused` before anything is placed."""
        try:
            self._admit(request, reply)
        except Refused:
            self._counters.put_refused += 1
            raise
        return None

    def _admit(self, request: Typed[SendHeader], reply: ReplyTo) -> None:
        header = request.header
        if not self._config.permission & 2:
            raise Refused(
                ResponseCode.NO_PERMISSION, f"the broker {self._config.broker_name} is read only (brokerPermission)"
            )
        topic = header.topic
        name = topic.encode()
        info = self._intake.view.topic(name)
        if info is None:
            self._check_name(topic)
        if names.is_reserved(topic):
            raise Refused(ResponseCode.NO_PERMISSION, f"topic {topic} is reserved for the system: send to another one")
        if info is not None:
            _check_queue(header.queue_id, info)
        batch = header.batch or request.code == RequestCode.SEND_BATCH_MESSAGE
        head = self._message(request, reply, name)
        if topic.startswith(names.RETRY_PREFIX):
            if batch:
                raise Refused(ResponseCode.MESSAGE_ILLEGAL, f"a batch cannot go to the retry topic {topic}")
            self._retry(head, request)
        if len(request.body) > self._config.max_message_bytes:
            raise Refused(
                ResponseCode.MESSAGE_ILLEGAL,
                f"body of {len(request.body)} bytes is over maxMessageSize, {self._config.max_message_bytes}",
            )
        if batch:
            self._put_batch(head, request, reply)
        else:
            self._put(head, request, reply)

    def _message(self, request: Typed[SendHeader], reply: ReplyTo, topic: bytes) -> PutMessage:
        header = request.header
        try:
            raw = header.properties.encode()
        except UnicodeEncodeError:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, "the properties are not valid text (UTF-8)") from None
        if len(raw) > PROPERTIES_MAX:
            raise Refused(
                ResponseCode.MESSAGE_ILLEGAL, f"properties of {len(raw)} bytes are over the limit of {PROPERTIES_MAX}"
            )
        return PutMessage(
            topic,
            header.queue_id,
            request.body,
            raw,
            header.flag,
            header.sys_flag,
            header.born_timestamp,
            born_host(reply.peer),
            header.reconsume_times,
            sequence=header.sequence,
            again=header.again,
            default_topic=header.default_topic.encode(),
            default_queues=header.default_topic_queue_nums,
            producer_group=header.producer_group,
            unit=header.unit_mode,
        )

    def _put(self, head: PutMessage, request: Typed[SendHeader], reply: ReplyTo) -> None:
        text = request.header.properties
        if "REPLY_TO_CLIENT" in text:  # a request: its reply goes to a topic of this cluster
            cluster = self._config.cluster_name.encode()
            head.properties = properties.append(head.properties, b"CLUSTER", cluster)
        # Four scans over a short string are cheaper than parsing it; only the few that hit are parsed.
        if "TRAN_MSG" in text or "DELAY" in text or "TIMER_" in text or "__STARTDELIVERTIME" in text:
            key = properties.parse(text).get("TIMER_DEL_UNIQKEY") if "TIMER_DEL_UNIQKEY" in text else None
            if key:
                self._cancel(request.header.topic, key, later(request, reply, ours=head.sequence is not None))
                return
            self._special(head, text)
        self._intake.put(head, later(request, reply, ours=head.sequence is not None))
        self._counters.put_messages += 1
        self._counters.put_bytes += len(head.body)

    def _special(self, head: PutMessage, text: str) -> None:
        """Half messages, delay levels, timers: by their properties."""
        found = properties.parse(text)
        if found.get("TRAN_MSG", "").lower() == "true" and not (head.reconsume_times and found.get("DELAY")):
            self._half(head, found)
        else:
            self._placing.place(head, found)

    def _half(self, head: PutMessage, found: dict[str, str]) -> None:
        if self._config.reject_transactions:
            raise Refused(
                ResponseCode.NO_PERMISSION,
                f"the broker {self._config.broker_name} takes no transactional messages (rejectTransactionMessage)",
            )
        open_halves = len(self._intake.state.transactions.open)
        if open_halves >= OPEN_MAX:
            raise Refused(
                ResponseCode.SYSTEM_BUSY,
                f"{open_halves} transactions of this group are undecided, the limit: end some of them first",
            )
        if self._intake.view.topic(HALF_TOPIC.encode()) is None:
            raise Refused(ResponseCode.SERVICE_NOT_AVAILABLE, "this group is being formed: try again in a moment")
        halve(head, found, self._placing.queue_of(head))

    def _put_batch(self, head: PutMessage, request: Typed[SendHeader], reply: ReplyTo) -> None:
        answer = later(request, reply, ours=head.sequence is not None)
        if make_batch is not None and self._intake.takes_runs:
            batch = make_batch(request.body, head.sequence is not None)
            if self._intake.put_batch_run(head, batch, answer):
                self._counters.put_messages += batch.count
                self._counters.put_bytes += len(request.body)
                return
        try:
            elements = iter_batch(request.body)
        except RecordError as error:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, f"the batch cannot be read: {error}") from None
        for each in elements if _may_be_forbidden(request.body) else ():
            if _in_batch_forbidden(each.properties):
                raise Refused(
                    ResponseCode.MESSAGE_ILLEGAL,
                    "a batch cannot hold delayed or transactional messages: send those one by one",
                )
        self._intake.put_elements(head, elements, answer)
        self._counters.put_messages += len(elements)
        self._counters.put_bytes += len(request.body)

    def _retry(self, head: PutMessage, request: Typed[SendHeader]) -> None:
        """A consumer sends a failed message to its retry topic: beyond its last attempt it is a dead letter."""
        header = request.header
        group = header.topic.removeprefix(names.RETRY_PREFIX)
        info = self._intake.view.group(group)
        if info is None:
            raise Refused(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
                f"consumer group {group} does not exist here: it is created by its first heartbeat",
            )
        settings = settings_of(info.settings)
        limit = settings.retry_max_times
        if request.version >= MAX_RECONSUME_VERSION and header.max_reconsume_times is not None:
            limit = header.max_reconsume_times
        if header.reconsume_times > limit >= 0:
            head.topic = names.dlq_topic(group).encode()
            head.queue_id = 0
            self._intake.ensure_topic(head.topic)
            self._counters.dead_letters += 1

    @staticmethod
    def _check_name(topic: str) -> None:
        try:
            names.check_topic(topic)
        except BadName as error:
            raise Refused(ResponseCode.INVALID_PARAMETER, f"bad topic name: {error}") from None


@lru_cache(maxsize=16_384)
def born_host(peer: str) -> bytes:
    """A client's address as records carry it. Cached: a connection keeps its address."""
    try:
        return host_bytes(peer)
    except BadRequest:
        return NO_HOST  # not a network address: an in-memory link of a test


def _check_queue(queue_id: int, info: TopicInfo) -> None:
    queues = max(info.read_queues, info.write_queues)
    if queue_id >= queues:
        raise Refused(
            ResponseCode.INVALID_PARAMETER,
            f"queueId {queue_id} is out of range: topic {info.name} has queues 0 to {queues - 1}, refresh the route",
        )


def _may_be_forbidden(raw: bytes) -> bool:
    """Whether the careful look is needed: one search over a whole batch, bodies and all, instead of one an element."""
    return b"DELAY" in raw or b"TRAN_MSG" in raw or b"TIMER_" in raw or b"__STARTDELIVERTIME" in raw


def _in_batch_forbidden(raw: bytes) -> bool:
    if not _may_be_forbidden(raw):
        return False
    found = properties.parse(raw)
    return (
        found.get("TRAN_MSG") == "true"
        or found.get("DELAY", "0") not in ("", "0")
        or any(key in found for key in TIMER_KEYS)
    )
