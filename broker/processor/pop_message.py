"""Pop (code 200050), and the questions around it: is there anything, what would come, who waits (200054, 52, 55).

A pop gives the next messages of a topic to whoever asks, from all its queues and from the topic's retry topic, and
makes them invisible for a while. In one step, with nothing awaited, the messages are chosen by the leader's view and
what was taken goes into the log (op 32, ordered: 35); the answer leaves when that is committed. So no two consumers are
given the same message while the first one holds it, and a handle is worth the same under the next leader
(docs/decisions, "pop state is in the log"). What finds nothing is held, see `broker.service.pop_waits`.

Facts: RocketMQ's PopMessageProcessor. Where it begins for a new group at "the end", it hands out the last old message;
here the group's start is logged, so it need not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from broker.config import BrokerConfig
from broker.filter.cache import FilterCache
from broker.filter.selection import ALL, FilterError, Selection
from broker.metadata.group_settings import settings_of
from broker.metadata.groups import GroupInfo
from broker.metadata.ops import Op, key_of, queue_of, tid_of
from broker.metadata.pop_ops import OrderTake, PopTake
from broker.metadata.topics import TopicInfo
from broker.metrics import Counters
from broker.processor.lane import Lane
from broker.processor.pull_message import check_type, parse_failed
from broker.processor.request import Refused, Request, Typed, leader_ext
from broker.replication.base import Busy, NotLeader, Replicator, RoleEvent
from broker.replication.intake import Intake
from broker.replication.requests import Answer
from broker.service.pop_revive import PopRevive
from broker.service.pop_waits import SLOT_S, PopWait, PopWaits
from broker.store.errors import StoreError
from broker.store.message_store import Found, MessageStore, NeedDisk
from trimq.env import Clock
from trimq.message import properties
from trimq.message.names import BadName, check_group
from trimq.message.pop import (
    ANY_QUEUE,
    NORMAL,
    ORDER_REVIVE_QUEUE,
    POP_CK,
    RETRY,
    Handle,
    format_counts,
    format_offsets,
    format_starts,
    pop_retry_topic,
)
from trimq.message.record import Record, iter_records, pack_record, unpack_record
from trimq.wire.codes import ResponseCode, SerializeType
from trimq.wire.command import encode_response, encode_response_head
from trimq.wire.headers.pop import (
    INIT_MIN,
    NotificationHeader,
    NotificationResponse,
    PeekHeader,
    PollingInfoHeader,
    PollingInfoResponse,
    PopHeader,
    PopResponse,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.metadata.pop import OrderedBatch
    from broker.replication.base import ReplyTo

__all__ = ["PopProcessor"]

COUNT_MAX = 32
INVISIBLE_MAX_MS = 12 * 3_600_000
HOLD_MAX_S = 30.0
FORWARDED_HOLD_MAX_S = 10.0
"""Another replica passed the pop on: it waits 15 s for the answer, then it calls the outcome unknown."""
OUT_MAX = 10_000
"""Messages of one queue that one consumer group may have out (RocketMQ's popInflightMessageThreshold)."""
HOT_BYTES = 256 << 20
TURNS_MAX = 65_536
"""(Consumer group, topic) pairs whose turn is remembered; the least recently used goes."""
ATTEMPT_MAX = 128
RETRY_FIRST_EVERY = 5
"""Every so many pops of a pair look at the retry topic first; the others last."""

_TYPES = tuple(SerializeType)


@dataclass(slots=True)
class _Part:
    """What one queue gives to an answer."""

    flag: int
    gid: int
    key: int
    start: int
    next: int
    records: list[bytes] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    batch: OrderedBatch | None = None
    """Ordered: what was out of the queue before."""

    @property
    def size(self) -> int:
        return sum(map(len, self.records))


@dataclass(slots=True)
class _Gathered:
    parts: list[_Part]
    rest: int
    """Messages that could be had and were not."""
    disk: _Part | None
    """A queue whose messages have to be read from the disk, when nothing else was found."""
    more: bool = False
    """A filter dropped everything that one look may examine: look again soon."""

    @property
    def count(self) -> int:
        return sum(len(part.offsets) for part in self.parts)


class PopProcessor:
    """Serves pops of one replica, and owns those that are held. Register it for a leader that admits."""

    def __init__(
        self,
        config: BrokerConfig,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        revive: PopRevive,
        disk: Lane,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self.waits = PopWaits(total_max=config.held_pulls_max)
        self._config = config
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._revive = revive
        self._filters = FilterCache()
        self._disk = disk
        self._clock = clock
        self._counters = counters
        self._reading: set[tuple[int, int]] = set()  # membership only
        """(gid, queue key) of queues that are read from disk right now: nobody else takes from them meanwhile."""
        self._skipped: dict[tuple[int, int, str], tuple[int, int]] = {}
        """What a filter was seen not to match: from where, to where. Not logged: at worst it is looked at again."""
        self._turns: dict[tuple[str, str], int] = {}
        self._runnable: dict[tuple[str, str], None] = {}
        self._wake = trio.Event()
        revive.visible_again = self._visible_again

    # --- requests

    def pop(self, request: Typed[PopHeader], reply: ReplyTo) -> bytes | None:
        """Code 200050: answer, read from disk, or hold. Raises `Refused`."""
        header = request.header
        if not 1 <= header.max_msg_nums <= COUNT_MAX:
            raise Refused(
                ResponseCode.INVALID_PARAMETER,
                f"the broker[{self._config.broker_name}] pop message's num is greater than {COUNT_MAX}: ask for 1 to"
                f" {COUNT_MAX}",
            )
        if not 0 < header.invisible_time <= INVISIBLE_MAX_MS:
            raise Refused(
                ResponseCode.INVALID_PARAMETER,
                f"invisibleTime {header.invisible_time} ms: it has to be above 0 and at most {INVISIBLE_MAX_MS}",
            )
        wanted = self._filter(header)
        if wanted is None:
            self._compile_first(request, reply)
            return None
        wait = self._wait(request, reply, header.attempt_id, wanted)
        wait.count, wait.invisible_ms, wait.init = header.max_msg_nums, header.invisible_time, header.init_mode
        self._check(wait)
        self._attempt(wait, may_hold=True)
        return None

    def _filter(self, header: PopHeader) -> Selection | None:
        """What the consumer wants; None when that has to be compiled first. Raises `Refused`."""
        if not header.exp:
            return ALL
        check_type(self._config, header.exp_type)
        try:
            return self._filters.known(header.exp, header.exp_type or "TAG")
        except FilterError as error:
            raise parse_failed(error) from None

    def _compile_first(self, request: Typed[PopHeader], reply: ReplyTo) -> None:
        """A condition that nobody has used yet: compile it in a turn of its own, then pop."""
        header = request.header

        def refuse(why: Refused) -> None:
            reply.send(encode_response(request.opaque, _TYPES[request.serialize], why.code, why.ext, why.remark))

        async def work() -> None:
            try:
                self._filters.compile(header.exp, header.exp_type)
                self.pop(request, reply)
            except FilterError as error:
                refuse(parse_failed(error))
            except Refused as refusal:
                refuse(refusal)
            except (NotLeader, Busy):
                refuse(Refused(ResponseCode.SYSTEM_BUSY, "the leader changed, or is busy: try again"))

        if not self._disk.offer(work, len(header.exp)):
            refuse(Refused(ResponseCode.SYSTEM_BUSY, "[OVERLOAD]too many new filters at once: try again in a second"))

    def notification(self, request: Typed[NotificationHeader], reply: ReplyTo) -> bytes | None:
        """Code 200054: answered as soon as a pop would find something."""
        wait = self._wait(request, reply, request.header.attempt_id, ALL)
        wait.asks_only = True
        self._check(wait)
        self._attempt(wait, may_hold=True)
        return None

    def _wait(
        self, request: Typed[PopHeader] | Typed[NotificationHeader], reply: ReplyTo, attempt: str, wanted: Selection
    ) -> PopWait:
        header = request.header
        longest = HOLD_MAX_S if hasattr(reply, "closed") else FORWARDED_HOLD_MAX_S
        return PopWait(
            reply=reply,
            opaque=request.opaque,
            serialize=request.serialize,
            group=header.consumer_group,
            topic=header.topic,
            queue=header.queue_id,
            count=1,
            invisible_ms=0,
            ordered=header.order,
            attempt=attempt,
            filter=wanted,
            init=INIT_MIN,
            deadline=trio.current_time() + min(max(0.0, header.poll_time / 1000), longest),
        )

    def _check(self, wait: PopWait) -> None:
        """Raise `Refused` for what can never be popped."""
        if not self._config.permission & 4:
            raise Refused(
                ResponseCode.NO_PERMISSION, f"the broker[{self._config.broker_name}] pop message is forbidden"
            )
        try:
            check_group(wait.group)
        except BadName as error:
            raise Refused(ResponseCode.INVALID_PARAMETER, str(error)) from None
        if len(wait.attempt) > ATTEMPT_MAX:
            raise Refused(ResponseCode.INVALID_PARAMETER, f"attemptId: at most {ATTEMPT_MAX} characters")
        topic = self._topic(wait.topic)
        if not topic.perm & 4:
            raise Refused(ResponseCode.NO_PERMISSION, f"the topic[{wait.topic}] pop message is forbidden (perm)")
        if not ANY_QUEUE <= wait.queue < topic.read_queues:
            raise Refused(
                ResponseCode.INVALID_PARAMETER,
                f"queueId[{wait.queue}] is illegal, topic:[{wait.topic}] topicConfig.readQueueNums:"
                f"[{topic.read_queues}]",
            )
        if not settings_of(self._group(wait.group).settings).consume_enable:
            raise Refused(ResponseCode.NO_PERMISSION, f"subscription group no permission, {wait.group}")

    def _topic(self, name: str) -> TopicInfo:
        info = self._intake.view.topic(name.encode())
        if info is None:
            raise Refused(
                ResponseCode.TOPIC_NOT_EXIST, f"topic[{name}] not exist, apply first please! (or refresh the route)"
            )
        return info

    def _group(self, name: str) -> GroupInfo:
        return self._intake.ensure_group(name)

    async def peek(self, request: Request) -> bytes:
        """Code 200052: what a pop would give now; nothing becomes invisible."""
        header = PeekHeader.from_ext(request.ext)
        wait = PopWait(
            reply=request.reply,
            opaque=request.command.opaque,
            serialize=request.serialize,
            group=header.consumer_group,
            topic=header.topic,
            queue=header.queue_id,
            count=min(max(1, header.max_msg_nums), COUNT_MAX),
            invisible_ms=0,
            ordered=False,
            attempt="",
            filter=ALL,
            init=INIT_MIN,
            deadline=0.0,
        )
        self._check(wait)
        parts: list[bytes] = []
        rest, left = 0, wait.count
        gid = self._group(wait.group).gid
        for _, topic, queue in self._queues(wait):
            key = key_of(topic.tid, queue)
            start = max(self._start(wait, gid, key), self._store.queues.first_offset(key))
            rest += max(0, self._store.queues.next_offset(key) - start)
            if left and start < self._store.queues.next_offset(key):
                found = await self._store.get_from_disk(key, start, left, self._config.hot_bytes, None)
                parts += found.parts
                left -= found.count
        ext = PopResponse(rest_num=rest).to_ext()
        if not parts:
            return request.answer(ResponseCode.PULL_NOT_FOUND, "NO_MESSAGE_IN_QUEUE", ext)
        return request.success(ext, body=b"".join(parts), remark="FOUND")

    async def polling_info(self, request: Request) -> bytes:
        """Code 200055: how many pops are held for this queue (-1: for any)."""
        header = PollingInfoHeader.from_ext(request.ext)
        self._topic(header.topic)
        held = self.waits.waiting((header.consumer_group, header.topic))
        count = sum(wait.queue == header.queue_id and not wait.asks_only for wait in held)
        return request.success(PollingInfoResponse(polling_num=count).to_ext())

    # --- choosing

    def _queues(self, wait: PopWait) -> Iterator[tuple[int, TopicInfo, int]]:
        """(retry flag, topic, queue) in the order to look: beginning elsewhere each time, so that none starves."""
        topic = self._topic(wait.topic)
        turn = self._turns[wait.pair] = self._turns.pop(wait.pair, -1) + 1
        if len(self._turns) > TURNS_MAX:
            del self._turns[next(iter(self._turns))]
        retry = None if wait.ordered else self._intake.view.topic(pop_retry_topic(wait.topic, wait.group).encode())
        again = [(RETRY, retry, queue) for queue in range(retry.read_queues)] if retry is not None else []
        if turn % RETRY_FIRST_EVERY == 0:
            yield from again
        if wait.queue != ANY_QUEUE:
            yield NORMAL, topic, wait.queue
        else:
            for number in range(topic.read_queues):
                yield NORMAL, topic, (turn + number) % topic.read_queues
        if turn % RETRY_FIRST_EVERY:
            yield from again

    def _start(self, wait: PopWait, gid: int, key: int) -> int:
        """Where the next pop of this queue begins."""
        view = self._intake.view
        committed = view.offset(gid, key)
        queue = view.tables.pop.queue(gid, key) if not wait.ordered else None
        if queue is not None:
            return max(queue.next, committed or 0)
        if committed is not None:
            return committed
        queues = self._store.queues
        first = queues.first_offset(key)
        if wait.init == INIT_MIN or view.tables.topics.by_id.get(tid_of(key)) is None or self._young(key, first):
            return first
        return queues.next_offset(key)

    def _young(self, key: int, first: int) -> bool:
        """RocketMQ's rule: a queue that still begins at 0, not far behind the log's end, is read from its beginning."""
        if first > 0:
            return False
        if self._store.queues.next_offset(key) == 0:
            return True
        words = self._store.queues.hot(key, 0, 1)
        return words is not None and self._replicator.visible() - words[0] <= HOT_BYTES

    def _gather(self, wait: PopWait) -> _Gathered:
        """What there is for this pop now. Changes nothing."""
        gid = self._group(wait.group).gid
        got = _Gathered([], 0, None)
        room = self._config.hot_bytes
        for flag, topic, queue in self._queues(wait):
            part = self._part(wait, flag, gid, key_of(topic.tid, queue))
            if part is None:
                continue
            end = self._store.queues.next_offset(part.key)
            left = wait.count - got.count
            if left <= 0 or room <= 0 or (gid, part.key) in self._reading:
                got.rest += max(0, end - part.start)
                continue
            if part.start < end:
                found = self._read(wait, part, left, room)
                if found is None:
                    got.disk = got.disk or part
                    continue
                got.rest += end - part.next
                got.more = got.more or (part.next < end and not part.offsets)
                room -= part.size
            if part.offsets or self._worth_logging(wait, part):
                got.parts.append(part)
        if got.count:
            got.disk = None
        return got

    def _part(self, wait: PopWait, flag: int, gid: int, key: int) -> _Part | None:
        """A queue to look at; None when its messages may not be given out now."""
        pop = self._intake.view.tables.pop
        batch = pop.batch(gid, key) if wait.ordered else None
        blocked = batch is not None and self._revive.is_blocked(gid, key, batch.blocked_until)
        if batch is not None and blocked and (not wait.attempt or wait.attempt != batch.attempt):
            return None
        out = None if wait.ordered else pop.queue(gid, key)
        if out is not None and len(out.taken) >= OUT_MAX:
            return None
        start = max(self._start(wait, gid, key), self._store.queues.first_offset(key))
        return _Part(flag, gid, key, start, start, batch=batch)

    def _read(self, wait: PopWait, part: _Part, count: int, size: int) -> Found | None:
        """Fill a part from memory; None when the disk has to be asked."""
        wanted = wait.filter if part.flag == NORMAL else ALL
        at = part.start
        skipped = self._skipped.get((part.gid, part.key, wanted.expression))
        if skipped is not None and skipped[0] == part.start:
            at = skipped[1]
        found = self._store.get(part.key, at, count, size, wanted.codes, wanted.test)
        if isinstance(found, NeedDisk):
            return None
        self._fill(part, found)
        return found

    def _fill(self, part: _Part, found: Found) -> None:
        part.next = found.next_offset
        for raw in found.parts:
            for head in iter_records(raw):
                part.records.append(raw[head.at : head.at + head.size])
                part.offsets.append(head.queue_offset)

    def _worth_logging(self, wait: PopWait, part: _Part) -> bool:
        """A queue that gave nothing: shall the log know where this group begins in it, or what it skipped?

        Once, at the first pop of a group, when it begins at the end. What a filter skips is logged now and then.
        """
        if self._intake.view.offset(part.gid, part.key) is None:
            return part.start > 0 or part.next > part.start
        if part.next == part.start:
            return False
        wanted = wait.filter if part.flag == NORMAL else ALL
        self._skipped[part.gid, part.key, wanted.expression] = (part.start, part.next)
        if len(self._skipped) > _SKIPPED_MAX:
            del self._skipped[next(iter(self._skipped))]
        return part.next - part.start >= _SKIPPED_LOGGED

    # --- serving

    def _attempt(self, wait: PopWait, *, may_hold: bool) -> bool:
        """Answer if there is something; else hold, or say that there is nothing. True when it needs no more care."""
        try:
            got = self._gather(wait)
            if wait.asks_only:
                return self._tell(wait, got, may_hold=may_hold)
            if got.disk is not None:
                return self._from_disk(wait, got.disk)
            if got.count or got.parts:
                self._take(wait, got)
            if got.count:
                return True
            if got.more and may_hold:
                self._run_soon(wait.pair)
        except Refused as refusal:
            self._respond(wait, refusal.code, refusal.remark, refusal.ext)
            return True
        except NotLeader as error:
            self._respond(wait, ResponseCode.POLLING_TIMEOUT, "the leader changed", leader_ext(error.hint))
            return True
        except Busy:
            self._respond(wait, ResponseCode.SYSTEM_BUSY, "[OVERLOAD]system busy, try again a little later")
            return True
        return self._nothing(wait, may_hold=may_hold)

    def _tell(self, wait: PopWait, got: _Gathered, *, may_hold: bool) -> bool:
        if not got.count and got.disk is None:
            return self._nothing(wait, may_hold=may_hold)
        self._release(wait)
        self._send(wait, ResponseCode.SUCCESS, NotificationResponse(has_msg=True).to_ext(), "")
        return True

    def _nothing(self, wait: PopWait, *, may_hold: bool) -> bool:
        if wait.active:
            return False  # it is held and stays held
        if may_hold and trio.current_time() < wait.deadline:
            if getattr(wait.reply, "closed", False):
                return True
            if self.waits.add(wait):
                self._counters.pops_held += 1
                self._watch(wait)
                return False
            self._respond(wait, ResponseCode.POLLING_FULL, "too many pops are held: try again in a second")
            return True
        self._respond(wait, ResponseCode.POLLING_TIMEOUT, "NO_MESSAGE_IN_QUEUE")
        return True

    def _watch(self, wait: PopWait) -> None:
        view = self._intake.view
        names = (wait.topic, pop_retry_topic(wait.topic, wait.group))
        topics = [topic for name in names if (topic := view.topic(name.encode())) is not None]
        self.waits.watch(
            wait.pair, [key_of(topic.tid, queue) for topic in topics for queue in range(topic.read_queues)]
        )

    def _take(self, wait: PopWait, got: _Gathered) -> None:
        """Log what is taken; the answer, if it has messages, leaves when that is committed. Raises as the intake."""
        now = self._intake.log_time()
        until = now + wait.invisible_ms
        ops: list[Op] = [self._op(wait, part, now, until) for part in got.parts]
        answer = None
        if got.count:
            frame = self._frame(wait, [part for part in got.parts if part.offsets], got.rest, now)
            answer = Answer(wait.reply, wait.opaque, _TYPES[wait.serialize], ok_frame=frame)
        self._intake.put_ops(ops, answer=answer)
        for part in got.parts:
            self._skipped.pop((part.gid, part.key, wait.filter.expression), None)
            if part.offsets:
                self._revive.took(until, part.gid, part.key, -1 if wait.ordered else now, part.offsets)
        if got.count:
            self._release(wait)
            self._counters.pop_messages += got.count
            if got.rest and wait.pair in self.waits:
                self._run_soon(wait.pair)

    def _op(self, wait: PopWait, part: _Part, now: int, until: int) -> Op:
        tid, queue = tid_of(part.key), queue_of(part.key)
        if wait.ordered:
            return OrderTake(part.gid, tid, queue, part.next, now, until, wait.attempt, part.offsets)
        return PopTake(part.gid, tid, queue, part.next, now, until, part.offsets)

    def _frame(self, wait: PopWait, parts: Sequence[_Part], rest: int, now: int) -> bytes:
        revive = ORDER_REVIVE_QUEUE if wait.ordered else 0
        ext = PopResponse(
            pop_time=now,
            invisible_time=wait.invisible_ms,
            revive_qid=revive,
            rest_num=rest,
            start_offset_info=format_starts((part.flag, queue_of(part.key), part.start) for part in parts),
            msg_offset_info=format_offsets((part.flag, queue_of(part.key), part.offsets) for part in parts),
            order_count_info=format_counts(_counts(wait, part) for part in parts) if wait.ordered else "",
        ).to_ext()
        body: list[bytes] = []
        for part in parts:
            if part.flag == NORMAL:
                body += part.records
            else:
                body += [self._restored(wait, part, raw, now) for raw in part.records]
        head = encode_response_head(
            wait.opaque, _TYPES[wait.serialize], ResponseCode.SUCCESS, ext, "FOUND", sum(map(len, body))
        )
        return b"".join((head, *body))

    def _restored(self, wait: PopWait, part: _Part, raw: bytes, now: int) -> bytes:
        """A record of the retry topic under its original topic; its handle goes with it, else nobody knew its place."""
        record: Record = unpack_record(raw)
        handle = Handle(
            part.start,
            now,
            wait.invisible_ms,
            0,
            part.flag,
            self._config.broker_name,
            record.queue_id,
            record.queue_offset,
        )
        marked = properties.append(
            properties.without(record.properties, POP_CK.encode()), POP_CK.encode(), str(handle).encode()
        )
        return pack_record(
            topic=wait.topic.encode(),
            queue_id=record.queue_id,
            queue_offset=record.queue_offset,
            position=record.position,
            flag=record.flag,
            sys_flag=record.sys_flag,
            born_ms=record.born_ms,
            born_host=record.born_host,
            store_ms=record.store_ms,
            store_host=record.store_host,
            reconsume_times=record.reconsume_times,
            prepared_offset=record.prepared_offset,
            body=record.body,
            properties=marked if len(marked) <= properties.MAX_BYTES else record.properties,
        )

    def _from_disk(self, wait: PopWait, part: _Part) -> bool:
        """Read one queue in the disk lane, then take from it. Nobody else takes from it meanwhile."""
        place = (part.gid, part.key)
        self._release(wait)

        async def work() -> None:
            try:
                wanted = wait.filter if part.flag == NORMAL else ALL
                found = await self._store.get_from_disk(
                    part.key, part.start, wait.count, self._config.cold_bytes, wanted.codes, wanted.test
                )
            except (OSError, StoreError) as error:
                self._reading.discard(place)
                self._respond(wait, ResponseCode.SYSTEM_ERROR, f"the message cannot be read: {error}")
                return
            self._reading.discard(place)
            self._found_on_disk(wait, part, found)
            self._run_soon(wait.pair)

        if not self._disk.offer(work, 0):
            self._respond(wait, ResponseCode.SYSTEM_BUSY, "[OVERLOAD]too many reads from disk: try again in a second")
            return True
        self._reading.add(place)
        return True

    def _found_on_disk(self, wait: PopWait, part: _Part, found: Found) -> None:
        try:
            fresh = self._part(wait, part.flag, part.gid, part.key)
            if fresh is not None and fresh.start == part.start and found.next_offset > part.start:
                self._fill(fresh, found)
                rest = self._store.queues.next_offset(part.key) - fresh.next
                got = _Gathered([fresh], max(0, rest), None)
                if got.count or self._worth_logging(wait, fresh):
                    self._take(wait, got)
                if got.count:
                    return
        except (Refused, NotLeader, Busy):
            pass  # the next attempt says why
        self._attempt(wait, may_hold=True)

    def _respond(self, wait: PopWait, code: int, remark: str, ext: Mapping[str, str] | None = None) -> None:
        """An answer without messages."""
        self._release(wait)
        fields: dict[str, str] = dict(ext or {})
        if wait.asks_only:
            full = code == ResponseCode.POLLING_FULL
            if code in (ResponseCode.POLLING_FULL, ResponseCode.POLLING_TIMEOUT):
                fields.update(NotificationResponse(has_msg=False, polling_full=full).to_ext())
                code = ResponseCode.SUCCESS
        else:
            fields.update(PopResponse(invisible_time=wait.invisible_ms, pop_time=self._clock.wall_ms()).to_ext())
        self._send(wait, code, fields, remark)

    @staticmethod
    def _send(wait: PopWait, code: int, ext: Mapping[str, str], remark: str) -> None:
        wait.reply.send(encode_response(wait.opaque, _TYPES[wait.serialize], code, ext, remark))

    def _release(self, wait: PopWait) -> None:
        if wait.active:
            self.waits.release(wait)

    # --- waking

    def touched(self, touched: Mapping[int, int]) -> None:
        """Queues got messages. Called by the dispatcher, so it only takes a note."""
        if len(self.waits):
            for pair in self.waits.interested(touched):
                self._run_soon(pair)

    def topics_changed(self) -> None:
        """A queue may have been added to what somebody waits for: a retry topic, above all."""
        if len(self.waits) and self._intake.admitting:
            for pair in self.waits.pairs():
                self._watch(self.waits.waiting(pair)[0])
                self._run_soon(pair)

    def wake(self, group: str, topic: str) -> None:
        """Something of this topic is visible again for this consumer group."""
        if (group, topic) in self.waits:
            self._run_soon((group, topic))

    def _visible_again(self, gid: int, key: int) -> None:
        tables = self._intake.view.tables
        group, topic = tables.groups.by_id.get(gid), tables.topics.by_id.get(tid_of(key))
        if group is not None and topic is not None:
            self.wake(group.name, topic.name)

    def _run_soon(self, pair: tuple[str, str]) -> None:
        self._runnable[pair] = None
        self._wake.set()

    def role_changed(self, event: RoleEvent) -> None:
        """Nobody is held by a replica that does not lead: the client asks again and finds the leader."""
        if self._intake.admitting:
            return
        self._skipped.clear()
        for wait in self.waits.take_all():
            self._respond(wait, ResponseCode.POLLING_TIMEOUT, "the leader changed", leader_ext(event.leader))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve held pops until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sweep)
            task_status.started()
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                runnable, self._runnable = self._runnable, {}
                for pair in runnable:
                    self._serve(pair)
                    await trio.lowlevel.checkpoint()

    def _serve(self, pair: tuple[str, str]) -> None:
        """Give what there is to those who wait, the oldest first, until nothing is left for anybody."""
        vain: set[object] = set()  # membership only
        for wait in self.waits.waiting(pair):
            if wait.active and wait.alike not in vain and not self._attempt(wait, may_hold=True):
                vain.add(wait.alike)

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(SLOT_S)
            for wait in self.waits.due(trio.current_time()):
                self._attempt(wait, may_hold=False)


_SKIPPED_MAX = 65_536
_SKIPPED_LOGGED = 1_000


def _counts(wait: PopWait, part: _Part) -> tuple[int, int, dict[int, int], int]:
    counts = part.batch.counted(part.offsets, wait.attempt) if part.batch is not None else {}
    least = min(counts.values()) if counts and len(counts) == len(part.offsets) else 0
    return part.flag, queue_of(part.key), counts, least
