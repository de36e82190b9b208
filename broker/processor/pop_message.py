"""Pop (code 200050), and the question whether there is something to pop (200054).

A pop gives the next messages of a topic to whoever asks, from all its queues and from the topic's retry topic, and
makes them invisible for a while. In one step, with nothing awaited, the messages are chosen by the leader's view
(`pop_choosing`) and what was taken goes into the log (op 32, ordered: 35); the answer (`pop_answers`) leaves when that
is committed. So no two consumers are given the same message while the first one holds it, and a handle is worth the
same under the next leader (docs/decisions, "pop state is in the log"). What finds nothing is held
(`broker.service.pop_waits`) until there is news (`pop_waking`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from broker.config import BrokerConfig
from broker.filter.cache import FilterCache
from broker.filter.selection import ALL, FilterError, Selection
from broker.metadata.ops import Op, queue_of, tid_of
from broker.metadata.pop_ops import OrderTake, PopTake
from broker.metrics import Counters
from broker.processor.lane import Lane
from broker.processor.pop_answers import TYPES, PopAnswers
from broker.processor.pop_checks import check_amount, check_wait
from broker.processor.pop_choosing import Gathered, Part, PopChoosing, wanted_of
from broker.processor.pop_waking import PopWaking
from broker.processor.pull_message import check_type, parse_failed
from broker.processor.request import Refused, Typed, leader_ext
from broker.replication.base import Busy, NotLeader, Replicator, RoleEvent
from broker.replication.intake import Intake
from broker.replication.requests import Answer
from broker.service.pop_revive import PopRevive
from broker.service.pop_waits import PopWait, PopWaits
from broker.store.errors import StoreError
from broker.store.message_store import Found, MessageStore
from trimq.env import Clock
from trimq.wire.codes import ResponseCode
from trimq.wire.command import encode_response
from trimq.wire.headers.pop import INIT_MIN, NotificationHeader, PopHeader

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.replication.base import ReplyTo

__all__ = ["PopProcessor"]

HOLD_MAX_S = 30.0
FORWARDED_HOLD_MAX_S = 10.0
"""Another replica passed the pop on: it waits 15 s for the answer, then it calls the outcome unknown."""


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
        self.waking = PopWaking(self.waits, intake, self._attempt)
        self.choosing = PopChoosing(config, store, intake, replicator, revive)
        self._config = config
        self._store = store
        self._intake = intake
        self._revive = revive
        self._answers = PopAnswers(config.broker_name, clock)
        self._filters = FilterCache()
        self._disk = disk
        self._counters = counters
        revive.visible_again = self.waking.visible_again

    # --- requests

    def pop(self, request: Typed[PopHeader], reply: ReplyTo) -> bytes | None:
        """Code 200050: answer, read from disk, or hold. Raises `Refused`."""
        header = request.header
        check_amount(self._config.broker_name, header.max_msg_nums, header.invisible_time)
        wanted = self._filter(header)
        if wanted is None:
            self._compile_first(request, reply)
            return None
        wait = self._wait(request, reply, header.attempt_id, wanted)
        wait.count, wait.invisible_ms, wait.init = header.max_msg_nums, header.invisible_time, header.init_mode
        check_wait(self._config, self._intake, wait)
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
            reply.send(encode_response(request.opaque, TYPES[request.serialize], why.code, why.ext, why.remark))

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
        check_wait(self._config, self._intake, wait)
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

    # --- serving

    def _attempt(self, wait: PopWait, *, may_hold: bool) -> bool:
        """Answer if there is something; else hold, or say that there is nothing. True when it needs no more care."""
        try:
            got = self.choosing.gather(wait)
            if wait.asks_only:
                return self._tell(wait, got, may_hold=may_hold)
            if got.disk is not None:
                return self._from_disk(wait, got.disk)
            if got.count or got.parts:
                self._take(wait, got)
            if got.count:
                return True
            if got.more and may_hold:
                self.waking.run_soon(wait.pair)
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

    def _tell(self, wait: PopWait, got: Gathered, *, may_hold: bool) -> bool:
        if not got.count and got.disk is None:
            return self._nothing(wait, may_hold=may_hold)
        self.waits.release(wait)
        wait.reply.send(self._answers.something(wait))
        return True

    def _nothing(self, wait: PopWait, *, may_hold: bool) -> bool:
        if wait.active:
            return False  # it is held and stays held
        if may_hold and trio.current_time() < wait.deadline:
            if getattr(wait.reply, "closed", False):
                return True
            if self.waits.add(wait):
                self._counters.pops_held += 1
                self.waking.watch(wait)
                return False
            self._respond(wait, ResponseCode.POLLING_FULL, "too many pops are held: try again in a second")
            return True
        self._respond(wait, ResponseCode.POLLING_TIMEOUT, "NO_MESSAGE_IN_QUEUE")
        return True

    def _take(self, wait: PopWait, got: Gathered) -> None:
        """Log what is taken; the answer, if it has messages, leaves when that is committed. Raises as the intake."""
        now = self._intake.log_time()
        until = now + wait.invisible_ms
        ops: list[Op] = [self._op(wait, part, now, until) for part in got.parts]
        answer = None
        if got.count:
            frame = self._answers.found(wait, [part for part in got.parts if part.offsets], got.rest, now)
            answer = Answer(wait.reply, wait.opaque, TYPES[wait.serialize], ok_frame=frame)
        self._intake.put_ops(ops, answer=answer)
        for part in got.parts:
            self.choosing.taken(wait, part)
            if part.offsets:
                self._revive.took(until, part.gid, part.key, -1 if wait.ordered else now, part.offsets)
        if got.count:
            self.waits.release(wait)
            self._counters.pop_messages += got.count
            if got.rest and wait.pair in self.waits:
                self.waking.run_soon(wait.pair)

    def _op(self, wait: PopWait, part: Part, now: int, until: int) -> Op:
        tid, queue = tid_of(part.key), queue_of(part.key)
        if wait.ordered:
            return OrderTake(part.gid, tid, queue, part.next, now, until, wait.attempt, part.offsets)
        return PopTake(part.gid, tid, queue, part.next, now, until, part.offsets)

    def _from_disk(self, wait: PopWait, part: Part) -> bool:
        """Read one queue in the disk lane, then take from it. Nobody else takes from it meanwhile."""
        place = (part.gid, part.key)
        self.waits.release(wait)

        async def work() -> None:
            try:
                wanted = wanted_of(wait, part)
                found = await self._store.get_from_disk(
                    part.key, part.start, wait.count, self._config.cold_bytes, wanted.codes, wanted.test
                )
            except (OSError, StoreError) as error:
                self.choosing.reading.discard(place)
                self._respond(wait, ResponseCode.SYSTEM_ERROR, f"the message cannot be read: {error}")
                return
            self.choosing.reading.discard(place)
            self._found_on_disk(wait, part, found)
            self.waking.run_soon(wait.pair)

        if not self._disk.offer(work, 0):
            self._respond(wait, ResponseCode.SYSTEM_BUSY, "[OVERLOAD]too many reads from disk: try again in a second")
            return True
        self.choosing.reading.add(place)
        return True

    def _found_on_disk(self, wait: PopWait, part: Part, found: Found) -> None:
        try:
            fresh = self.choosing.part(wait, part.flag, part.gid, part.key)
            if fresh is not None and fresh.start == part.start and found.next_offset > part.start:
                self.choosing.fill(fresh, found)
                rest = self._store.queues.next_offset(part.key) - fresh.next
                got = Gathered([fresh], max(0, rest), None)
                if got.count or self.choosing.worth_logging(wait, fresh):
                    self._take(wait, got)
                if got.count:
                    return
        except (Refused, NotLeader, Busy):
            pass  # the next attempt says why
        self._attempt(wait, may_hold=True)

    def _respond(self, wait: PopWait, code: int, remark: str, ext: Mapping[str, str] | None = None) -> None:
        """An answer without messages."""
        self.waits.release(wait)
        wait.reply.send(self._answers.empty(wait, code, remark, ext))

    def role_changed(self, event: RoleEvent) -> None:
        """Nobody is held by a replica that does not lead: the client asks again and finds the leader."""
        if self._intake.admitting:
            return
        self.choosing.forget()
        for wait in self.waits.take_all():
            self._respond(wait, ResponseCode.POLLING_TIMEOUT, "the leader changed", leader_ext(event.leader))
