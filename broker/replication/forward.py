"""Requests that only the leader can serve, arriving elsewhere: forwarded once, or parked while nobody leads.

The client's own frame travels untouched over the peer link, beside it who sent it; the answer comes back as a frame
with the client's opaque and goes to the client's connection as it is. Requests of one connection keep their order: all
parked ones leave before anything newer, and a link is a queue.

    [REQUESTS, [[id, size, client address, address the client used], ...]]   body: the frames (id 0: no answer)
    [RESPONSES, [[id, size], ...]]                                           body: the frames

What arrives between two turns of the flushing task goes as one peer frame.

- A forwarded request is never forwarded again.
- No leader known (or its link is down, or this replica leads but its view is not complete yet): parked up to
  `PARK_S`, within byte limits; then LOST. This is what keeps an election invisible to clients.
- This replica was removed from its group: LOST at once, with the successor as a hint.
- A link that breaks after a request was handed to it makes the outcome UNKNOWN, never "not stored".
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from broker.replication.base import LeaderHint, Outcome, Replies, ReplyTo, Verdict
from raft.frames import CodecError
from raft.signals import Signal

__all__ = ["ForwardHost", "Forwarder", "Refusal"]

log = logging.getLogger(__name__)

REQUESTS = 1
RESPONSES = 2

PARK_S = 1.5
PARKED_PER_CONNECTION_MAX_BYTES = 8 << 20
PARKED_MAX_BYTES = 64 << 20
IN_FLIGHT_MAX_BYTES = 16 << 20
ANSWER_S = 15.0
"""A forwarded request without an answer for so long is of unknown fate (the leader settles its own within 3 s)."""
PIECE_MAX_BYTES = 1 << 20
"""Forwarded frames that go into one peer frame, unless one alone is larger."""

Refusal = Callable[[bytes, ReplyTo, Outcome], "bytes | None"]
"""Makes the answer to a frame that surely was not (LOST) or perhaps was (UNKNOWN) stored; None: say nothing."""


class ForwardHost(Protocol):
    """What the forwarder asks of its group."""

    @property
    def admitting(self) -> bool:
        """This replica leads and takes requests."""
        ...

    @property
    def leads(self) -> bool:
        """This replica leads, its view perhaps not complete yet."""
        ...

    @property
    def leader(self) -> LeaderHint: ...

    @property
    def gone(self) -> bool:
        """This replica was removed from its group: no leader will speak to it, waiting is no use."""
        ...

    def reachable(self, node_id: str) -> bool:
        """Is there a working link to the member?"""
        ...

    def send_app(self, node_id: str, fields: Sequence[Any], body: Sequence[bytes | memoryview]) -> bool:
        """Queue a frame on the link; False when there is none or it is full."""
        ...


@dataclass(slots=True, eq=False)
class _Parked:
    frame: bytes
    reply: ReplyTo
    oneway: bool
    deadline: float
    forwarded: bool
    """It came over a peer link: it is served here or refused, never sent on."""


@dataclass(slots=True, eq=False)
class _Sent:
    frame: bytes
    reply: ReplyTo
    node_id: str
    deadline: float


class _ForwardReply:
    """The way back for one request that another replica forwarded."""

    __slots__ = ("_epoch", "_forwarder", "_node_id", "_request", "local", "peer")

    def __init__(self, forwarder: Forwarder, node_id: str, epoch: int, request: int, peer: str, local: str) -> None:
        self.peer = peer
        self.local = local
        self._forwarder = forwarder
        self._node_id = node_id
        self._epoch = epoch
        self._request = request

    def send(self, frame: bytes) -> None:
        if self._request:
            self._forwarder._respond(self._node_id, self._epoch, self._request, frame)


class _Nobody:
    """Where answers to this replica's own requests would go."""

    peer = "0.0.0.0:0"
    local = "0.0.0.0:0"

    def send(self, frame: bytes) -> None:
        """Nobody waits for it."""


_NOBODY = _Nobody()


class _Outbox:
    """What is to be sent to one node with the next flush."""

    __slots__ = ("requests", "responses")

    def __init__(self) -> None:
        self.requests: deque[tuple[int, _Parked]] = deque()
        self.responses: deque[tuple[int, bytes]] = deque()


class Forwarder:
    """One per group replica. `run` flushes; the group calls `tick`, `link_changed`, `leader_changed`, `on_frame`."""

    def __init__(self, host: ForwardHost) -> None:
        self.serve: Callable[[ReplyTo, Sequence[bytes]], None] = _nobody_serves
        """Serves frames here: forwarded by others, or parked until this replica led. Set by the broker."""
        self.refusal: Refusal = _say_nothing
        """Set by the broker."""
        self.channels: dict[int, Callable[[str, Sequence[Any], memoryview], None]] = {}
        """Frame kinds of others on the same channel: who gets (member, fields, body). They may raise CodecError."""
        self.parked_bytes = 0
        self.in_flight_bytes = 0
        self._host = host
        self._parked: deque[_Parked] = deque()
        self._parked_by: dict[ReplyTo, int] = {}
        self._sent: dict[int, _Sent] = {}
        self._next_id = 1
        self._epochs: dict[str, int] = {}
        self._outboxes: dict[str, _Outbox] = {}
        self._wake = Signal()

    # requests of our own clients

    def submit(self, frame: bytes, reply: ReplyTo, *, oneway: bool = False) -> bool:
        """Take a leader-only request (the whole frame). False: too much is under way, answer SYSTEM_BUSY.

        The answer, whatever it is, goes to `reply`, and none for a oneway request.
        """
        return self._take(_Parked(frame, reply, oneway, trio.current_time() + PARK_S, False))

    def tell(self, frame: bytes) -> None:
        """Send the leader a oneway request of this replica's own, like one of a client."""
        self.submit(frame, _NOBODY, oneway=True)

    def closed(self, reply: ReplyTo) -> None:
        """The client's connection ended: forget what it has parked. What was forwarded is not called back."""
        if reply in self._parked_by:
            kept = [request for request in self._parked if request.reply is not reply]
            self.parked_bytes -= self._parked_by.pop(reply)
            self._parked = deque(kept)

    def _take(self, request: _Parked) -> bool:
        if not self._parked:
            node_id = self._target(request)
            if node_id is not None:
                return self._hand_over(request, node_id)
        if self._host.gone:
            self._refuse(request.frame, request.reply, request.oneway, Verdict.LOST)
            return True
        size = len(request.frame)
        mine = self._parked_by.get(request.reply, 0)
        if mine + size > PARKED_PER_CONNECTION_MAX_BYTES or self.parked_bytes + size > PARKED_MAX_BYTES:
            return False
        self._parked.append(request)
        self._parked_by[request.reply] = mine + size
        self.parked_bytes += size
        return True

    def _target(self, request: _Parked) -> str | None:
        """Where the request can go now: a node id, "" for here, None for nowhere yet."""
        host = self._host
        if host.admitting:
            return ""
        leader = host.leader.leader_id
        if request.forwarded or host.leads or host.gone or not leader or not host.reachable(leader):
            return None
        return leader

    def _hand_over(self, request: _Parked, node_id: str) -> bool:
        if not node_id:
            self.serve(request.reply, (request.frame,))
            return True
        size = len(request.frame)
        if self.in_flight_bytes + size > IN_FLIGHT_MAX_BYTES:
            return False
        number = 0
        if not request.oneway:
            number = self._next_id
            self._next_id += 1
            deadline = trio.current_time() + ANSWER_S
            self._sent[number] = _Sent(request.frame, request.reply, node_id, deadline)
            self.in_flight_bytes += size
        self._outbox(node_id).requests.append((number, request))
        self._wake.set()
        return True

    def leader_changed(self) -> None:
        """A leader became known, reachable, or this replica admits now: let the parked requests go, in order."""
        parked = self._parked
        while parked:
            request = parked[0]
            if (request.forwarded and not self._host.leads) or self._host.gone:
                self._unpark()
                self._refuse(request.frame, request.reply, request.oneway, Verdict.LOST)
                continue
            node_id = self._target(request)
            if node_id is None or (node_id and self.in_flight_bytes + len(request.frame) > IN_FLIGHT_MAX_BYTES):
                return
            self._unpark()
            self._hand_over(request, node_id)

    def _unpark(self) -> None:
        request = self._parked.popleft()
        size = len(request.frame)
        self.parked_bytes -= size
        left = self._parked_by[request.reply] - size
        if left:
            self._parked_by[request.reply] = left
        else:
            del self._parked_by[request.reply]

    def tick(self, now: float) -> None:
        """Refuse what was parked too long, give up on answers that do not come."""
        while self._parked and self._parked[0].deadline <= now:
            request = self._parked[0]
            self._unpark()
            self._refuse(request.frame, request.reply, request.oneway, Verdict.LOST)
        replies = Replies()
        while self._sent:
            number, sent = next(iter(self._sent.items()))
            if sent.deadline > now:
                break
            self._give_up(number, replies)
        replies.flush()

    def link_changed(self, node_id: str, *, up: bool) -> None:
        """The link to a member came up (parked requests may go) or broke (what it carried is of unknown fate)."""
        self._epochs[node_id] = self._epochs.get(node_id, 0) + 1
        if up:
            self.leader_changed()
            return
        outbox = self._outboxes.pop(node_id, None)
        unsent = outbox.requests if outbox is not None else deque()
        replies = Replies()
        again = []
        for number, request in unsent:  # never handed to the link: these may still go elsewhere
            if number:
                self._forget(number)
            again.append(request)
        for number in [number for number, sent in self._sent.items() if sent.node_id == node_id]:
            self._give_up(number, replies)
        replies.flush()
        for request in reversed(again):
            self._parked.appendleft(request)
            self._parked_by[request.reply] = self._parked_by.get(request.reply, 0) + len(request.frame)
            self.parked_bytes += len(request.frame)

    def stop(self) -> None:
        """The group is over: answer everybody."""
        while self._parked:
            request = self._parked[0]
            self._unpark()
            self._refuse(request.frame, request.reply, request.oneway, Verdict.LOST)
        replies = Replies()
        for number in list(self._sent):
            self._give_up(number, replies)
        replies.flush()

    def _forget(self, number: int) -> _Sent | None:
        sent = self._sent.pop(number, None)
        if sent is not None:
            self.in_flight_bytes -= len(sent.frame)
        return sent

    def _give_up(self, number: int, replies: Replies) -> None:
        sent = self._forget(number)
        if sent is not None:
            answer = self.refusal(sent.frame, sent.reply, Outcome(Verdict.UNKNOWN, self._hint))
            if answer is not None:
                replies.add(sent.reply, answer)

    def _refuse(self, frame: bytes, reply: ReplyTo, oneway: bool, verdict: Verdict) -> None:
        if not oneway:
            answer = self.refusal(frame, reply, Outcome(verdict, self._hint))
            if answer is not None:
                reply.send(answer)

    @property
    def _hint(self) -> LeaderHint:
        return self._host.leader

    # the peer link

    async def run(self) -> None:
        """Send what has gathered, once per wake-up, until cancelled."""
        while True:
            await self._wake.wait()
            self.flush()

    def flush(self) -> None:
        """Hand everything that has gathered to the links."""
        for node_id in sorted(self._outboxes):
            outbox = self._outboxes[node_id]
            while outbox.requests:
                self._flush_requests(node_id, outbox.requests)
            while outbox.responses:
                self._flush_responses(node_id, outbox.responses)

    def reachable(self, node_id: str) -> bool:
        """Is there a working link to the member?"""
        return self._host.reachable(node_id)

    def send(self, node_id: str, fields: Sequence[Any], body: Sequence[bytes] = ()) -> bool:
        """Send a frame of one of `channels` to a member; False when there is no link or it is full."""
        return self._host.send_app(node_id, fields, body)

    def _flush_requests(self, node_id: str, queue: deque[tuple[int, _Parked]]) -> None:
        heads: list[list[Any]] = []
        body: list[bytes] = []
        size = 0
        while queue and (not body or size + len(queue[0][1].frame) <= PIECE_MAX_BYTES):
            number, request = queue.popleft()
            heads.append([number, len(request.frame), request.reply.peer, request.reply.local])
            body.append(request.frame)
            size += len(request.frame)
        if not self._host.send_app(node_id, [REQUESTS, heads], body):
            replies = Replies()
            for head in heads:
                self._give_up(head[0], replies)
            replies.flush()

    def _flush_responses(self, node_id: str, queue: deque[tuple[int, bytes]]) -> None:
        heads: list[list[int]] = []
        body: list[bytes] = []
        size = 0
        while queue and (not body or size + len(queue[0][1]) <= PIECE_MAX_BYTES):
            number, frame = queue.popleft()
            heads.append([number, len(frame)])
            body.append(frame)
            size += len(frame)
        self._host.send_app(node_id, [RESPONSES, heads], body)

    def _outbox(self, node_id: str) -> _Outbox:
        outbox = self._outboxes.get(node_id)
        if outbox is None:
            outbox = self._outboxes[node_id] = _Outbox()
        return outbox

    def _respond(self, node_id: str, epoch: int, number: int, frame: bytes) -> None:
        if self._epochs.get(node_id, 0) == epoch:  # else its numbers belong to another life of the link
            self._outbox(node_id).responses.append((number, frame))
            self._wake.set()

    def on_frame(self, node_id: str, fields: Sequence[Any], body: memoryview) -> None:
        """A frame of the application channel from a member. Raises CodecError."""
        other = self.channels.get(fields[0]) if fields and type(fields[0]) is int else None
        if other is not None:
            other(node_id, fields, body)
            return
        if len(fields) != 2 or not isinstance(fields[1], list):
            raise CodecError("a forwarding frame is malformed")
        kind, heads = fields
        if kind == REQUESTS:
            self._on_requests(node_id, _cut(heads, body, 4))
        elif kind == RESPONSES:
            self._on_responses(node_id, _cut(heads, body, 2))
        else:
            raise CodecError(f"forwarding frame {kind!r:.20} is unknown")

    def _on_requests(self, node_id: str, requests: list[tuple[list[Any], bytes]]) -> None:
        epoch = self._epochs.get(node_id, 0)
        deadline = trio.current_time() + PARK_S
        for head, frame in requests:
            number, _size, peer, local = head
            if not isinstance(peer, str) or not isinstance(local, str):
                raise CodecError("a forwarded request lacks its client's address")
            reply = _ForwardReply(self, node_id, epoch, number, peer, local)
            request = _Parked(frame, reply, number == 0, deadline, True)
            if not (self._host.admitting or self._host.leads) or not self._take(request):
                self._refuse(frame, reply, request.oneway, Verdict.LOST)

    def _on_responses(self, node_id: str, responses: list[tuple[list[Any], bytes]]) -> None:
        replies = Replies()
        for head, frame in responses:
            sent = self._sent.get(head[0])
            if sent is not None and sent.node_id == node_id:
                self._forget(head[0])
                replies.add(sent.reply, frame)
        replies.flush()
        if self._parked:
            self.leader_changed()


def _cut(heads: list[Any], body: memoryview, length: int) -> list[tuple[list[Any], bytes]]:
    """Cut a body into the frames that the heads announce. Raises CodecError."""
    cut: list[tuple[list[Any], bytes]] = []
    at = 0
    for head in heads:
        if not isinstance(head, list) or len(head) != length:
            raise CodecError("a forwarding frame's head is malformed")
        number, size = head[0], head[1]
        if type(number) is not int or type(size) is not int or number < 0 or size < 4 or at + size > len(body):
            raise CodecError("a forwarding frame's head does not fit its body")
        cut.append((head, bytes(body[at : at + size])))
        at += size
    if at != len(body):
        raise CodecError("a forwarding frame's body is longer than its heads say")
    return cut


def _nobody_serves(reply: ReplyTo, frames: Sequence[bytes]) -> None:
    log.error("a forwarded request arrived before the broker was ready to serve it")


def _say_nothing(frame: bytes, reply: ReplyTo, outcome: Outcome) -> bytes | None:
    return None
