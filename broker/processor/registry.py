"""Which processor serves which request code, where it runs and what the replica must be for it.

`Dispatcher` is the one way into the broker: the listener and the peer links hand it frames, all of one read pass at
once. It decodes, looks the code up, and then one of four things happens, without a task per request:

- a *hot* processor answers synchronously (or hands the request to the intake, which answers on commit);
- a request only the leader may serve goes on to the leader as the raw frame;
- anything else enters its lane;
- an unknown code is answered REQUEST_CODE_NOT_SUPPORTED, a refusal with its own code and remark.

A request that another replica forwarded to us is served by the same table but never forwarded again.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import trio

from broker.processor.admin.refusals import REFUSALS
from broker.processor.lane import Lane
from broker.processor.leaderless import Leaderless
from broker.processor.request import Refused, Request, Typed, leader_ext
from broker.replication.base import Busy, NotLeader, Outcome, Replicator, ReplyTo, Role, TooFewInSync, Verdict
from broker.replication.forward import Forwarder
from broker.replication.requests import OutcomeUnknown
from trimq.errors import ProtocolError
from trimq.wire.codes import ResponseCode
from trimq.wire.command import Command, decode, encode_response, response_to
from trimq.wire.headers.base import Header
from trimq.wire.requests import peek_code

__all__ = ["Dispatcher", "Needs", "Route", "hot", "slow"]

log = logging.getLogger(__name__)

LANE_S = 5.0
"""Longest stay of a slow request in its worker: past it the client has given up (3 s, queries 5 s)."""
READY_S = 1.5
"""How long a request waits for this replica to become a ready leader."""

H = TypeVar("H", bound=Header)
Slow = Callable[[Request], Awaitable[bytes | None]]


def _not_supported(code: int) -> str:
    # The words are RocketMQ's, which tools and their users know; the reason, where there is one, is ours.
    reason = REFUSALS.get(code)
    return f" request type {code} not supported" + (f": {reason}" if reason else "")


_BUSY = Refused(
    ResponseCode.SYSTEM_BUSY, "[OVERLOAD]system busy, start flow control for a while: try again a little later"
)


def _busy(error: Busy, command: Command) -> Refused:
    """Too few replicas in sync is RocketMQ's IN_SYNC_REPLICAS_NOT_ENOUGH: a bare SYSTEM_ERROR. Our producers, to which
    that means an unknown outcome, hear what they wait and try again for."""
    if not isinstance(error, TooFewInSync):
        return _BUSY
    ours = "pid" in command.ext
    return Refused(ResponseCode.SYSTEM_BUSY if ours else ResponseCode.SYSTEM_ERROR, str(error))


class Needs(enum.Enum):
    """What a replica must be to serve a request."""

    NOTHING = "nothing"
    """Any replica."""
    ADMITTING = "admitting"
    """A leader that takes writes, ready or not."""
    READY = "ready"
    """A ready leader."""


@dataclass(frozen=True, slots=True)
class Route:
    """How one request code is served: by a hot pair (decoder, handler), or by a handler in a lane."""

    needs: Needs
    decode: Callable[[bytes], Any] | None = None  # Any: each decoder has a header type of its own, see `hot`
    hot: Callable[[Any, ReplyTo], bytes | None] | None = None
    take: Callable[[ReplyTo, Sequence[bytes], int], int] | None = None
    """Serves as many of the frames from a number on as it can at once, and returns how many."""
    slow: Slow | None = None
    lane: Lane | None = None


def hot(
    decoder: Callable[[bytes], Typed[H]],
    handler: Callable[[Typed[H], ReplyTo], bytes | None],
    needs: Needs = Needs.NOTHING,
    take: Callable[[ReplyTo, Sequence[bytes], int], int] | None = None,
) -> Route:
    """A code that is answered in the pass that reads it; `take` serves what it can of many frames."""
    return Route(needs, decode=decoder, hot=handler, take=take)


def slow(handler: Slow, lane: Lane, needs: Needs = Needs.NOTHING) -> Route:
    """A code that may wait in a lane."""
    return Route(needs, slow=handler, lane=lane)


class Dispatcher:
    """Serves frames of one replica (a `remoting.Service` without its connection bookkeeping)."""

    def __init__(
        self,
        replicator: Replicator,
        forwarder: Forwarder | None,
        routes: Mapping[int, Route],
        leaderless: Leaderless,
        answered: Callable[[ReplyTo, Command], None],
    ) -> None:
        self._replicator = replicator
        self._forwarder = forwarder
        self._routes = routes
        self._leaderless = leaderless
        self._answered = answered
        self.requests = 0
        self.refused = 0
        self.busy = 0
        if forwarder is not None:
            forwarder.serve = self.serve_forwarded
            forwarder.refusal = self.refusal

    def serve(self, reply: ReplyTo, frames: Sequence[bytes]) -> None:
        """Handle all frames of one read pass of a client. `ProtocolError` when one of them is no request of ours."""
        self._serve(reply, frames, forwarded=False)

    def serve_forwarded(self, reply: ReplyTo, frames: Sequence[bytes]) -> None:
        """Handle what another replica forwarded, or what was parked here until this replica became the leader.

        These are whole frames, length word included.
        """
        self._serve(reply, [frame[4:] for frame in frames], forwarded=True)

    def _serve(self, reply: ReplyTo, frames: Sequence[bytes], *, forwarded: bool) -> None:
        self.requests += len(frames)
        routes = self._routes
        served = 0
        for number, frame in enumerate(frames):
            if number < served:
                continue
            route = routes.get(peek_code(frame))
            if route is None:
                self._unknown(frame, reply)
            elif route.needs is not Needs.NOTHING and not self._may_serve(route):
                self._elsewhere(frame, reply, forwarded=forwarded)
            elif route.take is not None and (taken := route.take(reply, frames, number)):
                served = number + taken
            elif route.hot is not None:
                self._serve_hot(route, frame, reply)
            else:
                self._enqueue(route, frame, reply)

    def _unknown(self, frame: bytes, reply: ReplyTo) -> None:
        command = decode(frame)
        if command.is_response:
            self._answered(reply, command)
            return
        route = self._routes.get(command.code)
        if route is not None:
            raise ProtocolError(f"request {command.code} has an unusual header")
        self.refused += 1
        self._send(
            Request(command, reply),
            response_to(
                command,
                ResponseCode.REQUEST_CODE_NOT_SUPPORTED,
                remark=_not_supported(command.code),
            ),
        )

    def _may_serve(self, route: Route) -> bool:
        if route.needs is Needs.ADMITTING:
            return self._replicator.admitting
        # A leader that is not ready yet will be in a moment: the lane's worker waits for that.
        return self._replicator.role.role is Role.LEADER

    def _serve_hot(self, route: Route, frame: bytes, reply: ReplyTo) -> None:
        assert route.decode is not None
        assert route.hot is not None
        try:
            typed = route.decode(frame)
        except ProtocolError as error:
            self._bad_header(frame, reply, error)
            return
        try:
            answer = route.hot(typed, reply)
        except ProtocolError as error:
            self._bad_header(frame, reply, error)
            return
        except Refused as refusal:
            answer = self._refused_frame(typed.opaque, typed.serialize, refusal)
        except NotLeader as error:
            answer = self._refused_frame(typed.opaque, typed.serialize, self.not_available(error))
        except Busy as error:
            answer = self._refused_frame(typed.opaque, typed.serialize, _busy(error, decode(frame)))
            self.busy += 1
        if answer is not None and not typed.is_oneway:
            reply.send(answer)

    def _bad_header(self, frame: bytes, reply: ReplyTo, error: ProtocolError) -> None:
        """Fields that do not fit the code get an answer; bytes that are no frame end the connection."""
        command = decode(frame)
        if command.is_response:
            self._answered(reply, command)
            return
        self.refused += 1
        self._send(Request(command, reply), response_to(command, ResponseCode.SYSTEM_ERROR, remark=str(error)))

    def _enqueue(self, route: Route, frame: bytes, reply: ReplyTo) -> None:
        assert route.lane is not None
        assert route.slow is not None
        command = decode(frame)
        if command.is_response:
            self._answered(reply, command)
            return
        request = Request(command, reply, len(frame))
        handler, ready = route.slow, route.needs is Needs.READY

        async def work() -> None:
            self._send(request, await self._answer_slow(handler, request, ready=ready))

        if not route.lane.offer(work, request.size):
            self.busy += 1
            self._send(request, self._refused(request, _BUSY))

    async def _answer_slow(self, handler: Slow, request: Request, *, ready: bool) -> bytes | None:
        try:
            with trio.fail_after(LANE_S):
                if ready:
                    await self._until_ready()
                return await handler(request)
        except Refused as refusal:
            return self._refused(request, refusal)
        except ProtocolError as error:
            return request.answer(ResponseCode.SYSTEM_ERROR, f"bad header or body: {error}")
        except NotLeader as error:
            return self._refused(request, self.not_available(error))
        except Busy as error:
            return self._refused(request, _busy(error, request.command))
        except OutcomeUnknown as error:
            return request.answer(
                ResponseCode.SYSTEM_ERROR, "the outcome is unknown: ask again", leader_ext(error.hint)
            )
        except trio.TooSlowError:
            return request.answer(
                ResponseCode.SYSTEM_ERROR, f"not finished within {LANE_S:g} s: the outcome is unknown, ask again"
            )
        except Exception as error:
            # The top of a task: one request must not end the others. What broke the group ends it elsewhere.
            log.exception("request failed", extra={"code": request.command.code, "peer": request.reply.peer})
            return request.answer(ResponseCode.SYSTEM_ERROR, f"{type(error).__name__}: {error}")

    async def _until_ready(self) -> None:
        replicator = self._replicator
        if replicator.is_ready:
            return
        with trio.move_on_after(READY_S):
            async for event in replicator.subscribe():
                if event.ready:
                    return
                if event.role is not Role.LEADER:
                    break
        if not replicator.is_ready:
            raise NotLeader(replicator.leader)

    def _elsewhere(self, frame: bytes, reply: ReplyTo, *, forwarded: bool) -> None:
        """The leader's business and we are not the leader: pass the raw frame on, once."""
        request = Request(decode(frame), reply, len(frame))
        if request.command.is_response:
            self._answered(reply, request.command)
            return
        self._leaderless.note(request.command)
        if forwarded or self._forwarder is None:
            self._send(request, self._refused(request, self.not_available(NotLeader(self._replicator.leader))))
            return
        whole = len(frame).to_bytes(4, "big") + frame
        if not self._forwarder.submit(whole, reply, oneway=request.oneway):
            self.busy += 1
            busy = "[REJECTREQUEST]system busy, too much waits for the leader of this group: try again later"
            self._send(request, request.answer(ResponseCode.SYSTEM_BUSY, busy, leader_ext(self._replicator.leader)))

    def not_available(self, error: NotLeader) -> Refused:
        hint = error.hint if error.hint.addr else self._replicator.leader
        where = f"its leader is {hint.addr}" if hint.addr else "it has no leader at the moment"
        return Refused(
            ResponseCode.SERVICE_NOT_AVAILABLE,
            f"this replica does not lead its group, {where}: refresh the route and try again",
            leader_ext(hint),
        )

    def refusal(self, frame: bytes, reply: ReplyTo, outcome: Outcome) -> bytes | None:
        """The answer to a frame that could not be passed on to the leader (None for a oneway request)."""
        command = decode(memoryview(frame)[4:])
        if command.is_oneway:
            return None
        provisional = self._leaderless.answer(command, outcome)
        if provisional is not None:
            return provisional
        return encode_response(command.opaque, command.serialize, *self._outcome(command, outcome))

    def _outcome(self, command: Command, outcome: Outcome) -> tuple[int, dict[str, str], str]:
        ext = leader_ext(outcome.leader)
        ours = "pid" in command.ext
        if outcome.verdict is Verdict.LOST:
            code = ResponseCode.NOT_STORED if ours else ResponseCode.SERVICE_NOT_AVAILABLE
            return code, ext, "this group has no leader at the moment, nothing was stored: try again"
        code = ResponseCode.OUTCOME_UNKNOWN if ours else ResponseCode.SYSTEM_ERROR
        return code, ext, "the leader was lost before it answered, the outcome is unknown: send the same message again"

    def _refused(self, request: Request, refusal: Refused) -> bytes:
        return self._refused_frame(request.command.opaque, request.serialize, refusal)

    def _refused_frame(self, opaque: int, serialize: int, refusal: Refused) -> bytes:
        self.refused += 1
        return encode_response(opaque, serialize, refusal.code, refusal.ext, refusal.remark)

    @staticmethod
    def _send(request: Request, frame: bytes | None) -> None:
        if frame is not None and not request.oneway:
            request.reply.send(frame)
