"""An outbox: messages that are sent exactly when a database transaction commits, and stored once. For SQLite.

    from trimq import outbox

    with sqlite3.connect("shop.db") as db:                  # your transaction
        db.execute("INSERT INTO orders ...")
        outbox.put(db, trimq.Message(topic="orders", body=b"..."))

    async with trimq.connect(...) as mq, outbox.open_relay(mq, "shop.db") as relay:
        ...                                                 # sends what is there, and what comes

`put` writes a row into your database, inside your transaction: so there is no half message, no check, and no moment in
which the order exists and its message does not. A *relay*, in this process or another, sends the rows in their order.

Stored once, through any crash. Before a batch of rows is sent for the first time, what it consists of, its queue and
its producer sequence are committed to the database. A relay that starts anew repeats exactly that batch, and the broker
recognises it (docs/protocol.md, "Sends that are stored once"). Two relays on one database do no harm: they repeat each
other's batches. At a broker that is not ours sequences mean nothing, and a crash can send a batch twice.

Rows keep their order per queue: messages of one `order_key` stay in order. A row that the broker refuses for good
(too large, topic unknown) is put aside with its error and does not hold up the others: `failed` lists them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import anyio
import anyio.to_thread

from trimq.client.background import open_background
from trimq.client.instance import Instance, refusal
from trimq.client.lane import Request, Slot
from trimq.client.model import Message, Queue, from_ms, to_ms
from trimq.client.outgoing import DEFAULT_TOPIC_QUEUES, batch_body, is_postponed, prepare, send_fields
from trimq.client.route import Route, interleave, pick_by_key
from trimq.errors import BadRequest, NoRoute, TrimqError
from trimq.remoting.system import SystemClock
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command

if TYPE_CHECKING:
    from trimq.client.client import Client

__all__ = ["FailedRow", "Relay", "create", "failed", "forget", "open_relay", "pending", "put"]

T = TypeVar("T")

PRODUCER_GROUP: Final = "TRIMQ_OUTBOX"
BATCH_ROWS: Final = 128
BATCH_BYTES: Final = 256 * 1024
POLL_S: Final = 0.2
"""How often the relay looks for rows that nobody told it of."""
ANSWER_S: Final = 30.0
RETRY_S: Final = 1.0
COMPRESS_OVER: Final = 4096

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS trimq_outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    topic  TEXT NOT NULL,
    body   BLOB NOT NULL,
    fields TEXT NOT NULL,
    batch  INTEGER,
    alone  INTEGER NOT NULL DEFAULT 0,
    error  TEXT
);
CREATE INDEX IF NOT EXISTS trimq_outbox_open ON trimq_outbox (number) WHERE batch IS NULL AND error IS NULL;
CREATE INDEX IF NOT EXISTS trimq_outbox_sent ON trimq_outbox (batch) WHERE batch IS NOT NULL;
CREATE TABLE IF NOT EXISTS trimq_outbox_batch (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    replica_group TEXT NOT NULL,
    topic  TEXT NOT NULL,
    queue  INTEGER NOT NULL,
    first  INTEGER NOT NULL,
    size   INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS trimq_outbox_state (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def create(db: sqlite3.Connection) -> None:
    """Create the outbox's tables where they are missing. Commits."""
    db.executescript(_SCHEMA)


def put(db: sqlite3.Connection, message: Message) -> str:
    """Write a message into the outbox, as part of the connection's transaction; returns its unique id.

    Raises `BadRequest` for a message that no broker would take. A `delay` counts from now on.
    """
    prepare(message, COMPRESS_OVER)  # refuse here what can be refused, while the caller can still do something
    at = None if message.at is None else to_ms(message.at)
    if message.delay is not None:
        at = SystemClock().wall_ms() + round(message.delay / timedelta(milliseconds=1))
    fields = {
        "id": message.id,
        "tag": message.tag,
        "keys": [message.keys] if isinstance(message.keys, str) else list(message.keys),
        "order_key": message.order_key,
        "at": at,
        "delay_level": message.delay_level,
        "properties": dict(message.properties),
        "flag": message.flag,
    }
    text = json.dumps({name: value for name, value in fields.items() if value})
    try:
        db.execute(
            "INSERT INTO trimq_outbox (topic, body, fields) VALUES (?, ?, ?)", (message.topic, message.body, text)
        )
    except sqlite3.OperationalError as error:
        raise BadRequest(
            f"the outbox cannot be written: {error}", advice="call trimq.outbox.create(db) once before"
        ) from error
    return message.id


def pending(db: sqlite3.Connection) -> int:
    """How many messages wait to be sent."""
    (count,) = db.execute("SELECT count(*) FROM trimq_outbox WHERE error IS NULL").fetchone()
    return int(count)


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A message that the broker refused for good."""

    number: int
    id: str
    topic: str
    body: bytes
    error: str


def failed(db: sqlite3.Connection) -> list[FailedRow]:
    """What was refused for good, oldest first."""
    rows = db.execute(
        "SELECT number, fields, topic, body, error FROM trimq_outbox WHERE error IS NOT NULL ORDER BY number"
    )
    return [
        FailedRow(number, json.loads(fields)["id"], topic, body, error) for number, fields, topic, body, error in rows
    ]


def forget(db: sqlite3.Connection, number: int, *, retry: bool = False) -> None:
    """Drop a failed row, or let the relay try it again. Part of the connection's transaction."""
    if retry:
        db.execute("UPDATE trimq_outbox SET error = NULL, alone = 1 WHERE number = ?", (number,))
    else:
        db.execute("DELETE FROM trimq_outbox WHERE number = ? AND error IS NOT NULL", (number,))


@dataclass(frozen=True, slots=True)
class _Row:
    number: int
    message: Message
    alone: bool


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is sent, and repeated, as it stands in the database."""

    number: int
    queue: Queue
    first: int
    rows: tuple[_Row, ...]


class Relay:
    """Sends the rows of one outbox. Made by `open_relay`."""

    def __init__(self, client: Client, path: Path) -> None:
        self._instance: Instance = client.instance
        self._path = path
        self._pid = ""
        self._turn = 0
        self._wake = anyio.Event()
        self._asked = 0
        """Calls of `drain` so far."""
        self._answered = 0
        """Calls after which nothing waited at one moment."""
        self._moved = anyio.Event()
        self.sent = 0
        """Messages stored by this relay; those that turned out to be stored before are among them."""
        self.duplicates = 0

    def notify(self) -> None:
        """A transaction with messages was committed: send them now, and not at the next look."""
        self._wake.set()

    async def drain(self) -> None:
        """Return when nothing waited at one moment from now on. Rows that failed do not count."""
        self._asked += 1
        mine = self._asked
        self._wake.set()
        while self._answered < mine:
            await self._moved.wait()

    # --- the loop

    async def run(self) -> None:
        """Send until cancelled. What fails for a while is tried again."""
        self._pid = await self._with_db(_producer_id, f"{self._instance.rng.getrandbits(64):016x}")
        while True:
            self._wake = anyio.Event()
            try:
                # What an earlier life (or another relay) has begun comes first, exactly as it was.
                for begun in await self._with_db(_unsettled):
                    await self._send(begun, again=True)
                asked = self._asked
                while (batch := await self._next()) is not None:
                    await self._send(batch, again=False)
                    asked = self._asked
                if not await self._with_db(pending):  # another relay may be at it
                    self._answered = asked
                    moved, self._moved = self._moved, anyio.Event()
                    moved.set()
                with anyio.move_on_after(POLL_S):
                    await self._wake.wait()
            except TrimqError:
                await anyio.sleep(RETRY_S)  # no broker to be had: the rows wait

    async def _with_db(self, work: Callable[..., T], *args: object) -> T:
        """`work` in a thread, with a connection of its own, as one transaction."""

        def do() -> T:
            with closing(sqlite3.connect(self._path, timeout=30, isolation_level=None)) as db:
                db.execute("BEGIN IMMEDIATE")
                try:
                    result = work(db, *args)
                except BaseException:
                    db.execute("ROLLBACK")
                    raise
                db.execute("COMMIT")
                return result

        return await anyio.to_thread.run_sync(do)

    async def _next(self) -> _Batch | None:
        """Choose the next rows, their queue and their numbers, and commit that choice."""
        rows = await self._with_db(_open_rows)
        if not rows:
            return None
        route, rows = await self._first_routed(rows)
        head = rows[0].message
        self._turn += 1
        queue = self._target(route, head)
        chosen = [rows[0]]
        size = len(head.body)
        for row in rows[1:]:
            if rows[0].alone or is_postponed(head):
                break
            message = row.message
            if message.topic != head.topic or (message.order_key and self._target(route, message) != queue):
                continue
            size += len(message.body) + 256
            if size > BATCH_BYTES or row.alone or is_postponed(message):
                break
            chosen.append(row)
        return await self._with_db(_assign, queue, chosen)

    async def _first_routed(self, rows: list[_Row]) -> tuple[Route, list[_Row]]:
        """The rows from the first on whose topic can be written to now, and its route. Raises when there is none."""
        problem: TrimqError | None = None
        missing: set[str] = set()
        for at, row in enumerate(rows):
            topic = row.message.topic
            if topic in missing:
                continue
            try:
                route, _ = await self._instance.routes.publish_route(topic, DEFAULT_TOPIC_QUEUES)
            except NoRoute as error:
                problem = problem or error
                missing.add(topic)
                continue
            if route.write_queues:
                return route, rows[at:]
            missing.add(topic)
        raise problem or NoRoute("no queue of these topics may be written", advice="check the permission of the topics")

    def _target(self, route: Route, message: Message) -> Queue:
        if message.order_key:
            return pick_by_key(route.write_queues, message.order_key)
        spread = interleave(route.write_queues)
        return spread[self._turn % len(spread)]

    async def _send(self, batch: _Batch, *, again: bool) -> None:
        slots = [Slot(prepare(row.message, COMPRESS_OVER if len(batch.rows) == 1 else 1 << 62), batch.queue, _nobody)
                 for row in batch.rows]  # fmt: skip
        request = Request(batch.queue, slots, batch.first)
        ext = send_fields(request, PRODUCER_GROUP, self._instance.clock.wall_ms())
        ext.update(pid=self._pid, pe="0", ps=str(batch.first), pf=str(batch.first))
        if again:
            ext["again"] = "1"  # should the broker have forgotten this producer, it looks the ids up
        single = len(slots) == 1
        command = Command(
            code=RequestCode.SEND_MESSAGE_V2 if single else RequestCode.SEND_BATCH_MESSAGE,
            ext=ext,
            body=slots[0].message.body if single else batch_body([slot.message for slot in slots]),
        )
        group = batch.queue.group
        answer = await self._instance.call(group, command, deadline=anyio.current_time() + ANSWER_S)
        if answer.code in _STORED:
            self.sent += len(slots)
            self.duplicates += len(slots) if answer.ext.get("dup") else 0
            await self._with_db(_settle, batch.number)
        elif answer.code in _REFUSED:
            # Surely not stored: its numbers are free again.
            reason = str(refusal(answer, group))
            await self._with_db(_refused, batch.number, reason if single else None)
        else:
            raise refusal(answer, group)


_STORED: Final = frozenset(
    {
        ResponseCode.SUCCESS,
        ResponseCode.FLUSH_DISK_TIMEOUT,
        ResponseCode.SLAVE_NOT_AVAILABLE,
        ResponseCode.FLUSH_SLAVE_TIMEOUT,
        # Another relay has settled this batch and gone on.
        ResponseCode.STALE_SEQUENCE,
    }
)
_REFUSED: Final = frozenset(
    {
        ResponseCode.MESSAGE_ILLEGAL,
        ResponseCode.NO_PERMISSION,
        ResponseCode.TOPIC_NOT_EXIST,
        ResponseCode.INVALID_PARAMETER,
        ResponseCode.SUBSCRIPTION_GROUP_NOT_EXIST,
    }
)


def _nobody(slot: Slot) -> None:
    """The sink of slots that are used for their encoding only."""


@asynccontextmanager
async def open_relay(client: Client, path: str | Path) -> AsyncIterator[Relay]:
    """Send what is in the outbox of this database, for as long as the block runs. Creates its tables if need be."""
    relay = Relay(client, Path(path))

    def prepared() -> None:
        with closing(sqlite3.connect(relay._path, timeout=30)) as db:
            create(db)

    await anyio.to_thread.run_sync(prepared)
    async with open_background() as tasks:
        tasks.start_soon(relay.run)
        yield relay


# --- what is done inside one transaction


def _producer_id(db: sqlite3.Connection, fresh: str) -> str:
    db.execute("INSERT OR IGNORE INTO trimq_outbox_state VALUES ('pid', ?)", (fresh,))
    (pid,) = db.execute("SELECT value FROM trimq_outbox_state WHERE name = 'pid'").fetchone()
    return str(pid)


def _message(topic: str, body: bytes, text: str) -> Message:
    fields = json.loads(text)
    if "at" in fields:
        fields["at"] = from_ms(fields["at"])
    return Message(topic=topic, body=body, **fields)


def _rows(cursor: sqlite3.Cursor) -> list[_Row]:
    return [_Row(number, _message(topic, body, fields), bool(alone)) for number, topic, body, fields, alone in cursor]


def _open_rows(db: sqlite3.Connection) -> list[_Row]:
    return _rows(
        db.execute(
            "SELECT number, topic, body, fields, alone FROM trimq_outbox"
            " WHERE batch IS NULL AND error IS NULL ORDER BY number LIMIT ?",
            (BATCH_ROWS,),
        )
    )


def _unsettled(db: sqlite3.Connection) -> list[_Batch]:
    found: list[_Batch] = []
    for number, group, topic, queue, first in db.execute(
        "SELECT number, replica_group, topic, queue, first FROM trimq_outbox_batch ORDER BY number"
    ).fetchall():
        rows = _rows(
            db.execute(
                "SELECT number, topic, body, fields, alone FROM trimq_outbox WHERE batch = ? ORDER BY number", (number,)
            )
        )
        found.append(_Batch(number, Queue(topic, group, queue), first, tuple(rows)))
    return found


def _assign(db: sqlite3.Connection, queue: Queue, rows: Sequence[_Row]) -> _Batch | None:
    """Fix what the next batch is. None when another relay was faster."""
    marks = ",".join("?" * len(rows))
    numbers = [row.number for row in rows]
    (free,) = db.execute(
        f"SELECT count(*) FROM trimq_outbox WHERE number IN ({marks}) AND batch IS NULL AND error IS NULL",  # noqa: S608
        numbers,
    ).fetchone()
    (open_batches,) = db.execute("SELECT count(*) FROM trimq_outbox_batch").fetchone()
    if free != len(rows) or open_batches:
        return None
    name = f"next:{queue.group}"
    row = db.execute("SELECT value FROM trimq_outbox_state WHERE name = ?", (name,)).fetchone()
    first = int(row[0]) if row else 0
    cursor = db.execute(
        "INSERT INTO trimq_outbox_batch (replica_group, topic, queue, first, size) VALUES (?, ?, ?, ?, ?)",
        (queue.group, queue.topic, queue.id, first, len(rows)),
    )
    assert cursor.lastrowid is not None
    db.execute(f"UPDATE trimq_outbox SET batch = ? WHERE number IN ({marks})", [cursor.lastrowid, *numbers])  # noqa: S608
    return _Batch(cursor.lastrowid, queue, first, tuple(rows))


def _settle(db: sqlite3.Connection, number: int) -> None:
    """The batch is stored. Does nothing when another relay has noted that before."""
    row = db.execute("SELECT replica_group, first, size FROM trimq_outbox_batch WHERE number = ?", (number,)).fetchone()
    if row is None:
        return
    group, first, size = row
    db.execute("INSERT OR REPLACE INTO trimq_outbox_state VALUES (?, ?)", (f"next:{group}", str(first + size)))
    db.execute("DELETE FROM trimq_outbox WHERE batch = ?", (number,))
    db.execute("DELETE FROM trimq_outbox_batch WHERE number = ?", (number,))


def _refused(db: sqlite3.Connection, number: int, error: str | None) -> None:
    """The batch surely is not stored: note why (one row), or try its rows one by one to find the one at fault."""
    db.execute("UPDATE trimq_outbox SET batch = NULL, alone = 1, error = ? WHERE batch = ?", (error, number))
    db.execute("DELETE FROM trimq_outbox_batch WHERE number = ?", (number,))
