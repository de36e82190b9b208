"""Acknowledging what was popped (codes 200051, 200151), and changing how long it stays invisible (200053).

Each answer leaves when its op is committed: who was told that a message is done never sees it again. A handle counts as
long as its message is out under it. One whose time is up counts too until the message has been given to somebody else,
and acknowledging twice is harmless; but a handle that was overtaken (the message is out again under another one) is
answered NO_MESSAGE, where RocketMQ says OK: whoever acknowledges it shall know that the message comes again. A leader
that cannot tell one from the other (the message was popped under an earlier one) says NO_MESSAGE too.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from broker.config import BrokerConfig
from broker.metadata.ops import Op, key_of
from broker.metadata.pop import OrderedBatch, Taken
from broker.metadata.pop_ops import PopDone, PopHide
from broker.metadata.topics import TopicInfo
from broker.metrics import Counters
from broker.processor.pop_checks import INVISIBLE_MAX_MS
from broker.processor.pop_waking import PopWaking
from broker.processor.request import Refused, Request, Typed, later, success
from broker.replication.intake import Intake
from broker.service.pop_revive import PopRevive
from trimq.message.pop import ORDER_REVIVE_QUEUE, Handle, real_topic
from trimq.wire.body.pop import BatchAckRequest
from trimq.wire.codes import ResponseCode
from trimq.wire.command import encode_response
from trimq.wire.headers.pop import AckHeader, ChangeInvisibleHeader, ChangeInvisibleResponse

if TYPE_CHECKING:
    from broker.replication.base import ReplyTo
    from broker.store.message_store import MessageStore

__all__ = ["AckProcessor"]

ACKS_MAX = 4_096
"""Queues in one batch acknowledgement."""


class AckProcessor:
    """Ends or prolongs what pop consumers hold. Register it for a leader that admits."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        intake: Intake,
        revive: PopRevive,
        waking: PopWaking,
        counters: Counters,
    ) -> None:
        self._config = config
        self._store = store
        self._intake = intake
        self._revive = revive
        self._waking = waking
        self._counters = counters

    def ack(self, request: Typed[AckHeader], reply: ReplyTo) -> bytes | None:
        """Code 200051. Raises `Refused`."""
        header = request.header
        handle = Handle.parse(header.extra_info)
        info, key = self._place(header.topic, header.queue_id, header.offset)
        gid = self._gid(header.consumer_group)
        if handle.ordered:
            if not self._may_end_ordered(gid, key, header.offset, handle.pop_ms):
                return success(request)
        else:
            self._check_out(gid, key, header.offset, handle)
        op = PopDone([(gid, info.tid, header.queue_id, [header.offset])])
        self._intake.put_ops([op], answer=later(request, reply, success(request)))
        self._counters.pop_acks += 1
        if handle.ordered:
            self._next_of_order(gid, key, header.consumer_group, header.topic)
        return None

    def _place(self, topic: str, queue: int, offset: int) -> tuple[TopicInfo, int]:
        info = self._intake.view.topic(topic.encode())
        if info is None:
            raise Refused(
                ResponseCode.TOPIC_NOT_EXIST, f"topic[{topic}] not exist, apply first please! (or refresh the route)"
            )
        if not 0 <= queue < info.read_queues:
            raise Refused(
                ResponseCode.MESSAGE_ILLEGAL,
                f"queueId[{queue}] is illegal, topic:[{topic}] topicConfig.readQueueNums:[{info.read_queues}]",
            )
        key = key_of(info.tid, queue)
        low, end = self._store.queues.first_offset(key), self._store.queues.next_offset(key)
        if not low <= offset <= end:
            raise Refused(
                ResponseCode.NO_MESSAGE, f"offset is illegal, key:{topic}@{queue}, commit:{offset}, store:{low}~{end}"
            )
        return info, key

    def _gid(self, group: str) -> int:
        info = self._intake.view.group(group)
        if info is None:
            raise Refused(
                ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, f"consumer group {group} does not exist here: it pops first"
            )
        return info.gid

    def _taken(self, gid: int, key: int, offset: int) -> Taken | None:
        queue = self._intake.view.tables.pop.queue(gid, key)
        return queue.taken.get(offset) if queue is not None else None

    def _check_out(self, gid: int, key: int, offset: int, handle: Handle) -> None:
        """Raise `Refused` unless the handle counts, or was acknowledged before."""
        taken = self._taken(gid, key, offset)
        if taken is not None and taken.pop_ms == handle.pop_ms:
            return
        if taken is None and not self._revive.may_have_come_back(gid, key, offset, handle.pop_ms):
            return  # so this is the second acknowledgement: once more, to be sure of it
        raise Refused(
            ResponseCode.NO_MESSAGE,
            f"the handle of {handle.broker}:{handle.queue}@{offset} counts no more: its invisible time is over, or it"
            " was replaced; the message comes again",
        )

    def _may_end_ordered(self, gid: int, key: int, offset: int, pop_ms: int) -> bool:
        """False: nothing is left to do. Raises `Refused` for a handle that does not count."""
        committed = self._intake.view.offset(gid, key)
        if committed is not None and offset < committed:
            return False
        self._batch(gid, key, offset, pop_ms)
        return True

    def _batch(self, gid: int, key: int, offset: int, pop_ms: int) -> OrderedBatch:
        batch = self._intake.view.tables.pop.batch(gid, key)
        if batch is None or batch.pop_ms != pop_ms:
            raise Refused(
                ResponseCode.NO_MESSAGE, "the handle counts no more: the messages were given out again, in order"
            )
        if offset not in batch.offsets:
            raise Refused(
                ResponseCode.MESSAGE_ILLEGAL, f"offset is illegal: {offset} is not among those that were popped"
            )
        return batch

    def _next_of_order(self, gid: int, key: int, group: str, topic: str) -> None:
        batch = self._intake.view.tables.pop.batch(gid, key)
        if batch is None or batch.blocked_until <= self._intake.log_time():
            self._waking.wake(group, topic)

    async def batch_ack(self, request: Request) -> bytes | None:
        """Code 200151: many at once. Handles that do not count are passed over, as RocketMQ does."""
        body = BatchAckRequest.from_json(request.command.body)
        if not body.acks:
            raise Refused(ResponseCode.NO_MESSAGE, "a batch acknowledgement names messages (acks)")
        if len(body.acks) > ACKS_MAX:
            raise Refused(ResponseCode.INVALID_PARAMETER, f"at most {ACKS_MAX} acks in one request")
        rows: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        ordered: list[tuple[int, int, str, str]] = []
        for ack in body.acks:
            flag = int(ack.retry) if ack.retry.isdigit() else -1
            topic = real_topic(ack.topic, ack.group, flag)
            info = self._intake.view.topic(topic.encode())
            group = self._intake.view.group(ack.group)
            if info is None or group is None or not 0 <= ack.queue < info.read_queues:
                continue
            key = key_of(info.tid, ack.queue)
            done = rows[group.gid, info.tid, ack.queue]
            batch = self._intake.view.tables.pop.batch(group.gid, key)
            for offset in ack.offsets():
                if ack.revive_queue == ORDER_REVIVE_QUEUE:
                    if batch is not None and batch.pop_ms == ack.pop_ms and offset in batch.offsets:
                        done.append(offset)
                    continue
                taken = self._taken(group.gid, key, offset)
                if taken is not None and taken.pop_ms == ack.pop_ms:
                    done.append(offset)
            if ack.revive_queue == ORDER_REVIVE_QUEUE:
                ordered.append((group.gid, key, ack.group, ack.topic))
        found = [(gid, tid, queue, offsets) for (gid, tid, queue), offsets in rows.items() if offsets]
        if not found:
            return request.success()
        self._intake.put_ops([PopDone(found)], answer=request.later(request.success()))
        self._counters.pop_acks += sum(len(offsets) for _, _, _, offsets in found)
        for gid, key, group_name, topic in ordered:
            self._next_of_order(gid, key, group_name, topic)
        return None

    def change_invisible(self, request: Typed[ChangeInvisibleHeader], reply: ReplyTo) -> bytes | None:
        """Code 200053: from now on so long, under a new handle. Raises `Refused`."""
        header = request.header
        if not 0 <= header.invisible_time <= INVISIBLE_MAX_MS:
            raise Refused(
                ResponseCode.INVALID_PARAMETER,
                f"invisibleTime {header.invisible_time} ms: it has to be 0 to {INVISIBLE_MAX_MS}",
            )
        handle = Handle.parse(header.extra_info)
        info, key = self._place(header.topic, header.queue_id, header.offset)
        gid, now = self._gid(header.consumer_group), self._intake.log_time()
        until = now + header.invisible_time
        if handle.ordered:
            batch = self._batch(gid, key, header.offset, handle.pop_ms)
            pop_ms, told_ms = batch.pop_ms, until - batch.pop_ms
        else:
            taken = self._taken(gid, key, header.offset)
            if taken is None or taken.pop_ms != handle.pop_ms:
                raise Refused(
                    ResponseCode.NO_MESSAGE, "the handle counts no more: acknowledged, replaced, or its time is over"
                )
            pop_ms, told_ms = max(now, taken.pop_ms + 1), header.invisible_time
        ext = ChangeInvisibleResponse(pop_time=pop_ms, invisible_time=told_ms, revive_qid=handle.revive_queue).to_ext()
        frame = encode_response(request.opaque, later(request, reply).serialize, ResponseCode.SUCCESS, ext)
        op: Op = PopHide(gid, info.tid, header.queue_id, header.offset, pop_ms, until)
        self._intake.put_ops([op], answer=later(request, reply, frame))
        self._revive.took(until, gid, key, -1 if handle.ordered else pop_ms, [header.offset])
        return None
