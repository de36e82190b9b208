"""Asking the other members of a group for something that only one of them may have: a client's connection.

A question is a frame with a client id; each member that can be reached serves it (`serve`) or says that it has no such
client. The first real answer counts. Peer frames (application channel): `[5, number, client id, consumer group,
seconds]` with the request as body asks, `[6, number, code]` with the answer as body answers; number 0 wants no answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import trio

from broker.replication.base import Replicator
from raft.frames import CodecError

if TYPE_CHECKING:
    from broker.replication.forward import Forwarder

__all__ = ["ANSWERED", "ASK", "SILENT", "TOLD", "UNKNOWN", "Asked", "Relay", "Told"]

ASK: Final = 5
TOLD: Final = 6

ANSWERED: Final = 0
UNKNOWN: Final = 1
"""No such client here."""
SILENT: Final = 2
"""The client is connected, and did not answer in time."""

OPEN_MAX: Final = 1024
"""Questions of other members that wait here at a time; beyond it a client counts as unknown."""
MARGIN_S: Final = 0.3
"""What a question may take longer than the client itself has."""
WITHIN_MAX_S: Final = 60.0


class Asked(NamedTuple):
    """A question of another member."""

    client_id: str
    group: str
    """Consumer group; empty: any connection of the client will do."""
    within_s: float
    """0: it is only to be told."""
    frame: bytes


class Told(NamedTuple):
    """What became of a question."""

    code: int
    """`ANSWERED`, `UNKNOWN` or `SILENT`."""
    frame: bytes = b""


class _Question:
    __slots__ = ("best", "done", "left")

    def __init__(self, members: set[str]) -> None:
        self.left = members
        self.best = Told(UNKNOWN)
        self.done = trio.Event()


class Relay:
    """Both sides of one replica: asks the other members, and serves what they ask. `run` is the serving side."""

    def __init__(self, replicator: Replicator, forwarder: Forwarder | None) -> None:
        self.serve: Callable[[Asked], Awaitable[Told]] = _nobody
        """Set by whoever knows the clients."""
        self._replicator = replicator
        self._forwarder = forwarder
        self._number = 0
        self._open: dict[int, _Question] = {}
        self._send, self._receive = trio.open_memory_channel[tuple[str, int, Asked]](OPEN_MAX)
        if forwarder is not None:
            forwarder.channels[ASK] = self._on_ask
            forwarder.channels[TOLD] = self._on_told

    async def ask(self, asked: Asked) -> Told:
        """The first answer of another member, else the best that they say."""
        with self._question(self._members()) as (number, question):
            for node in sorted(question.left):
                if not self._put(node, number, asked):
                    question.left.discard(node)
            if question.left:
                with trio.move_on_after(asked.within_s + MARGIN_S):
                    await question.done.wait()
            return question.best

    def tell(self, asked: Asked) -> None:
        """Have every reachable member send the frame to the client, where it is connected."""
        for node in sorted(self._members()):
            self._put(node, 0, asked)

    @contextmanager
    def _question(self, members: set[str]) -> Iterator[tuple[int, _Question]]:
        self._number += 1
        number = self._number
        question = self._open[number] = _Question(members)
        try:
            yield number, question
        finally:
            del self._open[number]

    def _members(self) -> set[str]:
        forwarder, replicas = self._forwarder, self._replicator.replicas
        if forwarder is None:
            return set()
        ids = [node for node, _ in (*replicas.voters, *replicas.learners)]
        return {node for node in ids if node != self._replicator.node_id and forwarder.reachable(node)}

    def _put(self, node: str, number: int, asked: Asked) -> bool:
        assert self._forwarder is not None, "there are other members"
        within_ms = round(asked.within_s * 1000)
        return self._forwarder.send(node, [ASK, number, asked.client_id, asked.group, within_ms], [asked.frame])

    def _on_told(self, node: str, fields: Sequence[Any], body: memoryview) -> None:
        if len(fields) != 3 or type(fields[1]) is not int or type(fields[2]) is not int:
            raise CodecError("an answer about a client is malformed")
        question = self._open.get(fields[1])
        if question is None or node not in question.left:
            return
        question.left.discard(node)
        if fields[2] == ANSWERED:
            question.best = Told(ANSWERED, bytes(body))
        elif fields[2] == SILENT and question.best.code == UNKNOWN:
            question.best = Told(SILENT)
        if question.best.code == ANSWERED or not question.left:
            question.done.set()

    def _on_ask(self, node: str, fields: Sequence[Any], body: memoryview) -> None:
        if len(fields) != 5 or not all(type(each) is int for each in (fields[1], fields[4])):
            raise CodecError("a question about a client is malformed")
        _, number, client_id, group, within_ms = fields
        if not isinstance(client_id, str) or not isinstance(group, str) or len(body) < 8:
            raise CodecError("a question about a client is malformed")
        asked = Asked(client_id, group, min(within_ms / 1000, WITHIN_MAX_S), bytes(body))
        try:
            self._send.send_nowait((node, number, asked))
        except trio.WouldBlock:
            self._tell(node, number, Told(UNKNOWN))

    def _tell(self, node: str, number: int, told: Told) -> None:
        if number and self._forwarder is not None:
            self._forwarder.send(node, [TOLD, number, told.code], [told.frame] if told.frame else [])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve the questions of other members until cancelled."""

        async def one(node: str, number: int, asked: Asked) -> None:
            self._tell(node, number, await self.serve(asked))

        async with trio.open_nursery() as nursery:
            task_status.started()
            async for node, number, asked in self._receive:
                nursery.start_soon(one, node, number, asked)


async def _nobody(asked: Asked) -> Told:
    return Told(UNKNOWN)
