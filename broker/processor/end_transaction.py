"""The end of a transaction (37), and giving a half message that was given up another chance (323).

A commit is one entry: the message in its real topic, and op 17, which ends the half message. So it is visible or not,
whoever leads next. Decisions are remembered (`broker.metadata.transactions`): the same request again, after a lost
answer, gets the same answer; a contradicting one is refused by name of what was decided.

Reading the half message is the only thing that waits. Whether it is still open is looked up behind that, in one step
with placing the entry, in the leader's view: two requests that race cannot both win.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.metadata.transaction_ops import End, Half, HalfEnd
from broker.metadata.transactions import Ended
from broker.metrics import Counters
from broker.processor.request import Refused, Request
from broker.replication.base import Replicator
from broker.replication.intake import Intake
from broker.replication.requests import PutMessage
from broker.service.delay import copy_of
from broker.service.half import GIVEN_UP_TOPIC, HALF_TOPIC, IMMUNITY, committed
from broker.service.placing import Placing
from broker.store.errors import StoreError
from trimq.env import Clock
from trimq.errors import RecordError
from trimq.message import properties
from trimq.message.ids import parse_offset_message_id
from trimq.message.record import Record, unpack_record
from trimq.wire.codes import ResponseCode
from trimq.wire.headers.transaction import EndTransactionHeader, ResumeCheckHeader

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["TransactionProcessor"]

_WORDS = {End.COMMIT: "committed", End.ROLLBACK: "rolled back", End.GIVEN_UP: f"given up (see {GIVEN_UP_TOPIC})"}


class TransactionProcessor:
    """Ends transactions. Register it for a ready leader."""

    def __init__(
        self,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        placing: Placing,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._placing = placing
        self._clock = clock
        self._counters = counters

    async def end(self, request: Request) -> bytes | None:
        """Code 37. The intake answers. Raises `Refused`."""
        header = EndTransactionHeader.from_ext(request.ext)
        if header.commit_or_rollback == 0:
            return request.success()  # "unknown": the half message stays, its producer is asked again
        if header.commit_or_rollback not in (End.COMMIT, End.ROLLBACK):
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"commitOrRollback {header.commit_or_rollback} is none of 0 (unknown), 8 (commit), 12 (rollback)",
            )
        end = End(header.commit_or_rollback)
        half = await self._half(header)
        self._check(half, header)
        ended = self._intake.view.tables.transactions.ended.get(half.queue_offset)
        if ended is not None:
            return self._again(request, ended, end)
        if half.queue_offset not in self._intake.view.tables.transactions.open:
            raise Refused(
                ResponseCode.SYSTEM_ERROR, "this transaction ended long ago: look for its message in the real topic"
            )
        if end is End.ROLLBACK:
            self._rollback(half, request)
        else:
            self._commit(half, request)
        return None

    async def _half(self, header: EndTransactionHeader) -> Record:
        record = await self._read(header.commit_log_offset)
        if record is None or record.topic != HALF_TOPIC.encode():
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"no half message at position {header.commit_log_offset}: it expired, or belongs to another group",
            )
        return record

    async def _read(self, position: int) -> Record | None:
        if not 0 <= position < self._replicator.visible():
            return None
        try:
            return unpack_record(await self._store.read_record(position))
        except (RecordError, StoreError, OSError):
            return None

    def _check(self, half: Record, header: EndTransactionHeader) -> None:
        group = properties.get(half.properties, b"PGROUP") or b""
        if group.decode(errors="replace") != header.producer_group:
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"the producer group {header.producer_group!r} did not begin this transaction: it is of another group",
            )
        if half.queue_offset != header.tran_state_table_offset:
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"the half message at position {half.position} has queue offset {half.queue_offset},"
                f" not {header.tran_state_table_offset}",
            )
        immunity = properties.get(half.properties, IMMUNITY.encode())
        if immunity and immunity.isdigit() and not header.from_transaction_check:
            age_ms = self._clock.wall_ms() - half.born_ms
            if age_ms > int(immunity) * 1000:
                raise Refused(
                    ResponseCode.ILLEGAL_OPERATION,
                    f"the transaction is {age_ms / 1000:.0f} s old, beyond its {IMMUNITY} of {int(immunity)} s:"
                    " only the answer to a check may end it now",
                )

    def _again(self, request: Request, ended: Ended, end: End) -> bytes:
        if ended.end is not end:
            raise Refused(
                ResponseCode.SYSTEM_ERROR,
                f"the transaction was {_WORDS[ended.end]} before: it cannot be {_WORDS[end]} any more",
            )
        if ended.queue_offset < 0:
            return request.success()
        answer = request.later()
        return self._intake.answers.stored(answer, ended.queue, ended.queue_offset, (ended.position,), duplicate=True)

    def _rollback(self, half: Record, request: Request) -> None:
        self._intake.put_batch([], request.later(request.success()), ops=[HalfEnd(half.queue_offset, End.ROLLBACK)])
        self._counters.transactions_rolled_back += 1

    def _commit(self, half: Record, request: Request) -> None:
        message = committed(half)
        if message is None or self._intake.view.topic(message.topic) is None:
            raise Refused(
                ResponseCode.TOPIC_NOT_EXIST,
                f"the topic of this transaction does not exist any more:"
                f" {message.topic.decode() if message else 'none is named'}",
            )
        self._placing.place(message, properties.parse(message.properties))
        offset = half.queue_offset
        self._intake.put_batch(
            [message],
            request.later(),
            mark=lambda queue, queue_offset, position: HalfEnd(offset, End.COMMIT, queue, queue_offset, position),
        )
        self._counters.transactions_committed += 1

    async def resume(self, request: Request) -> bytes | None:
        """Code 323: a half message, or its given-up copy, becomes a new half message that is checked from the start."""
        header = ResumeCheckHeader.from_ext(request.ext)
        try:
            _, position = parse_offset_message_id(header.msg_id)
        except RecordError as error:
            raise Refused(ResponseCode.SYSTEM_ERROR, str(error)) from None
        record = await self._read(position)
        if record is None or record.topic not in (HALF_TOPIC.encode(), GIVEN_UP_TOPIC.encode()):
            raise Refused(ResponseCode.SYSTEM_ERROR, f"there is no half message at position {position}")
        open_halves = self._intake.view.tables.transactions.open
        if record.topic == HALF_TOPIC.encode() and record.queue_offset in open_halves:
            raise Refused(ResponseCode.SYSTEM_ERROR, "this half message is still being checked")
        message = _afresh(record)
        self._intake.put_batch(
            [message],
            request.later(request.success()),
            mark=lambda _queue, queue_offset, at: Half(queue_offset, at, 0),
        )
        return None


def _afresh(record: Record) -> PutMessage:
    message = copy_of(record)
    message.topic, message.queue_id = HALF_TOPIC.encode(), 0
    message.properties = properties.without(message.properties, b"TRANSACTION_CHECK_TIMES")
    return message
