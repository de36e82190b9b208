"""What brokers ask a consumer on an operator's behalf: go on from here (220), where are you (221), how are you (307),
process this message now (309).

Answers are made on the spot, but for 309: the message is handed to the consumer's handler like any other, outside its
queues and offsets, and the outcome of its block is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

import anyio

from trimq.client.incoming import decode_records
from trimq.client.model import Queue, Tag
from trimq.client.received import Received
from trimq.client.replies import send_reply
from trimq.errors import BadRequest, ProtocolError
from trimq.wire.body.lock import MQ
from trimq.wire.body.reset import queue_table_body, read_reset_body
from trimq.wire.body.running import ConsumeDirectlyResult, ConsumerRunningInfo
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import FLAG_RESPONSE, Command, encode
from trimq.wire.headers.reset import ConsumerStatusHeader, ResetClientHeader

if TYPE_CHECKING:
    from trimq.client.instance import Instance

__all__ = ["Asked", "Direct", "Questions"]


class Asked(Protocol):
    """A consumer, as these questions see it."""

    group: str

    def reset(self, offsets: Mapping[Queue, int]) -> None:
        """Go on from these offsets in the queues that are held."""
        ...

    def positions(self) -> Mapping[Queue, int]: ...

    def running_info(self) -> ConsumerRunningInfo: ...

    def consume(self, message: Received) -> bool:
        """Hand a message to the handler, ahead of all others; False when there is none."""
        ...

    @property
    def is_ordered(self) -> bool: ...


class Questions:
    """Answers for all consumers of one client."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._consumers: list[Asked] = []
        instance.serve(RequestCode.RESET_CONSUMER_CLIENT_OFFSET, self._reset)
        instance.serve(RequestCode.GET_CONSUMER_STATUS_FROM_CLIENT, self._positions)
        instance.serve(RequestCode.GET_CONSUMER_RUNNING_INFO, self._running_info)
        instance.serve(RequestCode.CONSUME_MESSAGE_DIRECTLY, self._consume)

    def add(self, consumer: Asked) -> Callable[[], None]:
        """Answer for a consumer; call what is returned to stop."""
        self._consumers.append(consumer)
        return lambda: self._consumers.remove(consumer)

    def _of(self, group: str) -> list[Asked]:
        return [consumer for consumer in self._consumers if consumer.group == group]

    def _reset(self, addr: str, command: Command) -> Command | None:
        header = ResetClientHeader.from_ext(command.ext)
        offsets = {Queue(mq.topic, mq.brokerName, mq.queueId): at for mq, at in read_reset_body(command.body).items()}
        for consumer in self._of(header.group):
            consumer.reset(offsets)
        return None if command.is_oneway else _answer(command)

    def _positions(self, addr: str, command: Command) -> Command:
        header = ConsumerStatusHeader.from_ext(command.ext)
        consumers = self._of(header.group)
        if not consumers:
            return _answer(command, ResponseCode.SYSTEM_ERROR, f"no consumer of group {header.group} here")
        table = {
            MQ(brokerName=queue.group, queueId=queue.id, topic=queue.topic): offset
            for consumer in consumers
            for queue, offset in consumer.positions().items()
            if header.topic in ("", queue.topic)
        }
        return _answer(command, body=queue_table_body(table))

    def _running_info(self, addr: str, command: Command) -> Command:
        group = command.ext.get("consumerGroup", "")
        for consumer in self._of(group):
            return _answer(command, body=consumer.running_info().to_json())
        return _answer(command, ResponseCode.SYSTEM_ERROR, f"no consumer of group {group} here")

    def _consume(self, addr: str, command: Command) -> Command | None:
        group = command.ext.get("consumerGroup", "")
        consumers = self._of(group)
        if not consumers:
            return _answer(command, ResponseCode.SYSTEM_ERROR, f"no consumer of group {group} here")
        home = Direct(self._instance, addr, command, ordered=consumers[0].is_ordered)
        queue = Queue(command.ext.get("topic", ""), command.ext.get("brokerName", ""), 0)
        try:
            (message,) = decode_records(command.body, queue, Tag(), home)
        except (ProtocolError, BadRequest, ValueError) as error:
            return _answer(command, ResponseCode.SYSTEM_ERROR, f"the message cannot be read: {error}")
        if not consumers[0].consume(message):
            return _answer(command, ResponseCode.SYSTEM_ERROR, f"the consumer of group {group} is closing")
        return None


class Direct:
    """The home of a message that a broker wants processed once, now: its outcome is the answer."""

    def __init__(self, instance: Instance, addr: str, command: Command, *, ordered: bool) -> None:
        self._instance = instance
        self._addr = addr
        self._command = command
        self._ordered = ordered
        self._began = anyio.current_time()
        self._told = False

    def entered(self, message: Received) -> None:
        self._began = anyio.current_time()

    def left(self, message: Received) -> None:
        """Cancelled without an outcome: the broker's question runs into its time limit."""

    async def acknowledge(self, message: Received) -> bool:
        self._tell("CR_SUCCESS")
        return True

    async def extend(self, message: Received, by: timedelta) -> None:
        """Nobody else gets it meanwhile."""

    async def suspend(self, message: Received, after: timedelta) -> None:
        self._tell("CR_LATER", "the handler wants its queue to wait")

    async def send_back(self, message: Received, after: timedelta | None) -> None:
        self._tell("CR_LATER", "the handler failed, or asked for it later")

    async def put_aside(self, message: Received, reason: str) -> None:
        self._tell("CR_LATER", f"the handler would put it into the dead letters: {reason}")

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None:
        await send_reply(self._instance, message, body, tag=tag, own=properties)

    def _tell(self, outcome: str, remark: str | None = None) -> None:
        link = self._instance.links.open(self._addr)
        if self._told or link is None:
            return
        self._told = True
        spent = round((anyio.current_time() - self._began) * 1000)
        result = ConsumeDirectlyResult(consumeResult=outcome, order=self._ordered, remark=remark, spentTimeMills=spent)
        link.channel.send(encode(_answer(self._command, body=result.to_json())))


def _answer(command: Command, code: int = ResponseCode.SUCCESS, remark: str = "", *, body: bytes = b"") -> Command:
    return Command(code=code, opaque=command.opaque, flag=FLAG_RESPONSE, remark=remark, body=body)
