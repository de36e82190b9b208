"""Messages of several topics as one entry (code 9021, ours): checked like sends, all or none.

A hot code like a send, so that it keeps its place among the sends of its producer. Only a request that is sent `again`
after an unknown outcome has to look ids up first; it waits in a small queue for that, and whatever the same producer
sends meanwhile is refused as out of sequence and comes again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from broker.config import BrokerConfig
from broker.metadata.state import GroupState
from broker.metrics import Counters
from broker.processor.request import Refused, Typed, later
from broker.processor.send_message import born_host
from broker.replication.answers import refusal_frame
from broker.replication.base import Busy, NotLeader, ReplyTo
from broker.replication.intake import Intake
from broker.replication.once import same_id
from broker.replication.requests import Answer, PutMessage
from broker.service.delay import PROPERTIES_MAX
from broker.service.timed import TIMER_KEYS
from broker.store.errors import StoreError
from trimq.errors import BadName, ProtocolError
from trimq.message import names, properties
from trimq.message.ids import offset_message_id
from trimq.message.record import Record
from trimq.wire.body.atomic import AtomicMessage, decode_atomic, encode_places
from trimq.wire.codes import ResponseCode
from trimq.wire.command import encode_response
from trimq.wire.headers.atomic import AtomicHeader

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["AtomicProcessor"]

log = logging.getLogger(__name__)

AGAIN_MAX = 64
"""Requests that wait for a look-up."""
CANDIDATES_MAX = 64


class AtomicProcessor:
    """Takes messages of several topics together. Register it for a leader that admits."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        counters: Counters,
    ) -> None:
        self._config = config
        self._state = state
        self._store = store
        self._intake = intake
        self._counters = counters
        self._again_in, self._again_out = trio.open_memory_channel[
            tuple[list[PutMessage], tuple[int, int, int, int] | None, Answer]
        ](AGAIN_MAX)

    def send(self, request: Typed[AtomicHeader], reply: ReplyTo) -> bytes | None:
        """Code 9021. The intake answers. Raises `Refused` before anything is placed."""
        header = request.header
        try:
            messages = [self._message(each, header, born_host(reply.peer)) for each in decode_atomic(request.body)]
            sequence = header.sequence
        except ProtocolError as error:
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, str(error)) from None
        answer = later(request, reply, ours=True)
        if header.again:
            try:
                self._again_in.send_nowait((messages, sequence, answer))
            except trio.WouldBlock:
                raise Busy("too many repeated messages are being looked up") from None
            return None
        self._intake.put_atomic(messages, sequence, answer)
        self._counters.put_messages += len(messages)
        self._counters.put_bytes += len(request.body)
        return None

    def _message(self, each: AtomicMessage, header: AtomicHeader, host: bytes) -> PutMessage:
        topic, queue, sys_flag, flag, raw, body = each
        self._check_topic(topic)
        info = self._intake.view.topic(topic.encode())
        if info is not None and queue >= max(info.read_queues, info.write_queues):
            raise Refused(ResponseCode.INVALID_PARAMETER, f"queue {queue} of topic {topic} does not exist")
        if len(body) > self._config.max_message_bytes or len(raw) > PROPERTIES_MAX:
            raise Refused(
                ResponseCode.MESSAGE_ILLEGAL,
                f"a message of {len(body)} bytes with properties of {len(raw)}:"
                f" at most {self._config.max_message_bytes} and {PROPERTIES_MAX} are allowed",
            )
        found = properties.parse(raw)
        if found.get("TRAN_MSG") == "true" or found.get("DELAY") or any(key in found for key in TIMER_KEYS):
            raise Refused(
                ResponseCode.MESSAGE_ILLEGAL, "delayed and transactional messages cannot be stored together with others"
            )
        return PutMessage(
            topic.encode(),
            queue,
            body,
            raw,
            flag,
            sys_flag,
            header.born_timestamp,
            host,
            producer_group=header.producer_group,
        )

    @staticmethod
    def _check_topic(topic: str) -> None:
        try:
            names.check_topic(topic)
        except BadName as error:
            raise Refused(ResponseCode.INVALID_PARAMETER, f"bad topic name: {error}") from None
        if names.is_reserved(topic) or names.is_derived(topic):
            raise Refused(ResponseCode.NO_PERMISSION, f"topic {topic} is reserved for the system: send to another one")

    # --- what is sent again after an unknown outcome

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look up, then store or answer, one request after the other."""
        task_status.started()
        async for messages, sequence, answer in self._again_out:
            try:
                await self._once_more(messages, sequence, answer)
            except Refused as refused:
                answer.reply.send(refusal_frame(answer, refused))
            except (NotLeader, Busy, StoreError, OSError) as error:
                answer.reply.send(refusal_frame(answer, Refused(ResponseCode.NOT_STORED, str(error))))

    async def _once_more(
        self, messages: list[PutMessage], sequence: tuple[int, int, int, int] | None, answer: Answer
    ) -> None:
        while True:
            known = self._producer(sequence)
            await self._intake.settle()
            records = [await self._stored(message) for message in messages]
            if any(record is not None for record in records):
                break
            if self._producer(sequence) == known:  # the original did not come in the meantime
                self._intake.put_atomic(messages, sequence, answer)
                return
        if any(record is None for record in records):
            raise Refused(ResponseCode.MESSAGE_ILLEGAL, "some of these messages were stored before, others not")
        places = [(r.queue_id, r.queue_offset, offset_message_id(r.store_host, r.position)) for r in records if r]
        answer.reply.send(encode_response(answer.opaque, answer.serialize, 0, {"dup": "1"}, "", encode_places(places)))

    def _producer(self, sequence: tuple[int, int, int, int] | None) -> object:
        return None if sequence is None else self._intake.view.producers.find(sequence[0])

    async def _stored(self, message: PutMessage) -> Record | None:
        info = self._state.topics.get(message.topic)
        unique = properties.get(message.properties, b"UNIQ_KEY")
        if info is None or unique is None:
            return None
        for position in await self._store.query_key(info.tid, unique, 0, 1 << 62, CANDIDATES_MAX):
            found = same_id(await self._store.read_record(position), message.topic, unique)
            if found is not None:
                return found
        return None
