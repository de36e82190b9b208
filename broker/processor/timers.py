"""Timed messages for clients and operators: cancel one (370), list what waits (9020).

A recall finds its message by the unique id in the key index, so it needs neither the due time nor the place, and a copy
that was moved on meanwhile is found as well. Whether it still waits is looked up in one step with placing op 25: a
message is either delivered or recalled, and the caller learns which.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator
from typing import TYPE_CHECKING

import trio

from broker.config import BrokerConfig
from broker.metadata.ops import key_of
from broker.metadata.state import GroupState
from broker.metadata.timer_ops import TimerCancel
from broker.metadata.timers import CANCELLED_MAX
from broker.metrics import Counters
from broker.processor.request import Refused, Request
from broker.replication.answers import refusal_frame
from broker.replication.base import Busy, NotLeader, Replicator
from broker.replication.intake import Intake
from broker.replication.requests import Answer
from broker.service.timed import due_of, make_handle, read_handle
from broker.service.timer import TimerService
from broker.service.wheel import FAR_QUEUE, SLOTS, TIMER_TOPIC, slot_of
from broker.store.errors import StoreError
from trimq.env import Clock
from trimq.errors import RecordError
from trimq.message import properties
from trimq.message.record import Record, unpack_record, unpack_records
from trimq.wire.body.timers import TimedMessage, TimerList
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.timer import ListTimersHeader, ListTimersResponse, RecallHeader, RecallResponse

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["TimerProcessor"]

LIST_MAX = 1_000
SCAN_MAX = 20_000
"""Records read for one page, however few of them are wanted."""
READ_COUNT = 256
READ_BYTES = 1 << 20
CANDIDATES_MAX = 1_024
CANCELS_MAX = 256
"""Sends that cancel and wait for their look-up."""
FOREVER_MS = 1 << 62


class TimerProcessor:
    """Recalls and lists timed messages of one replica group. Register it for a ready leader."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        timer: TimerService,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._config = config
        self._state = state
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._timer = timer
        self._clock = clock
        self._counters = counters
        self._cancels_in, self._cancels_out = trio.open_memory_channel[tuple[str, str, Answer]](CANCELS_MAX)

    # --- recall

    async def recall(self, request: Request) -> bytes | None:
        """Code 370. The intake answers. Raises `Refused`."""
        header = RecallHeader.from_ext(request.ext)
        if not self._config.recall:
            raise Refused(ResponseCode.NO_PERMISSION, "recalling messages is switched off (recallMessageEnable)")
        try:
            topic, broker_name, _, unique = read_handle(header.recall_handle)
        except (ValueError, binascii.Error) as error:
            raise Refused(
                ResponseCode.ILLEGAL_OPERATION,
                f"the recall handle cannot be read ({error}): use it as a send returned it",
            ) from None
        if topic != header.topic or broker_name != self._config.broker_name:
            raise Refused(
                ResponseCode.ILLEGAL_OPERATION,
                f"the recall handle is of topic {topic} at {broker_name}, not of {header.topic} here",
            )
        await self._intake.settle()  # what was acknowledged a moment ago is in the index then
        for _ in range(2):  # the far queue may be moving it just now
            for record in await self._copies(topic, unique):
                timers = self._intake.view.tables.timers
                if timers.waits(record.queue_id, due_of(record), record.queue_offset):
                    self._cancel(request, record, unique)
                    return None
            await self._intake.settle()
        raise Refused(
            ResponseCode.ILLEGAL_OPERATION,
            f"message {unique} does not wait: it was delivered, recalled, or never was here",
        )

    def _cancel(self, request: Request, record: Record, unique: str) -> None:
        if len(self._state.timers.cancelled) >= CANCELLED_MAX:
            raise Refused(
                ResponseCode.SYSTEM_BUSY, f"{CANCELLED_MAX} recalled messages wait for their time: try again later"
            )
        answer = request.later(request.success(RecallResponse(msg_id=unique).to_ext()))
        self._intake.put_batch([], answer, ops=[TimerCancel(record.queue_id, record.queue_offset)])
        self._counters.timers_recalled += 1

    async def _copies(self, topic: str, unique: str) -> list[Record]:
        """Records of the timer topic with this id, for this topic; newest first."""
        info = self._state.topics.get(TIMER_TOPIC.encode())
        if info is None:
            return []
        positions = await self._store.query_key(info.tid, unique.encode(), 0, FOREVER_MS, CANDIDATES_MAX)
        found: list[Record] = []
        for position in positions:
            try:
                record = unpack_record(await self._store.read_record(position))
            except (RecordError, StoreError, OSError):
                continue
            if (
                record.topic == TIMER_TOPIC.encode()
                and properties.get(record.properties, b"UNIQ_KEY") == unique.encode()
                and properties.get(record.properties, b"REAL_TOPIC") == topic.encode()
            ):
                found.append(record)
        return found

    # --- a send that cancels

    def cancel_by_send(self, topic: str, key: str, answer: Answer) -> None:
        """A send with TIMER_DEL_UNIQKEY: the older way to cancel. `key` is the unique id, or `topic+id`.

        Answered by `run`: like a send that was stored, at the place of the cancelled message. Raises `Busy`.
        """
        try:
            self._cancels_in.send_nowait((topic, key.removeprefix(f"{topic}+"), answer))
        except trio.WouldBlock:
            raise Busy("too many messages are being cancelled") from None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve `cancel_by_send` until cancelled, one after the other."""
        task_status.started()
        async for topic, unique, answer in self._cancels_out:
            try:
                await self._cancel_sent(topic, unique, answer)
            except (Refused, NotLeader, Busy, StoreError, OSError) as error:
                refused = error if isinstance(error, Refused) else Refused(ResponseCode.SYSTEM_BUSY, str(error))
                answer.reply.send(refusal_frame(answer, refused))

    async def _cancel_sent(self, topic: str, unique: str, answer: Answer) -> None:
        await self._intake.settle()
        for record in await self._copies(topic, unique):
            if self._intake.view.tables.timers.waits(record.queue_id, due_of(record), record.queue_offset):
                answer.ok_frame = self._intake.answers.stored(
                    answer, record.queue_id, record.queue_offset, (record.position,)
                )
                self._intake.put_batch([], answer, ops=[TimerCancel(record.queue_id, record.queue_offset)])
                self._counters.timers_recalled += 1
                return
        raise Refused(
            ResponseCode.MESSAGE_ILLEGAL, f"TIMER_DEL_UNIQKEY: message {unique} of {topic} does not wait (any more)"
        )

    # --- list

    async def list_waiting(self, request: Request) -> bytes:
        """Code 9020: what waits, in pages. A page may be empty and yet have a next one."""
        header = ListTimersHeader.from_ext(request.ext)
        await self._replicator.barrier()
        info = self._state.topics.get(TIMER_TOPIC.encode())
        waiting = self._timer.waiting()
        first, queue, offset = self._cursor(header.after)
        limit = min(max(header.max_num, 1), LIST_MAX)
        found: list[TimedMessage] = []
        scanned, following = 0, ""
        for each in _order(first, queue):
            start, end = waiting.get(each, (0, 0))
            if each == queue:
                start = max(start, offset)
            while start < end and info is not None and not following:
                records = await self._read(key_of(info.tid, each), start)
                if not records:
                    break
                for record in records:
                    if len(found) >= limit or scanned >= SCAN_MAX:
                        following = f"{first}:{each}:{record.queue_offset}"
                        break
                    scanned += 1
                    start = record.queue_offset + 1
                    shown = self._shown(record, header.topic)
                    if shown is not None:
                        found.append(shown)
                await trio.lowlevel.checkpoint()
            if following:
                break
        total = sum(end - start for start, end in waiting.values())
        body = TimerList(messages=found, waiting=total).to_json()
        return request.success(ListTimersResponse(next=following).to_ext(), body=body)

    def _cursor(self, after: str) -> tuple[int, int, int]:
        """First queue of the whole walk, queue and offset to go on at."""
        if not after:
            first = 1 + slot_of(self._clock.wall_ms()) % SLOTS
            return first, first, 0
        parts = after.split(":")
        if len(parts) != 3 or not all(part.isdigit() and len(part) < 19 for part in parts) or int(parts[0]) > SLOTS:
            raise Refused(ResponseCode.INVALID_PARAMETER, f"after={after[:40]!r}: use `next` of the answer before")
        return int(parts[0]), int(parts[1]), int(parts[2])

    async def _read(self, key: int, offset: int) -> list[Record]:
        found = await self._store.get_from_disk(key, offset, READ_COUNT, READ_BYTES, None)
        return [record for part in found.parts for record in unpack_records(part)]

    def _shown(self, record: Record, topic: str) -> TimedMessage | None:
        if not self._state.timers.waits(record.queue_id, due_of(record), record.queue_offset):
            return None
        found = properties.parse(record.properties)
        real, unique = found.get("REAL_TOPIC", ""), found.get("UNIQ_KEY", "")
        if topic and real != topic:
            return None
        due = due_of(record)
        return TimedMessage(
            topic=real,
            queueId=int(found.get("REAL_QID", "0")),
            dueMs=due,
            msgId=unique,
            keys=found.get("KEYS", ""),
            tag=found.get("TAGS", ""),
            bornMs=record.born_ms,
            bodyBytes=len(record.body),
            rolled=int(found.get("TIMER_ROLL_TIMES", "0")),
            recallHandle=make_handle(real, self._config.broker_name, due, unique) if unique else "",
        )


def _order(first: int, at: int) -> Iterator[int]:
    """Queues from `at` on: once round the wheel from `first`, then the far queue."""
    walk = [1 + (first - 1 + step) % SLOTS for step in range(SLOTS)] + [FAR_QUEUE]
    return iter(walk[walk.index(at) :] if at in walk else ())
