"""A pop consumer that speaks frames: pops, keeps handles as RocketMQ's client makes them, acknowledges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.broker.support import User, messages
from trimq.message import pop
from trimq.message.model import MessageExt
from trimq.wire.body.pop import BatchAck, BatchAckRequest
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command
from trimq.wire.headers.pop import AckHeader, ChangeInvisibleHeader, ChangeInvisibleResponse, PopHeader, PopResponse


@dataclass(slots=True)
class Popped:
    body: bytes
    handle: pop.Handle
    topic: str
    """Where it lies."""
    message: MessageExt
    count: int = 0
    """Ordered: how often it was given out before."""


class PopUser:
    def __init__(self, user: User, group: str, topic: str) -> None:
        self.user = user
        self.group = group
        self.topic = topic

    async def ask(self, count: int = 32, *, invisible_ms: int = 60_000, hold_ms: int = 0, **fields: object) -> Command:
        given: dict[str, object] = {
            "consumer_group": self.group,
            "topic": self.topic,
            "queue_id": -1,
            "max_msg_nums": count,
            "invisible_time": invisible_ms,
            "poll_time": hold_ms,
            "init_mode": 0,
            **fields,
        }
        return await self.user.ask(RequestCode.POP_MESSAGE, PopHeader(**given).to_ext())  # type: ignore[arg-type]

    async def pop(self, count: int = 32, **fields: object) -> list[Popped]:
        answer = await self.ask(count, **fields)  # type: ignore[arg-type]  # keywords of the caller
        if answer.code == 210:
            return []
        assert answer.code == 0, answer
        return self.taken(answer)

    def taken(self, answer: Command) -> list[Popped]:
        head = PopResponse.from_ext(answer.ext)
        starts, offsets = pop.parse_starts(head.start_offset_info), pop.parse_offsets(head.msg_offset_info)
        counts = pop.parse_counts(head.order_count_info)
        found: list[Popped] = []
        for message in messages(answer):
            text = message.properties.get(pop.POP_CK)
            if text is not None:
                handle = pop.Handle.parse(text)
            else:
                key = (0, message.queue_id)
                assert message.queue_offset in offsets[key]
                handle = pop.Handle(
                    starts[key],
                    head.pop_time,
                    head.invisible_time,
                    head.revive_qid,
                    0,
                    "broker",
                    message.queue_id,
                    message.queue_offset,
                )
            topic = pop.real_topic(self.topic, self.group, handle.retry)
            count = counts.get((0, handle.queue, handle.offset), counts.get((0, handle.queue, -1), 0))
            assert message.topic == self.topic
            found.append(Popped(bytes(message.body), handle, topic, message, count))
        return found

    async def ack(self, popped: Popped) -> int:
        header = AckHeader(
            consumer_group=self.group,
            topic=popped.topic,
            queue_id=popped.handle.queue,
            extra_info=str(popped.handle),
            offset=popped.handle.offset,
        )
        return (await self.user.ask(RequestCode.ACK_MESSAGE, header.to_ext())).code

    async def ack_all(self, popped: Sequence[Popped]) -> int:
        by_queue: dict[tuple[int, int, int, int], list[Popped]] = {}
        for each in popped:
            handle = each.handle
            by_queue.setdefault((handle.retry, handle.queue, handle.pop_ms, handle.revive_queue), []).append(each)
        acks = [
            BatchAck(
                group=self.group,
                topic=self.topic,
                retry=str(retry),
                start=some[0].handle.start,
                queue=queue,
                revive_queue=revive,
                pop_ms=pop_ms,
                invisible_ms=some[0].handle.invisible_ms,
                bits=BatchAck.pack(some[0].handle.start, [each.handle.offset for each in some]),
            )
            for (retry, queue, pop_ms, revive), some in by_queue.items()
        ]
        body = BatchAckRequest(brokerName="broker", acks=acks).to_json()
        return (await self.user.ask(RequestCode.BATCH_ACK_MESSAGE, body=body)).code

    async def hide(self, popped: Popped, invisible_ms: int) -> int:
        """Changes the handle as RocketMQ's client does."""
        header = ChangeInvisibleHeader(
            consumer_group=self.group,
            topic=popped.topic,
            queue_id=popped.handle.queue,
            extra_info=str(popped.handle),
            offset=popped.handle.offset,
            invisible_time=invisible_ms,
        )
        answer = await self.user.ask(RequestCode.CHANGE_MESSAGE_INVISIBLETIME, header.to_ext())
        if answer.code == 0:
            got = ChangeInvisibleResponse.from_ext(answer.ext)
            old = popped.handle
            popped.handle = pop.Handle(
                old.start,
                got.pop_time,
                got.invisible_time,
                got.revive_qid,
                old.retry,
                old.broker,
                old.queue,
                old.offset,
            )
        return answer.code
