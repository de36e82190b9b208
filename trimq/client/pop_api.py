"""The requests of a pop consumer, typed: pop, acknowledge, change the invisible time.

Acknowledgements go to the replica group's leader, wherever it is by now, until they are answered; a pop is one attempt
at one replica, since an answer that got lost has taken its messages with it until their time is up.
"""

from __future__ import annotations

from dataclasses import dataclass

import anyio

from trimq.client.broker_api import filter_kind
from trimq.client.instance import Instance, refusal
from trimq.client.model import Filter, Start
from trimq.errors import Disconnected
from trimq.message.pop import (
    ANY_QUEUE,
    POP_CK,
    Handle,
    parse_counts,
    parse_offsets,
    parse_starts,
    real_topic,
)
from trimq.message.properties import parse
from trimq.message.record import Record, unpack_records
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.pop import (
    INIT_MAX,
    INIT_MIN,
    AckHeader,
    ChangeInvisibleHeader,
    ChangeInvisibleResponse,
    PopHeader,
    PopResponse,
)

__all__ = ["PopApi", "Popped"]

MARGIN_S = 5.0
"""How much longer than its hold time a pop may take before its connection counts as dead."""

_NOTHING = frozenset({ResponseCode.POLLING_TIMEOUT, ResponseCode.POLLING_FULL, ResponseCode.PULL_NOT_FOUND})


@dataclass(frozen=True, slots=True)
class Popped:
    """A message as it came, and the handle it came under."""

    record: Record
    raw: bytes
    handle: Handle
    topic: str
    """Where it lies: the topic, or its retry topic."""
    count: int
    """Ordered: how often it was given out before."""


class PopApi:
    """Requests on behalf of one consumer group."""

    def __init__(self, instance: Instance, consumer_group: str) -> None:
        self._instance = instance
        self._group = consumer_group

    async def pop(
        self,
        addr: str,
        group: str,
        topic: str,
        wanted: Filter,
        *,
        count: int,
        invisible_ms: int,
        hold_s: float,
        start: Start,
        ordered: bool,
        attempt: str,
    ) -> list[Popped]:
        """Up to `count` messages of any queue of one replica group. Raises `Disconnected`, or what refused it."""
        header = PopHeader(
            consumer_group=self._group,
            topic=topic,
            queue_id=ANY_QUEUE,
            max_msg_nums=count,
            invisible_time=invisible_ms,
            poll_time=round(hold_s * 1000),
            born_time=self._instance.clock.wall_ms(),
            init_mode=INIT_MIN if start is Start.FIRST else INIT_MAX,
            exp_type=filter_kind(wanted),
            exp=wanted.expression,
            order=ordered,
            attempt_id=attempt,
            bname=group,
        )
        try:
            with anyio.fail_after(hold_s + MARGIN_S):
                link = await self._instance.links.get(addr)
                answer = await link.channel.invoke(Command(code=RequestCode.POP_MESSAGE, ext=header.to_ext()))
        except TimeoutError as error:
            raise Disconnected(f"{addr} did not answer a pop within {hold_s + MARGIN_S:g} s") from error
        self._instance.note_leader(self._instance.routes.group(group), answer)
        if answer.code in _NOTHING:
            return []
        if answer.code != ResponseCode.SUCCESS:
            raise refusal(answer, addr)
        return self._popped(answer, group, topic)

    def _popped(self, answer: Command, group: str, topic: str) -> list[Popped]:
        head = PopResponse.from_ext(answer.ext)
        starts, offsets = parse_starts(head.start_offset_info), parse_offsets(head.msg_offset_info)
        counts = parse_counts(head.order_count_info)
        found: list[Popped] = []
        body = bytes(answer.body)
        at = 0
        for record in unpack_records(body):
            text = parse(record.properties).get(POP_CK)
            if text is not None:
                handle = Handle.parse(text)
            else:
                queue = record.queue_id
                start = starts.get((0, queue), min(offsets.get((0, queue), [record.queue_offset])))
                handle = Handle(
                    start, head.pop_time, head.invisible_time, head.revive_qid, 0, group, queue, record.queue_offset
                )
            count = counts.get((0, handle.queue, handle.offset), counts.get((0, handle.queue, -1), 0))
            place = real_topic(topic, self._group, handle.retry)
            found.append(Popped(record, body[at : at + record.size], handle, place, count))
            at += record.size
        return found

    async def ack(self, group: str, topic: str, handle: Handle) -> bool:
        """The message is done; returns whether the handle still counted. Durable when this returns."""
        header = AckHeader(
            consumer_group=self._group,
            topic=topic,
            queue_id=handle.queue,
            extra_info=str(handle),
            offset=handle.offset,
            bname=group,
        )
        answer = await self._instance.call(group, Command(code=RequestCode.ACK_MESSAGE, ext=header.to_ext()))
        return self._counted(answer, group)

    async def hide(self, group: str, topic: str, handle: Handle, invisible_ms: int) -> Handle | None:
        """Invisible for so long from now on; returns the handle that counts from here, None when it was too late."""
        header = ChangeInvisibleHeader(
            consumer_group=self._group,
            topic=topic,
            queue_id=handle.queue,
            extra_info=str(handle),
            offset=handle.offset,
            invisible_time=invisible_ms,
            bname=group,
        )
        command = Command(code=RequestCode.CHANGE_MESSAGE_INVISIBLETIME, ext=header.to_ext())
        answer = await self._instance.call(group, command)
        if not self._counted(answer, group):
            return None
        got = ChangeInvisibleResponse.from_ext(answer.ext)
        return Handle(
            handle.start,
            got.pop_time,
            got.invisible_time,
            got.revive_qid,
            handle.retry,
            handle.broker,
            handle.queue,
            handle.offset,
        )

    @staticmethod
    def _counted(answer: Command, group: str) -> bool:
        if answer.code == ResponseCode.SUCCESS:
            return True
        if answer.code == ResponseCode.NO_MESSAGE:
            return False
        raise refusal(answer, group)
