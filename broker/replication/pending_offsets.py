"""Consumer offsets that other members were told while nobody led: a new leader asks for them before it answers.

Replicas that knew no leader kept offset updates as provisional (`broker.processor.leaderless`) and told them to whoever
asked, marked so. They travel to the next leader as soon as they know one; but that may be a moment after it answered
its first query (code 14) from applied state alone, and a consumer that starts in that moment gets messages again which
another one has finished. So a new ready leader asks every member that it can reach for what it keeps, enters that like
any other update, and answers 14 only when all of it is applied. After 500 ms it answers anyway: a member that is silent
for so long may cost a redelivery, never more.

Peer frames (application channel): `[3, term]` asks, `[4, term, last?]` answers with a CBOR array of
`[consumer group, topic, queue, offset]`. The member keeps its rows and hands them over itself as well: an update that
comes twice changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import cbor2
import trio

from broker.replication.base import Busy, NotLeader, Replicator
from broker.replication.requests import Answer, Refused
from raft.frames import CodecError

if TYPE_CHECKING:
    from broker.replication.forward import Forwarder
    from broker.replication.intake import Intake

__all__ = ["ASK", "COLLECT_S", "ROWS", "PendingCollector"]

log = logging.getLogger(__name__)

ASK: Final = 3
ROWS: Final = 4
COLLECT_S: Final = 0.5
"""How long a new leader waits for members that do not answer."""
PIECE_ROWS: Final = 16_384
"""Rows in one frame: a megabyte or two."""

Row = tuple[str, str, int, int]


class PendingCollector:
    """Both sides: answers a leader that asks, and asks when this replica is the new ready leader."""

    def __init__(self, intake: Intake, replicator: Replicator, forwarder: Forwarder | None) -> None:
        self._intake = intake
        self._replicator = replicator
        self._forwarder = forwarder
        self._complete = -1
        """The term whose collection is over."""
        self._missing: set[str] = set()
        self._moved = trio.Event()
        self._entering = _Entering()
        if forwarder is not None:
            forwarder.channels[ASK] = self._asked
            forwarder.channels[ROWS] = self._told

    async def complete(self) -> None:
        """Return when what the members kept is applied here. Raises NotLeader."""
        while True:
            event = self._replicator.role
            if not event.ready:
                raise NotLeader(event.leader)
            if self._complete == event.term:
                return
            await self._moved.wait()

    # --- the new leader

    async def run_term(self) -> None:
        """Collect, once per term. A service of the ready leader: cancelled when it is deposed."""
        began, term = trio.current_time(), self._replicator.role.term
        self._entering = entering = _Entering()
        others = self._others()
        self._missing = set(others)
        for node in others:
            if not self._ask(node, term):
                self._missing.discard(node)
        self._enter(self._intake.provisional.take())
        with trio.move_on_after(COLLECT_S):
            while self._missing:
                await self._moved.wait()
        if entering.count:
            self._intake.flush_offsets()
            await entering.wait()
        silent, self._missing = sorted(self._missing), set()
        self._complete = term
        self._note()
        if entering.count or silent:
            facts = {"term": term, "asked": len(others), "silent": silent, "rows": entering.count}
            log.info("pending consumer offsets collected", extra={**facts, "took_s": trio.current_time() - began})

    def end_term(self) -> None:
        """Whoever waits in `complete` looks again."""
        self._missing = set()
        self._note()

    def _others(self) -> list[str]:
        replicas, forwarder = self._replicator.replicas, self._forwarder
        if forwarder is None:
            return []
        ids = [node for node, _addr in (*replicas.voters, *replicas.learners)]
        return [node for node in ids if node != self._replicator.node_id and forwarder.reachable(node)]

    def _ask(self, node: str, term: int) -> bool:
        assert self._forwarder is not None, "there are others"
        return self._forwarder.send(node, [ASK, term])

    def _enter(self, rows: Iterable[Row]) -> None:
        for group, topic, queue, offset in rows:
            try:
                self._intake.commit_offset(group, topic, queue, offset, answer=self._entering.one())
            except (Refused, NotLeader, Busy):
                # Unknown topic, or beyond an end that was never committed: nobody was told that it counts.
                self._entering.send(b"")

    def _note(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    def _told(self, node: str, fields: Sequence[Any], body: memoryview) -> None:
        """Rows of a member. Late ones count as well, as long as this replica leads."""
        if len(fields) != 3 or type(fields[1]) is not int or type(fields[2]) is not bool:
            raise CodecError("an answer with pending offsets is malformed")
        rows = _rows(body)
        if not self._intake.admitting:
            return
        self._enter(rows)
        if fields[2] and fields[1] == self._replicator.role.term and node in self._missing:
            self._missing.discard(node)
            self._note()

    # --- the member that is asked

    def _asked(self, node: str, fields: Sequence[Any], body: memoryview) -> None:
        if len(fields) != 2 or type(fields[1]) is not int or len(body):
            raise CodecError("a question for pending offsets is malformed")
        assert self._forwarder is not None, "asked over its link"
        # Updates that are parked here go first: what was told before the question must not arrive behind the answer.
        self._forwarder.leader_changed()
        self._forwarder.flush()
        rows = self._intake.provisional.rows()
        pieces = [rows[at : at + PIECE_ROWS] for at in range(0, len(rows), PIECE_ROWS)] or [[]]
        for number, piece in enumerate(pieces, 1):
            self._forwarder.send(node, [ROWS, fields[1], number == len(pieces)], [cbor2.dumps(piece)])


class _Entering:
    """Counts the rows that are entered and not applied yet. It is where their answers go."""

    peer = "0.0.0.0:0"
    local = "0.0.0.0:0"

    def __init__(self) -> None:
        self.count = 0
        self._open = 0
        self._done = trio.Event()

    def one(self) -> Answer:
        self.count += 1
        self._open += 1
        return Answer(self, 0, 0)

    def send(self, frame: bytes) -> None:
        self._open -= _frames(frame) if frame else 1
        if self._open <= 0:
            self._done.set()
            self._done = trio.Event()

    async def wait(self) -> None:
        while self._open > 0:
            await self._done.wait()


def _frames(data: bytes) -> int:
    """How many whole frames these are: answers of one pass come joined."""
    count = at = 0
    while at < len(data):
        at += 4 + int.from_bytes(data[at : at + 4], "big")
        count += 1
    return count


def _rows(body: memoryview) -> list[Row]:
    try:
        raw: Any = cbor2.loads(bytes(body))  # Any: checked below
        rows = [(group, topic, queue, offset) for group, topic, queue, offset in raw]
    except (cbor2.CBORDecodeError, ValueError, TypeError) as problem:
        raise CodecError("pending offsets of a member are malformed") from problem
    for group, topic, queue, offset in rows:
        if not (type(group) is type(topic) is str and type(queue) is type(offset) is int):
            raise CodecError("pending offsets of a member are malformed")
    return rows
