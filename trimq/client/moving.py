"""Moving a consumer group while it runs: reset by time, to an end, to an offset; clone; where its members are.

A consumer group exists per replica group, and so do its offsets: every group that holds the topic is asked, and what
they set is put together. Asking again is harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from trimq.client.instance import Instance, refusal
from trimq.client.model import Position, Queue, Start, to_ms
from trimq.errors import BadRequest, TrimqError
from trimq.wire.body.lock import MQ
from trimq.wire.body.reset import read_consumer_table, read_reset_body
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.inspect import CloneOffsetHeader
from trimq.wire.headers.reset import ConsumerStatusHeader, ResetOffsetHeader

__all__ = ["Moving"]

_UNKNOWN = frozenset({ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST, ResponseCode.TOPIC_NOT_EXIST})


class Moving:
    """See the module docstring. Part of `trimq.Admin`."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def reset(
        self, group: str, topic: str, to: Position, *, queue: Queue | None, force: bool
    ) -> Mapping[Queue, int]:
        header = _header(group, topic, to, queue, force)
        groups = [queue.group] if queue is not None else await self._groups(topic)
        found: dict[Queue, int] = {}
        failure: TrimqError | None = None
        for name in groups:
            command = Command(code=RequestCode.INVOKE_BROKER_TO_RESET_OFFSET, ext=header.to_ext())
            answer = await self._instance.call(name, command)
            if answer.code == ResponseCode.SUCCESS:
                found |= {_queue(mq): offset for mq, offset in read_reset_body(answer.body).items()}
            elif answer.code in _UNKNOWN:
                failure = refusal(answer, name)  # this replica group has never seen the consumer group
            else:
                raise refusal(answer, name)
        if not found and failure is not None:
            raise failure
        return found

    async def clone(self, source: str, destination: str, topic: str) -> None:
        names = [view.name for view in self._instance.routes.groups] if not topic else await self._groups(topic)
        header = CloneOffsetHeader(src_group=source, dest_group=destination, topic=topic)
        failure: TrimqError | None = None
        done = False
        for name in names:
            command = Command(code=RequestCode.CLONE_GROUP_OFFSET, ext=header.to_ext())
            answer = await self._instance.call(name, command)
            if answer.code == ResponseCode.SUCCESS:
                done = True
            elif answer.code in _UNKNOWN:
                failure = refusal(answer, name)
            else:
                raise refusal(answer, name)
        if not done and failure is not None:
            raise failure

    async def positions(self, group: str, topic: str) -> Mapping[str, Mapping[Queue, int]]:
        found: dict[str, dict[Queue, int]] = {}
        for name in await self._groups(topic):
            header = ConsumerStatusHeader(topic=topic, group=group)
            command = Command(code=RequestCode.INVOKE_BROKER_TO_GET_CONSUMER_STATUS, ext=header.to_ext())
            answer = await self._instance.call(name, command)
            if answer.code == ResponseCode.SUCCESS:
                for client_id, table in read_consumer_table(answer.body).items():
                    own = {_queue(mq): offset for mq, offset in table.items()}
                    found.setdefault(client_id, {}).update(own)
        return found

    async def _groups(self, topic: str) -> list[str]:
        return [group.name for group in (await self._instance.routes.route(topic)).groups]


def _header(group: str, topic: str, to: Position, queue: Queue | None, force: bool) -> ResetOffsetHeader:
    number = queue.id if queue is not None else -1
    if isinstance(to, datetime):
        return ResetOffsetHeader(group=group, topic=topic, timestamp=to_ms(to), is_force=force, queue_id=number)
    if isinstance(to, Start):
        when = 0 if to is Start.FIRST else -1
        return ResetOffsetHeader(group=group, topic=topic, timestamp=when, is_force=force, queue_id=number)
    if queue is None:
        raise BadRequest("an offset belongs to one queue", advice="give queue=..., or a time, or a Start")
    return ResetOffsetHeader(group=group, topic=topic, offset=to, is_force=force, queue_id=number)


def _queue(mq: MQ) -> Queue:
    return Queue(mq.topic, mq.brokerName, mq.queueId)
