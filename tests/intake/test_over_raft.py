"""The intake in three replicas that really replicate: leaders die, lose their unsynced bytes, come back.

Real Raft, CommitLogs, intakes and states; network and disks in memory. What is checked is what a client is promised:
every value with an OK is in the log, once, in order, where its answer said; offsets that were told never go back.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from broker.metadata.ops import key_of
from broker.metadata.state import GroupState
from broker.replication.base import Busy, NotLeader
from broker.replication.intake import Intake, IntakeConfig, IntakeStatistics, OutcomeUnknown, Refused
from broker.replication.raft_group import RaftReplicator
from broker.store.commit_log import CommitLog, open_commit_log
from broker.store.entry import Entry
from broker.store.fs_memory import MemoryFileSystem
from raft.node import RaftNode
from tests.replication.raft_cluster import Cluster, Machine, until
from tests.replication.small import SmallStore, TestClock
from tests.support.intake_bench import HOST, Client, CountedIds, Queues, apply_entry, message, records_of
from trimq.message.ids import parse_offset_message_id
from trimq.message.record import Record

pytestmark = pytest.mark.trio

PID = 42


class StateStore(SmallStore):
    """A store whose dispatcher feeds a group state."""

    def __init__(self, fs: MemoryFileSystem, log: CommitLog) -> None:
        super().__init__(fs, log)
        self.state = GroupState()
        self.queues = Queues()
        self.seen: list[Entry] = []

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            while self.dispatched < min(self._allowed, self.log.durable.index):
                for entry in await self.log.read(self.dispatched + 1, 64 << 10):
                    if entry.index > min(self._allowed, self.log.durable.index):
                        break
                    apply_entry(self.state, self.queues, entry)
                    self.seen.append(entry)
                    self.entries.append((entry.index, entry.term, entry.crc))
                    self.dispatched, self.dispatched_end = entry.index, entry.end
                self._moved.set()
                self._moved = trio.Event()

    def records(self) -> list[Record]:
        return [record for entry in self.seen for record in records_of(entry)]


class Member:
    """One running replica."""

    def __init__(self, store: StateStore, intake: Intake, replicator: RaftReplicator) -> None:
        self.store, self.intake, self.replicator = store, intake, replicator


class IntakeMachine(Machine):
    def __init__(self, cluster: Cluster, name: str) -> None:
        super().__init__(cluster, name)
        self.member: Member | None = None
        self.ids = CountedIds(name)

    async def _run_group(self, node: RaftNode, group: str, *, task_status: trio.TaskStatus[None]) -> None:
        cluster, disk = self.cluster, self.disks[group]
        rng = random.Random(f"{cluster.seed}/{self.name}/{self.lives}")
        async with open_state_store(disk) as store, trio.open_nursery() as nursery:
            config = IntakeConfig(store_host=HOST)
            intake = Intake(store.state, store.log, store.queues, None, TestClock(), config, self.ids)
            replicator = RaftReplicator(node, store, intake, cluster.config(self.name, group), disk, rng)
            self.member = Member(store, intake, replicator)
            assert isinstance(cluster, IntakeCluster)
            cluster.statistics.append(intake.statistics)
            try:
                await nursery.start(intake.run)
                await replicator.run(task_status=task_status)
            finally:
                self.member = None


class IntakeCluster(Cluster):
    def __init__(self, nursery: trio.Nursery, seed: int) -> None:
        super().__init__(nursery, ("n0", "n1", "n2"), ("g",), seed)
        self.machines = {name: IntakeMachine(self, name) for name in self.names}
        self.statistics: list[IntakeStatistics] = []
        """Of every life of every replica."""

    def members(self) -> list[Member]:
        machines = [machine for machine in self.machines.values() if isinstance(machine, IntakeMachine)]
        return [machine.member for machine in machines if machine.member is not None]

    def admitting(self) -> Member | None:
        members = [member for member in self.members() if member.intake.admitting]
        return max(members, key=lambda member: member.replicator.role.term, default=None)

    async def equal(self) -> list[Member]:
        def same() -> bool:
            ends = [member.store.dispatched for member in self.members()]
            last = [member.store.log.last.index for member in self.members()]
            return len(ends) == 3 and len({*ends, *last}) == 1

        await until(same, 20)
        return self.members()


@asynccontextmanager
async def open_state_store(fs: MemoryFileSystem) -> AsyncIterator[StateStore]:
    async with open_commit_log(fs) as log, trio.open_nursery() as nursery:
        store = StateStore(fs, log)
        nursery.start_soon(store.run)
        yield store
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running(seed: int) -> AsyncIterator[IntakeCluster]:
    async with trio.open_nursery() as nursery:
        cluster = IntakeCluster(nursery, seed)
        await cluster.start()
        await until(cluster.admitting, 10)
        yield cluster
        nursery.cancel_scope.cancel()


class Producer:
    """A numbered producer without patience: at most 16 unsettled, repeated every few milliseconds, answered or not."""

    def __init__(self, find: Callable[[], Member | None]) -> None:
        self.find = find
        self.count = 1 << 30
        """Goes on to here; set it to where it stands, and it ends there."""
        self.floor = 0
        self.reached = 0
        self.places: dict[int, tuple[int, int]] = {}
        """Sequence → (queue offset, position) as the OK said."""
        self._client = Client()
        self._sent: dict[int, int] = {}

    async def run(self) -> None:
        while self.floor < self.count:
            leader = self.find()
            if leader is not None:
                self._window(leader)
            await trio.sleep(0.002)
            self._hear()

    def _window(self, leader: Member) -> None:
        for number in range(self.floor, min(self.floor + 16, self.count)):
            answer = self._client.answer(ours=True)
            sequence = (PID, 0, number, self.floor)
            try:
                leader.intake.put(
                    message(topic=b"orders", body=b"%d" % number, sequence=sequence, uniq=b"%d" % number), answer
                )
            except (Refused, NotLeader, Busy):
                return
            self._sent[answer.opaque] = number
            self.reached = max(self.reached, number + 1)

    def _hear(self) -> None:
        for answer in self._client.take():
            number = self._sent.pop(answer.opaque)
            if answer.code == 0:
                place = int(answer.ext["queueOffset"]), parse_offset_message_id(answer.ext["msgId"])[1]
                assert self.places.setdefault(number, place) == place, "a repeat is answered as the first time"
        while self.floor in self.places:
            self.floor += 1


async def commit_offsets(cluster: IntakeCluster, told: list[int], producer: Producer) -> None:
    """A consumer that commits what it has surely seen and keeps what was told to be stored."""
    while True:
        await trio.sleep(0.03)
        leader = cluster.admitting()
        if leader is None or not producer.floor:
            continue
        client = Client()
        offset = producer.floor
        try:
            leader.intake.commit_offset("readers", "orders", 0, offset, answer=client.answer())
        except (Refused, NotLeader, Busy):
            continue
        with trio.move_on_after(2):
            await client.answered()
            if client.got[0].code == 0:
                told.append(offset)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
@pytest.mark.parametrize("keep", [1.0, 0.0], ids=["kill", "power cut"])
async def test_numbered_sends_are_stored_once_and_in_order_through_leader_changes(
    seed: int, keep: float, autojump_clock: MockClock
) -> None:
    rng = random.Random(seed)
    async with running(seed) as cluster:
        producer = Producer(cluster.admitting)
        told: list[int] = []

        async def trouble() -> None:
            for _ in range(5):
                await trio.sleep(rng.uniform(0.05, 0.25))
                await until(cluster.admitting, 5)
                leader = cluster.admitting()
                assert leader is not None
                machine = cluster.machines[leader.replicator.node_id]
                await machine.kill(keep=keep)
                await trio.sleep(rng.uniform(0.1, 0.6))
                await machine.start()
            producer.count = producer.reached

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit_offsets, cluster, told, producer)
            async with trio.open_nursery() as work:
                work.start_soon(producer.run)
                work.start_soon(trouble)
            nursery.cancel_scope.cancel()

        members = await cluster.equal()
        for member in members:
            records = member.store.records()
            assert [bytes(record.body) for record in records] == [b"%d" % number for number in range(producer.count)]
            assert {number: (record.queue_offset, record.position) for number, record in enumerate(records)} == {
                **producer.places
            }
            group = member.store.state.groups.get("readers")
            topic = member.store.state.topics.get(b"orders")
            assert group is not None
            assert topic is not None
            stored = member.store.state.offsets.get(group.gid, key_of(topic.tid, 0))
            assert stored is not None
            assert stored >= max(told)
        assert told == sorted(told)
        assert members[0].replicator.role.term >= 6
        assert sum(statistics.duplicates for statistics in cluster.statistics) > 0, "repeats were met"
        assert len({member.store.state.snapshot()() for member in members}) == 1, "state is a function of the log"


async def test_ops_of_a_deposed_leader_are_told_lost_or_unknown_or_applied(autojump_clock: MockClock) -> None:
    async with running(9) as cluster:
        leader = cluster.admitting()
        assert leader is not None
        name = leader.replicator.node_id
        await leader.intake.apply([leader.intake.topic_op("before", read_queues=1, write_queues=1)])
        assert leader.store.state.topics.get(b"before") is not None
        cluster.net.cut(name, [other for other in cluster.names if other != name])
        with trio.fail_after(10), pytest.raises((NotLeader, OutcomeUnknown)):
            await leader.intake.apply([leader.intake.topic_op("cut", read_queues=1, write_queues=1)])

        def successor() -> bool:
            newest = cluster.admitting()
            return newest is not None and newest is not leader

        await until(successor, 10)
        assert not leader.intake.admitting, "a leader without a majority steps down"
