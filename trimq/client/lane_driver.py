"""Carries one lane: finds the group's leader, transmits what the lane hands out, judges the answers.

One task per producer and replica group, woken by new messages, by answers and by lost connections; between two wake-ups
nothing here runs. Transmitting and judging are synchronous (the answer's callback runs in the connection's reader), so
the cost per message is a share of one wake-up.

What an answer means stands in `_judge`. What is *not* an answer matters as much:
- the connection ends: everything in flight on it is doubtful; the lane begins again at another replica at once,
  which parks or passes the requests on until a leader is there;
- silence while requests are in flight: after `STALL_S` the name server is asked whether someone else leads by now (a
  frozen leader keeps its connections), after `SILENT_S` the connection counts as dead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio

from trimq.client.instance import ATTEMPT_S, HOPS_MAX, refusal
from trimq.client.lane import Lane, Request, Slot
from trimq.client.links import Link
from trimq.client.model import Queue, Receipt, SendStatus, from_ms
from trimq.client.outgoing import atomic_body, atomic_fields, batch_body, is_timed, send_fields
from trimq.client.timing import Backoff
from trimq.errors import BadRequest, Denied, Disconnected, NoRoute, SendUnknown, TrimqError
from trimq.remoting.client import Reply
from trimq.wire.body.atomic import decode_places
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command, encode

if TYPE_CHECKING:
    from trimq.client.instance import Instance

__all__ = ["LaneDriver"]

log = logging.getLogger(__name__)

STALL_S = 0.3
"""Silence with requests in flight: ask who leads. Shorter than an election, which takes about half a second."""

ASK_AGAIN_S = 0.1
"""Then again this often: every moment between the new leader's registration and our noticing is downtime."""

SILENT_S = 3.0
"""Silence after which a connection counts as dead; RocketMQ's send timeout."""

RECOVERY_S = 1.0
"""How often a group in trouble is looked at while nothing is bound to it."""

QUEUED_BYTES_MAX = 4 * 1024 * 1024
"""With so much unsent on the connection nothing more is encoded."""

ERROR_ATTEMPTS_MAX = 3
"""Transmissions after which a bare SYSTEM_ERROR is believed (Java's client tries three times, too)."""

_STORED = frozenset({0, 10, 11, 12})

_REFUSED_FOR_GOOD = frozenset(
    {
        ResponseCode.MESSAGE_ILLEGAL,
        ResponseCode.INVALID_PARAMETER,
        ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
        ResponseCode.REQUEST_CODE_NOT_SUPPORTED,
        ResponseCode.NO_PERMISSION,
        ResponseCode.TOPIC_NOT_EXIST,
    }
)
"""Nothing was stored, and nothing will be, whoever leads."""

_NOT_STORED = frozenset(
    {
        ResponseCode.NOT_STORED,
        ResponseCode.SERVICE_NOT_AVAILABLE,
        ResponseCode.SYSTEM_BUSY,
        ResponseCode.GO_AWAY,
        ResponseCode.OUT_OF_SEQUENCE,
        ResponseCode.FLOW_CONTROL,
    }
)
"""Surely not stored by this transmission; another one may go well."""


class LaneDriver:
    """See the module docstring. `run` is its task; everything else is synchronous."""

    def __init__(
        self,
        instance: Instance,
        group: str,
        *,
        producer_group: str,
        pid: str | None,
        batching: bool,
        moved_on: Callable[[Queue], None],
        rehome: Callable[[LaneDriver, list[Slot]], None],
    ) -> None:
        self.group = group
        self.lane = Lane(group, sequenced=pid is not None, batching=batching)
        self.healthy = True
        """False while the group cannot be reached or refuses: messages that may go elsewhere do."""
        self.last_error: TrimqError | None = None
        """Why it is not healthy; goes into the error of a message that ran out of time."""
        self._instance = instance
        self._view = instance.routes.group(group)
        self._producer_group = producer_group
        self._pid = pid
        self._moved_on = moved_on
        self._rehome = rehome
        self._link: Link | None = None
        self._wake = anyio.Event()
        self._backoff = Backoff(instance.rng)
        self._pause_until = 0.0
        self._avoid: set[str] = set()
        self._heard = 0.0
        self._ask_at = 0.0
        self._stalled = False
        self._one_by_one = True
        """What was transmitted last was a single message."""
        self._hops = 0
        self.transmitted = 0
        """Requests sent, repetitions included."""
        self._switch = False
        """Someone else leads by now, and this link only passes our requests on: change over once nothing is in
        flight."""

    def poke(self) -> None:
        """A message was put in.

        Where messages come one by one it goes out at once. Where the last ones came together, the next ones will, too:
        then the task sends them, after all who were woken by the same answers had their turn.
        """
        if self._one_by_one and self._link is not None and not self.lane.busy and not self._pause_until:
            self._transmit()
        else:
            self._wake.set()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def look_at(self, now: float) -> None:
        """Called every 50 ms: notices silence, so that no lane needs a timer."""
        if self._link is None or self.lane.idle:
            return
        if not self.lane.in_flight:
            self._wake.set()
        elif now - self._heard >= STALL_S and now >= self._ask_at:
            self._ask_at = now + ASK_AGAIN_S
            self._stalled = True
            self._wake.set()

    # The task

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self._stalled:
                self._stalled = False
                await self._doubt()
            elif self.lane.idle:
                await self._rest()
            elif self._pause_until:
                await anyio.sleep(max(0.0, self._pause_until - anyio.current_time()))
                self._pause_until = 0.0
            elif self._link is None:
                await self._connect()
            else:
                await anyio.lowlevel.checkpoint()  # whoever was woken by the same answers puts his next message first
                self._transmit()
                await self._sleep(None)

    async def _rest(self) -> None:
        """Nothing to send. A group in trouble is looked at now and then, or nothing would ever go there again."""
        if self.healthy:
            await self._sleep(None)
            return
        await self._sleep(RECOVERY_S)
        if self.lane.idle and self._link is None:
            await self._connect()
        if self.lane.idle and self._link is not None:
            self.healthy = True

    async def _sleep(self, seconds: float | None) -> None:
        """Wait to be woken, at most `seconds`."""
        if seconds is None:
            await self._wake.wait()
        else:
            with anyio.move_on_after(seconds):
                await self._wake.wait()
        self._wake = anyio.Event()

    async def _doubt(self) -> None:
        """The link is silent: leave it when it has been for too long, or when somebody else leads by now."""
        link = self._link
        if link is None or not self.lane.in_flight:
            return
        silent = anyio.current_time() - self._heard
        if silent >= SILENT_S:
            self._abandon(f"{link.addr} has not answered for {silent:.1f} s")
            return
        with anyio.move_on_after(ATTEMPT_S):
            await self._instance.routes.find_leader(self.group)
        if self._link is link and self._view.leader not in (link.addr, None, *self._avoid):
            self._abandon(f"{link.addr} is silent, and {self._view.leader} leads by now")

    async def _connect(self) -> None:
        """Find a replica that may take our requests. Leaves no link when there is none yet: then `run` comes back."""
        targets = [addr for addr in self._instance.targets(self.group) if addr not in self._avoid]
        if not targets or self._hops >= HOPS_MAX:
            self._hops = 0
            self._avoid.clear()
            await anyio.sleep(self._backoff.next_s())
            with anyio.move_on_after(ATTEMPT_S):
                await self._instance.routes.find_leader(self.group)
            if not targets:
                return
            targets = self._instance.targets(self.group)
            if not targets:
                return
        addr = targets[0]
        self._hops += 1
        try:
            with anyio.fail_after(ATTEMPT_S):
                link = await self._instance.links.get(addr)
        except (Disconnected, TimeoutError) as error:
            self._avoid.add(addr)
            reason = error if isinstance(error, Disconnected) else Disconnected(f"{addr} does not answer")
            self._in_trouble(reason)
            return
        if not self.lane.unsettled:
            self.lane.sequenced = self._pid is not None and link.ours
        self._link = link
        self._heard = anyio.current_time()

    # Transmitting

    def _transmit(self) -> None:
        link = self._link
        if link is None:
            return
        channel = link.channel
        lane = self.lane
        if channel.closed:
            self._lost(link, channel.close_reason)
            return
        if not lane.in_flight:
            self._heard = anyio.current_time()
            if self._switch:
                self._switch = False
                self._link = None
                self._wake.set()
                return
        elif self._switch:
            return
        now_ms = self._instance.clock.wall_ms()
        before = lane.waiting
        while channel.queued < QUEUED_BYTES_MAX and (request := lane.next_request()) is not None:
            if not link.timers and is_timed(request.slots[0].message.message):
                self._refuse(link, request, _no_timers(link))
                continue
            if request.attempts == 1:
                self._moved_on(request.queue)
                for slot in request.slots:
                    remember_queue(slot)
            self.transmitted += 1
            opaque = channel.next_opaque()
            channel.submit(self._frame(request, opaque, now_ms), opaque, partial(self._on_reply, link, request))
        if before:
            self._one_by_one = before == 1

    def _frame(self, request: Request, opaque: int, now_ms: int) -> bytes:
        if request.atomic:
            ext = atomic_fields(request, self._producer_group, now_ms)
        else:
            ext = send_fields(request, self._producer_group, now_ms)
        if self.lane.sequenced and self._pid is not None:
            ext["pid"] = self._pid
            ext["pe"] = "0"
            ext["ps"] = str(request.first)
            ext["pf"] = str(self.lane.floor)
            if request.again:
                ext["again"] = "1"
        body = request.body
        if body is None:
            slots = request.slots
            if request.atomic:
                body = atomic_body(slots)
            else:
                body = slots[0].message.body if len(slots) == 1 else batch_body([slot.message for slot in slots])
            request.body = body
        code = RequestCode.SEND_MESSAGE_V2 if len(request.slots) == 1 else RequestCode.SEND_BATCH_MESSAGE
        if request.atomic:
            code = RequestCode.SEND_ATOMIC
        return encode(Command(code=code, opaque=opaque, ext=ext, body=body))

    # Answers

    def _on_reply(self, link: Link, request: Request, reply: Reply) -> None:
        if isinstance(reply, Command):
            self._heard = anyio.current_time()
            self._judge(link, request, reply)
        else:
            self._lost(link, reply.message)
        if self.lane.due or self._link is None or self._switch:
            self._wake.set()

    def _judge(self, link: Link, request: Request, answer: Command) -> None:
        news = self._instance.note_leader(self._view, answer)
        if news and self._view.leader is not None:
            self._avoid.discard(self._view.leader)
        code = answer.code
        if code in _STORED:
            self._stored(link, request, answer)
        elif code in _NOT_STORED:
            self._again(link, request, answer, certain=True, at_once=news or code == ResponseCode.OUT_OF_SEQUENCE)
        elif code == ResponseCode.OUTCOME_UNKNOWN:
            self._again(link, request, answer, certain=False, at_once=news)
        elif code in _REFUSED_FOR_GOOD:
            self._refused_for_good(link, request, answer)
        elif code == ResponseCode.STALE_SEQUENCE:
            self._fail(
                request, lambda slot: self._unknown(slot, "an earlier attempt was given up and may have been stored")
            )
        elif request.attempts < ERROR_ATTEMPTS_MAX:
            self._again(link, request, answer, certain=False, at_once=False)
        else:
            reason = str(refusal(answer, link.addr))
            self._fail(request, lambda slot: self._unknown(slot, reason))

    def _stored(self, link: Link, request: Request, answer: Command) -> None:
        if not self.lane.answered(request, stored=True):
            return
        self._well()
        if request.atomic:
            self._stored_together(link, request, answer)
            return
        ext = answer.ext
        first = int(ext.get("queueOffset", -1))
        queue = request.queue
        number = int(ext.get("queueId", queue.id))
        if number != queue.id:
            queue = Queue(queue.topic, queue.group, number)
        duplicate = ext.get("dup") in ("1", "true")
        ids = ext.get("msgId", "").split(",")
        at = from_ms(self._instance.clock.wall_ms())
        status = SendStatus(answer.code)
        slots = request.slots
        if len(ids) != len(slots):
            ids = ids[:1] * len(slots)
        step = 0 if first < 0 else 1
        leader = ext.get("leaderAddr")
        if leader is not None and leader != link.addr and leader == self._view.leader and self._link is link:
            self._switch = True
        for index, slot in enumerate(slots):
            message = slot.message.message
            slot.settle(
                Receipt(
                    message.id,
                    queue,
                    first + index * step,
                    status,
                    duplicate,
                    at,
                    ids[index],
                    link.addr,
                    ext.get("recallHandle", ""),
                )
            )

    def _stored_together(self, link: Link, request: Request, answer: Command) -> None:
        duplicate = answer.ext.get("dup") in ("1", "true")
        at = from_ms(self._instance.clock.wall_ms())
        places = decode_places(answer.body)
        for slot, (number, offset, offset_id) in zip(request.slots, places, strict=True):
            assert slot.target is not None
            queue = Queue(slot.target.topic, slot.target.group, number)
            status = SendStatus(answer.code)
            slot.settle(Receipt(slot.message.message.id, queue, offset, status, duplicate, at, offset_id, link.addr))

    def _again(self, link: Link, request: Request, answer: Command, *, certain: bool, at_once: bool) -> None:
        """This transmission did not succeed: begin again, from the oldest unsettled request."""
        if not self.lane.refused(request, certain=certain) or self._link is not link:
            return
        error = refusal(answer, link.addr)
        if self.lane.sequenced:
            self._restart()
        else:
            self._put_back(self.lane.repeat(request))
        if answer.code == ResponseCode.OUT_OF_SEQUENCE and request.attempts < ERROR_ATTEMPTS_MAX:
            return  # the order was broken by an earlier loss, which going back has mended
        leader = self._view.leader
        if answer.code == ResponseCode.OUTCOME_UNKNOWN and not at_once and leader not in (None, link.addr):
            self._avoid.add(leader)  # this replica passed it on to a leader that died, and will know the next one first
        elif leader not in (None, link.addr) or not at_once:
            self._link = None
            if answer.code != ResponseCode.SYSTEM_BUSY and not at_once:
                self._avoid.add(link.addr)
        if not at_once:
            self._pause_until = anyio.current_time() + self._backoff.next_s()
            self._in_trouble(error)

    def _refused_for_good(self, link: Link, request: Request, answer: Command) -> None:
        error = refusal(answer, link.addr)
        if not isinstance(error, Denied | NoRoute):
            error = BadRequest(f"the broker refuses the message: {answer.remark or answer.code}")
        self._refuse(link, request, error)

    def _refuse(self, link: Link, request: Request, error: TrimqError) -> None:
        """This request will never be stored."""
        lane = self.lane
        slots = [slot for slot in request.slots if slot.outcome is None]
        awaited = lane.answered(request, stored=False)
        if awaited:
            if len(slots) > 1 and slots[0].bundle is None:
                # One of them is at fault; the others only shared its request.
                for slot in slots:
                    slot.request = None
                    slot.alone = True
                lane.put_first(slots)
            else:
                for slot in slots:
                    forget_queue(slot)
                    slot.settle(error)
        if lane.sequenced and self._link is link and lane.in_flight:
            # What followed it will be refused as out of sequence: its numbers are missing.
            self._restart()

    def _fail(self, request: Request, outcome: Callable[[Slot], TrimqError]) -> None:
        if self.lane.answered(request, stored=False):
            for slot in request.slots:
                slot.settle(outcome(slot))

    def _unknown(self, slot: Slot, reason: str) -> SendUnknown:
        message = slot.message.message
        return SendUnknown(f"message {message.id} to {slot.queue}: {reason}", id=message.id)

    # Trouble

    def _lost(self, link: Link, reason: str) -> None:
        """The connection is gone. Called once per request in flight; the first call does the work."""
        if self._link is not link:
            return
        self._avoid.add(link.addr)
        self._link = None
        self._switch = False
        self._restart()
        self._in_trouble(Disconnected(reason))

    def _abandon(self, reason: str) -> None:
        """Stop waiting for a silent connection. It stays open: a late answer still counts."""
        link = self._link
        if link is not None:
            self._lost(link, reason)

    def _restart(self) -> None:
        self._put_back(self.lane.restart())

    def _put_back(self, slots: list[Slot]) -> None:
        for slot in slots:
            if not slot.again:
                forget_queue(slot)
        self.lane.put_first(slots)
        self._wake.set()

    def _in_trouble(self, reason: TrimqError) -> None:
        self.last_error = reason
        if self.healthy:
            self.healthy = False
            log.info("replica group not reachable", extra={"group": self.group, "reason": reason.message})
        movable = self.lane.take_unpinned()
        if movable:
            self._rehome(self, movable)

    def _well(self) -> None:
        self._hops = 0
        if not self.healthy:
            self.healthy = True
            self._avoid.clear()
            self._backoff.reset()


def remember_queue(slot: Slot) -> None:
    """From its first transmission on a message belongs to this queue, until it is certain that it was not stored."""
    message = slot.message.message
    if message._sent_to is None:
        object.__setattr__(message, "_sent_to", slot.target or slot.queue)


def forget_queue(slot: Slot) -> None:
    """It is certain that the message was not stored: it may go anywhere."""
    object.__setattr__(slot.message.message, "_sent_to", None)


def _no_timers(link: Link) -> BadRequest:
    return BadRequest(
        f"the broker {link.addr} is older than RocketMQ 5 and would deliver the message at once",
        advice="use delay_level instead of delay and at",
    )
