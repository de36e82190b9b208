"""The requests of a client to a replica group, typed: one function per request code, one error per kind of refusal.

All of them go to the group's leader through `Instance.call` (which finds it, waits for it and repeats), except pulls,
which any replica may serve. Source of codes, fields and answers: RocketMQ's remoting protocol, as `docs/protocol.md`
lists it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import anyio

from trimq.client.instance import Instance, refusal
from trimq.client.model import Filter, Queue, Sql
from trimq.client.route import PERM_READ, PERM_WRITE
from trimq.client.timing import deadline_for
from trimq.errors import BadRequest, Disconnected
from trimq.message.record import unpack_records
from trimq.wire.body.consumer_list import CheckClientRequest, ConsumerIdList
from trimq.wire.body.heartbeat import RawSubscription
from trimq.wire.body.lock import MQ, LockRequest, LockResponse
from trimq.wire.codes import VERSION_5, RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.admin import CreateTopicHeader
from trimq.wire.headers.client import ConsumerListHeader
from trimq.wire.headers.offset import (
    GetMaxOffsetHeader,
    GetMinOffsetHeader,
    OffsetResponse,
    QueryOffsetHeader,
    SearchOffsetHeader,
    UpdateOffsetHeader,
)
from trimq.wire.headers.pull import PullFlag, PullHeader, PullResponse
from trimq.wire.headers.send import SendBackHeader

__all__ = ["ANONYMOUS", "BrokerApi", "Pulled"]

ANONYMOUS = "TRIMQ_PULL"
"""The consumer group named in pulls of whoever reads without one; it never commits."""

PULL_MARGIN_S = 5.0
"""How much longer than its hold time a pull may take before its connection counts as dead."""

PROVISIONAL_PAUSE_S = 0.1
"""Between two questions for an offset while a group has no leader."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """The answer to a pull."""

    code: int
    """SUCCESS, PULL_NOT_FOUND, PULL_RETRY_IMMEDIATELY or PULL_OFFSET_MOVED."""
    next_offset: int
    first_offset: int
    end_offset: int
    body: bytes
    suggested_id: int
    """The broker id to ask next time."""


class BrokerApi:
    """Requests on behalf of one client."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def _ask(self, group: str, code: RequestCode, ext: dict[str, str], body: bytes = b"") -> Command:
        answer = await self._instance.call(group, Command(code=code, ext=ext, body=body))
        if answer.code != ResponseCode.SUCCESS:
            raise refusal(answer, group)
        return answer

    # Offsets

    async def committed(self, consumer_group: str, queue: Queue, *, firm: bool = False) -> int | None:
        """The consumer group's offset of a queue, None when it has none yet.

        A group without a leader gives a provisional one: good enough to go on reading from, but a later answer may be
        lower. `firm`: wait for a leader's answer instead. Raises `Disconnected` if none comes within the deadline.
        """
        header = QueryOffsetHeader(
            consumer_group=consumer_group, topic=queue.topic, queue_id=queue.id, bname=queue.group
        )
        deadline = deadline_for(self._instance.default_timeout)
        while True:
            command = Command(code=RequestCode.QUERY_CONSUMER_OFFSET, ext=header.to_ext())
            answer = await self._instance.call(queue.group, command, deadline=deadline)
            if answer.code == ResponseCode.QUERY_NOT_FOUND:
                return None
            if answer.code != ResponseCode.SUCCESS:
                raise refusal(answer, queue.group)
            found = OffsetResponse.from_ext(answer.ext)
            if not (firm and found.provisional):
                return None if found.offset < 0 else found.offset
            if anyio.current_time() + PROVISIONAL_PAUSE_S >= deadline:
                raise Disconnected(f"{queue.group} has no leader: its offsets are provisional")
            await anyio.sleep(PROVISIONAL_PAUSE_S)

    async def commit(self, consumer_group: str, queue: Queue, offset: int, *, set_back: bool = False) -> None:
        """Set the consumer group's offset; returns when it is durable. `set_back`: also to a lower value (a seek)."""
        await self._ask(
            queue.group, RequestCode.UPDATE_CONSUMER_OFFSET, commit_ext(consumer_group, queue, offset, set_back)
        )

    async def end_offset(self, queue: Queue) -> int:
        """One past the newest message."""
        header = GetMaxOffsetHeader(topic=queue.topic, queue_id=queue.id, bname=queue.group)
        answer = await self._ask(queue.group, RequestCode.GET_MAX_OFFSET, header.to_ext())
        return OffsetResponse.from_ext(answer.ext).offset

    async def first_offset(self, queue: Queue) -> int:
        """The oldest message still kept."""
        header = GetMinOffsetHeader(topic=queue.topic, queue_id=queue.id, bname=queue.group)
        answer = await self._ask(queue.group, RequestCode.GET_MIN_OFFSET, header.to_ext())
        return OffsetResponse.from_ext(answer.ext).offset

    async def offset_at(self, queue: Queue, when_ms: int) -> int:
        """The first message stored at or after a time; the end when there is none."""
        header = SearchOffsetHeader(topic=queue.topic, queue_id=queue.id, timestamp=when_ms, bname=queue.group)
        answer = await self._ask(queue.group, RequestCode.SEARCH_OFFSET_BY_TIMESTAMP, header.to_ext())
        offset = OffsetResponse.from_ext(answer.ext).offset
        if answer.version < VERSION_5 and await self._stored_before(queue, offset, when_ms):
            return offset + 1  # Apache's brokers before 5.0 give the message nearest to the time
        return offset

    async def _stored_before(self, queue: Queue, offset: int, when_ms: int) -> bool:
        header = PullHeader(
            consumer_group=ANONYMOUS,
            topic=queue.topic,
            queue_id=queue.id,
            queue_offset=offset,
            max_msg_nums=1,
            sys_flag=int(PullFlag.SUBSCRIPTION),
            commit_offset=0,
            subscription="*",
            bname=queue.group,
        )
        command = Command(code=RequestCode.PULL_MESSAGE, ext=header.to_ext())
        answer = await self._instance.call(queue.group, command)
        if answer.code not in _PULL_ANSWERS:
            raise refusal(answer, queue.group)
        return answer.code == ResponseCode.SUCCESS and unpack_records(answer.body)[0].store_ms < when_ms

    # Consumer groups

    async def members(self, consumer_group: str, group: str) -> list[str]:
        """The client ids of a consumer group, as replica group `group` knows them; empty when nobody is there."""
        header = ConsumerListHeader(consumer_group=consumer_group)
        command = Command(code=RequestCode.GET_CONSUMER_LIST_BY_GROUP, ext=header.to_ext())
        answer = await self._instance.call(group, command)
        if answer.code == ResponseCode.SYSTEM_ERROR:
            return []  # how a broker says that the group has nobody
        if answer.code != ResponseCode.SUCCESS:
            raise refusal(answer, group)
        return list(ConsumerIdList.from_json(answer.body).consumerIdList)

    async def lock(self, consumer_group: str, group: str, queues: Collection[Queue]) -> frozenset[Queue]:
        """Lock queues of one replica group for ordered consumption; returns those that are ours now."""
        body = lock_body(self._instance.client_id, consumer_group, queues)
        answer = await self._ask(group, RequestCode.LOCK_BATCH_MQ, {}, body)
        locked = LockResponse.from_json(answer.body).lockOKMQSet
        return frozenset(Queue(mq.topic, mq.brokerName, mq.queueId) for mq in locked)

    async def unlock(self, consumer_group: str, group: str, queues: Collection[Queue]) -> None:
        """Give locked queues back."""
        await self._ask(
            group, RequestCode.UNLOCK_BATCH_MQ, {}, lock_body(self._instance.client_id, consumer_group, queues)
        )

    async def send_back(
        self, group: str, consumer_group: str, position: int, *, level: int, max_retries: int, id: str, topic: str
    ) -> None:
        """Hand a message back for another delivery: `level` 0 by attempts, above 0 that delay level, below 0 never."""
        header = SendBackHeader(
            offset=position,
            group=consumer_group,
            delay_level=level,
            origin_msg_id=id,
            origin_topic=topic,
            max_reconsume_times=max_retries,
            bname=group,
        )
        await self._ask(group, RequestCode.CONSUMER_SEND_MSG_BACK, header.to_ext())

    async def create_as_needed(self, topic: str, group: str, queues: int) -> None:
        """Create an unknown topic by the rules of auto-creation. Does nothing at a broker that is not ours."""
        view = self._instance.routes.group(group)
        for addr in view.targets(replicas=False):
            if not (await self._instance.links.get(addr)).ours:
                return
        header = CreateTopicHeader(
            topic=topic, read_queue_nums=queues, write_queue_nums=queues, perm=PERM_READ | PERM_WRITE, auto=True
        )
        await self._ask(group, RequestCode.UPDATE_AND_CREATE_TOPIC, header.to_ext())

    async def check_filter(self, consumer_group: str, group: str, topic: str, wanted: Filter) -> None:
        """Ask whether brokers can evaluate a filter. Raises the error of the refusal."""
        subscription = RawSubscription(topic=topic, subString=wanted.expression, expressionType=filter_kind(wanted))
        body = CheckClientRequest(
            clientId=self._instance.client_id, group=consumer_group, subscriptionData=subscription
        ).to_json()
        answer = await self._instance.call(group, Command(code=RequestCode.CHECK_CLIENT_CONFIG, body=body))
        if answer.code != ResponseCode.SUCCESS:
            raise BadRequest(
                f"{group} does not accept the filter {wanted.expression!r}: {answer.remark or answer.code}",
                advice="filter by Tag, or in the handler",
            )

    # Pulling

    async def pull(
        self,
        addr: str,
        consumer_group: str,
        queue: Queue,
        offset: int,
        wanted: Filter,
        *,
        count: int,
        hold_s: float,
        commit: int | None = None,
    ) -> Pulled:
        """Read from one replica, held there up to `hold_s` while nothing is new.

        Raises `Disconnected` (that replica does not answer) or the error of its refusal.
        """
        flags = PullFlag.SUBSCRIPTION
        if hold_s > 0:
            flags |= PullFlag.SUSPEND
        if commit is not None:
            flags |= PullFlag.COMMIT_OFFSET
        header = PullHeader(
            consumer_group=consumer_group,
            topic=queue.topic,
            queue_id=queue.id,
            queue_offset=offset,
            max_msg_nums=count,
            sys_flag=int(flags),
            commit_offset=commit or 0,
            suspend_timeout_millis=round(hold_s * 1000),
            subscription=wanted.expression,
            expression_type=filter_kind(wanted),
            bname=queue.group,
        )
        try:
            with anyio.fail_after(hold_s + PULL_MARGIN_S):
                link = await self._instance.links.get(addr)
                answer = await link.channel.invoke(Command(code=RequestCode.PULL_MESSAGE, ext=header.to_ext()))
        except TimeoutError as error:
            raise Disconnected(f"{addr} did not answer a pull within {hold_s + PULL_MARGIN_S:g} s") from error
        self._instance.note_leader(self._instance.routes.group(queue.group), answer)
        if answer.code not in _PULL_ANSWERS:
            raise refusal(answer, addr)
        got = PullResponse.from_ext(answer.ext)
        return Pulled(
            answer.code,
            got.next_begin_offset,
            got.min_offset,
            got.max_offset,
            bytes(answer.body),
            got.suggest_which_broker_id,
        )


_PULL_ANSWERS = frozenset(
    {
        ResponseCode.SUCCESS,
        ResponseCode.PULL_NOT_FOUND,
        ResponseCode.PULL_RETRY_IMMEDIATELY,
        ResponseCode.PULL_OFFSET_MOVED,
    }
)


def filter_kind(wanted: Filter) -> str:
    """RocketMQ's name for the kind of a filter."""
    return "SQL92" if isinstance(wanted, Sql) else "TAG"


def commit_ext(consumer_group: str, queue: Queue, offset: int, set_back: bool) -> dict[str, str]:
    """The header fields of an offset update (code 15)."""
    return UpdateOffsetHeader(
        consumer_group=consumer_group,
        topic=queue.topic,
        queue_id=queue.id,
        commit_offset=offset,
        set_back=set_back,
        bname=queue.group,
    ).to_ext()


def lock_body(client_id: str, consumer_group: str, queues: Iterable[Queue]) -> bytes:
    """The body of a lock or unlock request."""
    return LockRequest(
        clientId=client_id,
        consumerGroup=consumer_group,
        mqSet=[MQ(topic=queue.topic, brokerName=queue.group, queueId=queue.id) for queue in sorted(queues)],
    ).to_json()
