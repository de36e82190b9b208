"""Check-back: asks the producers of half messages that stay undecided, and gives up in the end.

One task of the ready leader for all of them. Every pass walks the open half messages, oldest first, and stops at the
first that is too young for any check. Being asked is logged (op 18), so a failover does not begin to count anew; only
asking a live producer counts. After `transactionCheckMax` checks, or when it is older than the log is kept, a half
message is moved to TRANS_CHECK_MAX_TIME_TOPIC, in one entry with its end: an operator can look at it there and resume
the checks (code 323).

RocketMQ appends a checked half message anew to move its queue on; here the table says what is open, so it stays where
it is and END_TRANSACTION finds it by the same offsets for ever.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

import trio

from broker.config import BrokerConfig
from broker.metadata.clients import ClientTable, Link
from broker.metadata.state import GroupState
from broker.metadata.transaction_ops import End, HalfChecked, HalfEnd
from broker.metadata.transactions import OpenHalf
from broker.metrics import Counters
from broker.replication.base import Replicator
from broker.replication.intake import Intake
from broker.service.half import HALF_TOPIC, given_up, shown
from broker.store.errors import StoreError
from trimq.env import Clock
from trimq.errors import RecordError
from trimq.message import properties
from trimq.message.ids import offset_message_id
from trimq.message.record import Record, unpack_record
from trimq.wire.codes import RequestCode
from trimq.wire.command import FLAG_ONEWAY, Command, encode
from trimq.wire.headers.transaction import CheckTransactionHeader

if TYPE_CHECKING:
    from broker.store.message_store import MessageStore

__all__ = ["TransactionChecks"]

log = logging.getLogger(__name__)

SLICE = 4096
"""Half messages looked at before others get their turn."""
BATCH = 256
"""Half messages asked about, or given up, in one entry."""
TICK_MAX_S = 5.0
TICK_MIN_S = 0.05


class TransactionChecks:
    """Asks and gives up, while this replica is the ready leader."""

    def __init__(
        self,
        config: BrokerConfig,
        state: GroupState,
        store: MessageStore,
        intake: Intake,
        replicator: Replicator,
        clients: ClientTable,
        clock: Clock,
        counters: Counters,
    ) -> None:
        self._config = config
        self._state = state
        self._store = store
        self._intake = intake
        self._replicator = replicator
        self._clients = clients
        self._clock = clock
        self._counters = counters
        self._opaque = 0
        self._turn = 0
        self._tick_s = min(
            TICK_MAX_S,
            max(TICK_MIN_S, min(config.transaction_timeout_ms, config.transaction_check_interval_ms) / 4000),
        )

    @property
    def _kept_ms(self) -> int:
        config = self._config
        return config.reserved_s * 1000 or config.reserved_hours * 3_600_000

    async def run_term(self) -> None:
        """Check until cancelled."""
        while True:
            await trio.sleep(self._tick_s)
            if self._state.transactions.open:
                await self._pass()

    async def _pass(self) -> None:
        now = self._clock.wall_ms()
        open_halves = self._state.transactions.open
        due: list[int] = []
        # The table may change while others run: a slice of its keys at a time, from where the last one ended.
        offsets = list(open_halves)
        for at in range(0, len(offsets), SLICE):
            for offset in islice(offsets, at, at + SLICE):
                half = open_halves.get(offset)
                if half is not None and self._is_due(half, now):
                    due.append(offset)
            await trio.lowlevel.checkpoint()
        for at in range(0, len(due), BATCH):
            await self._replicator.room()
            await self._ask(due[at : at + BATCH], now)

    def _is_due(self, half: OpenHalf, now: int) -> bool:
        if half.checked_ms:
            return now - half.checked_ms >= self._config.transaction_check_interval_ms
        return now - half.begun_ms >= (half.immunity_ms or self._config.transaction_timeout_ms)

    async def _ask(self, offsets: list[int], now: int) -> None:
        asked: list[tuple[int, Record]] = []
        for offset in offsets:
            half = self._state.transactions.open.get(offset)
            if half is None:
                continue
            record = await self._read(half.position)
            if record is None:
                continue  # unreadable now: a damaged range is repaired from a peer
            if half.checks >= self._config.transaction_check_max or now - half.begun_ms > self._kept_ms:
                self._give_up(offset, half, record)
            else:
                asked.append((offset, record))
        reached = [(offset, record, link) for offset, record in asked if (link := self._producer(record)) is not None]
        if not reached:
            return
        open_halves = self._intake.view.tables.transactions.open
        reached = [each for each in reached if each[0] in open_halves]
        if not reached:
            return
        self._intake.put_ops([HalfChecked([offset for offset, _, _ in reached])])
        for _, record, link in reached:
            self._opaque += 1
            link.send(encode(self._question(record)))
        self._counters.transactions_checked += len(reached)

    def _producer(self, record: Record) -> Link | None:
        """A live connection of the producer group; in turn, since any of them may be stuck."""
        group = (properties.get(record.properties, b"PGROUP") or b"").decode(errors="replace")
        producers = self._clients.producers(group)
        if not producers:
            return None
        self._turn += 1
        return producers[self._turn % len(producers)].link

    def _question(self, record: Record) -> Command:
        unique = (properties.get(record.properties, b"UNIQ_KEY") or b"").decode(errors="replace")
        header = CheckTransactionHeader(
            topic=HALF_TOPIC,
            tran_state_table_offset=record.queue_offset,
            commit_log_offset=record.position,
            msg_id=unique,
            transaction_id=unique,
            offset_msg_id=offset_message_id(record.store_host, record.position),
            bname=self._config.broker_name,
        )
        return Command(
            code=RequestCode.CHECK_TRANSACTION_STATE,
            opaque=self._opaque,
            flag=FLAG_ONEWAY,
            ext=header.to_ext(),
            body=shown(record),
        )

    async def _read(self, position: int) -> Record | None:
        try:
            return unpack_record(await self._store.read_record(position))
        except (RecordError, StoreError, OSError):
            return None

    def _give_up(self, offset: int, half: OpenHalf, record: Record) -> None:
        if offset not in self._intake.view.tables.transactions.open:
            return  # ended a moment ago, not applied yet
        self._intake.put_batch(
            [given_up(record, half.checks)],
            mark=lambda queue, queue_offset, position: HalfEnd(offset, End.GIVEN_UP, queue, queue_offset, position),
        )
        self._counters.transactions_given_up += 1
        log.warning(
            "transaction given up: its producer group did not decide it",
            extra={
                "group": (properties.get(record.properties, b"PGROUP") or b"").decode(errors="replace"),
                "checks": half.checks,
                "position": record.position,
            },
        )

    async def oldest_position(self) -> int | None:
        """From here on the log is needed, on every replica."""
        return self._state.transactions.oldest_position()

    def statistics(self) -> Mapping[str, int]:
        """How many are open, and the age of the oldest in milliseconds."""
        oldest = next(iter(self._state.transactions.open.values()), None)
        return {
            "open": len(self._state.transactions.open),
            "oldest_ms": 0 if oldest is None else max(0, self._clock.wall_ms() - oldest.begun_ms),
        }
