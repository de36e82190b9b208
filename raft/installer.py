"""Shipping segments to a replica that entries cannot help any more.

The target pulls. It hears from the leader that its next entries are gone (`OFFER`, with the sources to try, the leader
last), or finds by itself that its log is damaged beyond mending; then it asks one source after the other:

    target                              source
    [EXPORT, token]            ──►      pins its files for as long as the session lives
                               ◄──      [PLAN, token, lineage, last entry (4), [[name, size], ...]]   (none: refused)
    [READ, token, name, at]    ──►
                               ◄──      [CHUNK, token, name, at]                                    body: bytes
    [DONE, token]              ──►      forgets the session

One chunk is in flight and travels behind everything else of the link, so an installation slows nobody down. What is
there already is not asked for again, as long as the source still has the very same export.

The target goes on voting with its old log until everything has arrived. Then its core stops, the host decides whether
the replica must count as *suspect* (the new log could end before something it has acknowledged), the files are
verified, and the manifest makes the switch. What follows is an ordinary opening of the store.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

import trio

from raft.codec import DRIVER_CODES, entry_id_fields, take_entry_id, take_int
from raft.core.types import EntryId, NodeId
from raft.env import BROKEN
from raft.frames import CodecError
from raft.repair import Send

__all__ = ["INSTALL_CODES", "ExportFailed", "ExportLike", "InstallSource", "Installer", "StagingLike", "offer_fields"]

log = logging.getLogger(__name__)

OFFER: Final = DRIVER_CODES + 3
EXPORT: Final = DRIVER_CODES + 4
PLAN: Final = DRIVER_CODES + 5
READ: Final = DRIVER_CODES + 6
CHUNK: Final = DRIVER_CODES + 7
DONE: Final = DRIVER_CODES + 8
INSTALL_CODES: Final = range(OFFER, DONE + 1)

CHUNK_BYTES: Final = 512 << 10
ANSWER_S: Final = 10.0
IDLE_S: Final = 30.0
"""A session that nobody reads from for so long is over: its files are no longer pinned."""
SOURCES_MAX: Final = 16
FILES_MAX: Final = 100_000


class ExportFailed(Exception):
    """This replica has nothing to give (now)."""


class ExportLike(Protocol):
    """Files that do not change while the export is open."""

    @property
    def files(self) -> Sequence[tuple[str, int]]:
        """Name and size, in the order in which they are to be written."""
        ...

    @property
    def lineage(self) -> int: ...

    @property
    def last(self) -> EntryId:
        """The entry with which the exported log ends."""
        ...

    async def read(self, name: str, at: int, size: int) -> bytes:
        """Raises LookupError for a name that is not part of it, OSError."""
        ...


class StagingLike(Protocol):
    """Where the target gathers them."""

    async def begin(self, files: Sequence[tuple[str, int]], lineage: int, last: EntryId) -> Mapping[str, int]:
        """Bytes that are there already, by name. Raises ExportFailed when the plan makes no sense, OSError."""
        ...

    async def write(self, name: str, at: int, data: bytes) -> None: ...

    async def finish(self) -> None:
        """Verify and make the switch. Raises ExportFailed: nothing is switched, what was staged is dropped."""
        ...

    async def aclose(self) -> None: ...


def offer_fields(sources: Sequence[NodeId]) -> list[Any]:
    """The leader's message to a replica that needs an installation."""
    return [OFFER, list(sources)]


@dataclass(slots=True)
class _Session:
    node: NodeId
    token: int
    questions: trio.MemorySendChannel[tuple[str, int]]


class InstallSource:
    """Serves one target at a time."""

    def __init__(self, export: Callable[[], AbstractAsyncContextManager[ExportLike]], send: Send) -> None:
        self._export = export
        self._send = send
        self._session: _Session | None = None
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def lost(self, node: NodeId) -> None:
        """The link to a member broke: whatever it was reading is over."""
        if self._session is not None and self._session.node == node:
            self._session.questions.close()

    def receive(self, node: NodeId, fields: Sequence[Any]) -> None:
        """A target's message. Raises CodecError."""
        code, session = fields[0], self._session
        if len(fields) != (4 if code == READ else 2):
            raise CodecError("an installation message is malformed")
        token = take_int(fields[1])
        mine = session is not None and (session.node, session.token) == (node, token)
        if code == EXPORT and self._nursery is not None:
            if session is not None:  # one at a time; a target that began anew comes again when its old one is over
                self.lost(node)
                self._send(node, [PLAN, token, 0, 0, 0, 0, 0, []], ())
                return
            send, receive = trio.open_memory_channel[tuple[str, int]](4)
            self._session = _Session(node, token, send)
            self._nursery.start_soon(self._serve, self._session, receive)
        elif code == READ and mine and session is not None:
            name, at = fields[2], take_int(fields[3])
            if not isinstance(name, str):
                raise CodecError("an installation message names no file")
            try:
                session.questions.send_nowait((name, at))
            except trio.WouldBlock:
                log.warning("too many questions of an installation; one is dropped", extra={"peer": node})
        elif code == DONE and mine and session is not None:
            session.questions.close()

    async def _serve(self, session: _Session, questions: trio.MemoryReceiveChannel[tuple[str, int]]) -> None:
        node, token = session.node, session.token
        try:
            async with self._export() as export:
                files = [list(file) for file in export.files]
                self._send(node, [PLAN, token, export.lineage, *entry_id_fields(export.last), files], ())
                log.info("installation begins", extra={"target": node, "files": len(files)})
                while True:
                    with trio.fail_after(IDLE_S):
                        name, at = await questions.receive()
                    data = await export.read(name, at, CHUNK_BYTES)
                    self._send(node, [CHUNK, token, name, at], [data])
        except (ExportFailed, LookupError) as error:
            log.info("no installation from here", extra={"target": node, "reason": str(error)})
            self._send(node, [PLAN, token, 0, 0, 0, 0, 0, []], ())
        except (trio.EndOfChannel, trio.TooSlowError):
            log.info("installation ends", extra={"target": node})
        except BROKEN as error:
            log.error("an installation's files cannot be read", extra={"target": node, "error": str(error)})
        finally:
            session.questions.close()
            self._session = None


class _Question:
    def __init__(self, token: int, name: str, at: int) -> None:
        self.token, self.name, self.at = token, name, at
        self.answered = trio.Event()
        self.plan: tuple[int, EntryId, list[tuple[str, int]]] | None = None
        self.chunk: bytes = b""


class Installer:
    """The target's side. `install` is called by one task at a time."""

    def __init__(
        self,
        staging: StagingLike,
        send: Send,
        wanted: Callable[[EntryId], bool],
        prepare_switch: Callable[[EntryId], Awaitable[None]],
        token: int,
    ) -> None:
        """`wanted`: whether a log that ends there is of use here. `token` must differ from those of earlier lives."""
        self.offered = trio.Event()
        """A leader offered an installation."""
        self.sources: Sequence[NodeId] = ()
        self.received_bytes = 0
        self._staging = staging
        self._send = send
        self._wanted = wanted
        self._prepare_switch = prepare_switch
        self._token = token
        self._open = _Question(0, "", 0)

    def receive(self, node: NodeId, fields: Sequence[Any], body: memoryview) -> None:
        """A source's message. Raises CodecError."""
        code = fields[0]
        if code == OFFER:
            if len(fields) != 2 or not isinstance(fields[1], list) or len(fields[1]) > SOURCES_MAX:
                raise CodecError("an offer to install is malformed")
            if not all(isinstance(source, str) for source in fields[1]):
                raise CodecError("an offer to install names no sources")
            self.sources = fields[1]
            self.offered.set()
            return
        question = self._open
        if code == PLAN:
            plan = _take_plan(fields)
            if take_int(fields[1]) == question.token and not question.name:
                question.plan = plan
                question.answered.set()
        else:
            if len(fields) != 4 or not isinstance(fields[2], str):
                raise CodecError("a chunk is malformed")
            if (take_int(fields[1]), fields[2], take_int(fields[3])) == (question.token, question.name, question.at):
                question.chunk = bytes(body)
                question.answered.set()

    async def install(self, sources: Sequence[NodeId]) -> bool:
        """Try the sources in order. True: the switch is made, the store is to be opened anew. Raises OSError."""
        for node in sources:
            try:
                if await self._install_from(node):
                    return True
            except ExportFailed as error:
                log.error("installation refused", extra={"source": node, "reason": str(error)})
            finally:
                self._send(node, [DONE, self._token], ())
                with trio.CancelScope(shield=True):  # closes files only
                    await self._staging.aclose()
        return False

    async def _install_from(self, node: NodeId) -> bool:
        self._token += 1
        plan = (await self._ask(node, [EXPORT, self._token], "", 0)).plan
        if plan is None:
            return False
        lineage, last, files = plan
        if not self._wanted(last):
            log.info("no installation is needed any more", extra={"source": node, "last": last.index})
            return False
        have = await self._staging.begin(files, lineage, last)
        log.warning(
            "installing from a peer",
            extra={"source": node, "files": len(files), "bytes": sum(size for _name, size in files)},
        )
        for name, size in files:
            at = have.get(name, 0)
            while at < size:
                chunk = (await self._ask(node, [READ, self._token, name, at], name, at)).chunk
                if not chunk:
                    return False
                await self._staging.write(name, at, chunk)
                at += len(chunk)
                self.received_bytes += len(chunk)
        if not self._wanted(last):  # entries were faster
            return False
        await self._prepare_switch(last)
        await self._staging.finish()
        log.warning("installed from a peer", extra={"source": node, "last": last.index})
        return True

    async def _ask(self, node: NodeId, fields: Sequence[Any], name: str, at: int) -> _Question:
        question = self._open = _Question(self._token, name, at)
        if self._send(node, fields, ()):
            with trio.move_on_after(ANSWER_S):
                await question.answered.wait()
        return question


def _take_plan(fields: Sequence[Any]) -> tuple[int, EntryId, list[tuple[str, int]]] | None:
    """The content of a PLAN; None when the source has nothing to give. Raises CodecError."""
    if len(fields) != 8 or not isinstance(fields[7], list) or len(fields[7]) > FILES_MAX:
        raise CodecError("a plan is malformed")
    files: list[tuple[str, int]] = []
    for item in fields[7]:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], str):
            raise CodecError("a plan's file is malformed")
        files.append((item[0], take_int(item[1])))
    if not files:
        return None
    return take_int(fields[2]), take_entry_id(fields, 3), files
