"""Transactions: a message that becomes visible together with work of the application's own.

    async def check(message: trimq.Received) -> trimq.Outcome:
        return trimq.Outcome.COMMIT if await booked(message.id) else trimq.Outcome.ROLLBACK

    async with mq.producer("bookings", check=check) as producer:
        async with producer.transaction(trimq.Message(topic="bookings", body=b"...")) as tx:
            await book(tx.id)          # leaving the block commits, an exception rolls back

On entry the message is stored where nobody sees it (a *half message*); leaving decides. Between the two anything may
die: then the broker asks a live producer of the same group, and its `check` says what the application's own records
say. So `check` has to find that out by the message alone, and must not decide by guess: `Outcome.UNKNOWN` makes the
broker ask again later, a bounded number of times.

The protocol is RocketMQ's; it works with its brokers, too. With ours a decision may be repeated safely, so `commit`
goes on through failovers until the caller's deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self, TypeAlias

import anyio

from trimq.client.incoming import decode_records
from trimq.client.instance import Instance, refusal
from trimq.client.model import EVERYTHING, Message, Queue, Receipt, SendStatus, from_ms
from trimq.client.received import Received
from trimq.errors import BadRequest, NotStored, ProtocolError, SendUnknown, TrimqError
from trimq.message.ids import parse_offset_message_id
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command
from trimq.wire.headers.transaction import CheckTransactionHeader, EndTransactionHeader

if TYPE_CHECKING:
    from datetime import timedelta

    from trimq.client.producer import Producer

__all__ = ["Checker", "Checks", "Outcome", "Transaction"]

log = logging.getLogger(__name__)

CHECKS_MAX = 256
"""Checks that run or wait at the same time; more are dropped, the broker asks again."""
CHECKS_AT_ONCE = 16
LEARN_S = 30.0
"""How often the cluster is looked at for brokers that this producer has never sent to: they may ask, too."""
LEARN_AGAIN_S = 1.0


class Outcome(IntEnum):
    """What became of the application's own work. The values are RocketMQ's transaction bits."""

    COMMIT = 8
    ROLLBACK = 12
    UNKNOWN = 0


Checker: TypeAlias = Callable[[Received], Awaitable[Outcome]]


class Transaction:
    """One half message and its end. Made by `Producer.transaction`; used as an `async with` block."""

    def __init__(self, producer: Producer, message: Message, queue: Queue | None) -> None:
        self._producer = producer
        self._message = message
        self._queue = queue
        self._half: Receipt | None = None
        self._outcome: Outcome | None = None
        self.receipt: Receipt | None = None
        """Where the message lies, once it is committed (with brokers of ours; else None)."""

    @property
    def id(self) -> str:
        """The message's unique id: keep it with the work, it is what `check` will be asked about."""
        return self._message.id

    @property
    def outcome(self) -> Outcome | None:
        """What was decided here; None while nothing was."""
        return self._outcome

    async def begin(self) -> None:
        """Store the half message; entering the block does it. Raises as `Producer.send`."""
        self._half = await self._producer._send_half(self._message, self._queue)

    async def commit(self) -> None:
        """Make the message visible.

        Raises `SendUnknown` when no broker confirmed it before the deadline: then it is decided by `check`.
        """
        await self._end(Outcome.COMMIT)

    async def rollback(self) -> None:
        """Drop the message."""
        await self._end(Outcome.ROLLBACK)

    def unknown(self) -> None:
        """Decide nothing here: the broker will ask `check`."""
        self._decide(Outcome.UNKNOWN)

    def _decide(self, outcome: Outcome) -> Receipt:
        if self._half is None:
            raise BadRequest("the transaction has not begun", advice="use it as an `async with` block")
        if self._outcome not in (None, outcome):
            raise BadRequest(f"the transaction is {self._outcome!r} already, it cannot become {outcome!r}")
        self._outcome = outcome
        return self._half

    async def _end(self, outcome: Outcome) -> None:
        half = self._decide(outcome)
        instance = self._producer._instance
        try:
            answer = await end_half(instance, half.queue.group, self._producer.group, half, outcome)
        except TrimqError as error:
            raise SendUnknown(
                f"{outcome.name.lower()} of message {self.id} was not confirmed: {error.message}",
                id=self.id,
                advice="the broker asks the producer group's `check`",
            ) from error
        if outcome is Outcome.COMMIT and "queueOffset" in answer.ext:
            ext = answer.ext
            queue = Queue(half.queue.topic, half.queue.group, int(ext.get("queueId", half.queue.id)))
            at = from_ms(instance.clock.wall_ms())
            duplicate = ext.get("dup") in ("1", "true")
            self.receipt = Receipt(
                self.id, queue, int(ext["queueOffset"]), SendStatus(answer.code), duplicate, at, ext.get("msgId", "")
            )

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._outcome is not None:
            return
        if error is None:
            await self.commit()
        elif isinstance(error, Exception):
            try:
                await self.rollback()
            except TrimqError as problem:
                log.info(
                    "rollback not confirmed, the broker will ask", extra={"id": self.id, "reason": problem.message}
                )
        # Cancelled: nobody here knows whether the work was done. `check` will.


async def end_half(
    instance: Instance, group: str, producer_group: str, half: Receipt, outcome: Outcome, *, checked: bool = False
) -> Command:
    """Tell the leader how a half message ends; repeated through failovers. Raises `TrimqError`."""
    _, position = parse_offset_message_id(half.offset_id)
    header = EndTransactionHeader(
        producer_group=producer_group,
        tran_state_table_offset=half.offset,
        commit_log_offset=position,
        commit_or_rollback=int(outcome),
        from_transaction_check=checked,
        msg_id=half.id,
        transaction_id=half.id,
        topic=half.queue.topic,
        bname=group,
    )
    answer = await instance.call(group, Command(code=RequestCode.END_TRANSACTION, ext=header.to_ext()))
    if answer.code not in _TAKEN:
        raise refusal(answer, group)
    return answer


_TAKEN = frozenset({int(status) for status in SendStatus})


class _NoHome:
    """A half message is not consumed: there is nothing to acknowledge."""

    def entered(self, message: Received) -> None: ...

    def left(self, message: Received) -> None: ...

    async def acknowledge(self, message: Received) -> bool:
        self._refuse()

    async def extend(self, message: Received, by: timedelta) -> None:
        self._refuse()

    async def suspend(self, message: Received, after: timedelta) -> None:
        self._refuse()

    async def send_back(self, message: Received, after: timedelta | None) -> None:
        self._refuse()

    async def put_aside(self, message: Received, reason: str) -> None:
        self._refuse()

    async def reply(self, message: Received, body: bytes, tag: str | None, properties: Mapping[str, str]) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BadRequest("a half message is not consumed", advice="return an Outcome from `check`")


class Checks:
    """Answers brokers that ask about half messages (code 39). One per client instance."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._checkers: dict[str, list[Checker]] = {}
        self._running = 0
        self._limiter: anyio.CapacityLimiter | None = None
        instance.serve(RequestCode.CHECK_TRANSACTION_STATE, self._on_check)

    def add(self, producer_group: str, checker: Checker) -> Callable[[], None]:
        """Ask this one about half messages of the group; returns the call that ends it."""
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(CHECKS_AT_ONCE)
            self._instance.tasks.start_soon(self._keep_learning)
        self._checkers.setdefault(producer_group, []).append(checker)
        self._instance.beat_soon()

        def remove() -> None:
            self._checkers[producer_group].remove(checker)

        return remove

    async def _keep_learning(self) -> None:
        """Every broker of the cluster has to know this producer group, not only those it has sent to."""
        while True:
            pause = LEARN_S
            if any(self._checkers.values()):
                try:
                    await self._instance.routes.learn_cluster()
                except TrimqError as error:
                    log.debug("cluster not known", extra={"reason": error.message})
                    pause = LEARN_AGAIN_S
            await anyio.sleep(pause)

    def _on_check(self, addr: str, command: Command) -> None:
        if self._running >= CHECKS_MAX or self._limiter is None:
            return
        self._running += 1
        self._instance.tasks.start_soon(self._check, addr, command)

    async def _check(self, addr: str, command: Command) -> None:
        try:
            assert self._limiter is not None
            async with self._limiter:
                await self._decide(addr, command)
        except TrimqError as error:
            log.info("the answer to a transaction check was not taken", extra={"addr": addr, "reason": error.message})
        finally:
            self._running -= 1

    async def _decide(self, addr: str, command: Command) -> None:
        try:
            header = CheckTransactionHeader.from_ext(command.ext)
            group = header.bname or self._group_at(addr)
            queue = Queue("", group, 0)
            (message,) = decode_records(bytes(command.body), queue, EVERYTHING, _NoHome())
        except (ProtocolError, ValueError) as error:
            log.warning("a transaction check cannot be read", extra={"addr": addr, "error": error})
            return
        producer_group = message.all_properties.get("PGROUP", "")
        checkers = self._checkers.get(producer_group)
        if not checkers:
            log.warning(
                "a broker asks about a transaction, and no producer of its group here has a `check`",
                extra={"group": producer_group, "addr": addr},
            )
            return
        outcome = await self._ask(checkers[0], message)
        if outcome is Outcome.UNKNOWN:
            return
        at = from_ms(self._instance.clock.wall_ms())
        half = Receipt(
            message.id,
            Queue(message.topic, group, message.queue.id),
            header.tran_state_table_offset,
            SendStatus.OK,
            False,
            at,
            header.offset_msg_id or message.offset_id,
        )
        await end_half(self._instance, group, producer_group, half, outcome, checked=True)

    async def _ask(self, checker: Checker, message: Received) -> Outcome:
        try:
            return Outcome(await checker(message))
        except Exception as error:  # the application's own: its failure decides nothing
            log.warning("`check` failed, the broker will ask again", extra={"id": message.id}, exc_info=error)
            return Outcome.UNKNOWN

    def _group_at(self, addr: str) -> str:
        return next((view.name for view in self._instance.routes.groups if addr in view.all_addresses), "")


def check_half(receipt: Receipt) -> Receipt:
    """A half message is ended by its place: without one it cannot be."""
    if receipt.offset < 0 or not receipt.offset_id:
        raise NotStored(
            f"message {receipt.id} was a half message long ago, and its first copy has expired",
            advice="begin a transaction with a new Message",
        )
    return receipt
