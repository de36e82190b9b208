"""The parts of the driver, one by one: formation, writer, feeder, ticks, messages of repair and installation."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from broker.store.fs_memory import MemoryFileSystem
from raft.codec import entry_id_fields
from raft.core.messages import AppendRequest
from raft.core.ready import AppendBatch
from raft.core.types import EntryId, EntryLike, HardState, Member, Membership, StorageFault
from raft.feeder import Feeder
from raft.formation import Formation, Introduction
from raft.frames import CodecError
from raft.hard_state import HardStateFile
from raft.installer import DONE, EXPORT, INSTALL_CODES, PLAN, Installer, InstallSource, StagingLike
from raft.node import NodeConfig, RaftNode
from raft.repair import ASK, TOLD, RepairDesk, Repairer
from raft.storage import LogStorage, StorageDamaged
from raft.writer import WRITE_MAX_BYTES, LogWriter
from tests.raft.memory_net import MemoryNetwork

pytestmark = pytest.mark.trio

PEERS = tuple(Member(id=name, rank=rank, address=f"{name}:1") for rank, name in enumerate(("n0", "n1", "n2")))


def hello(name: str, *, uuid: str = "", lineage: int = 0) -> Introduction:
    return Introduction(name, uuid or f"uuid-{name}", f"{name}:10911", lineage, 0)


class TestFormation:
    async def test_the_first_by_id_forms_when_all_are_there(self) -> None:
        formation = Formation(hello("n0"), PEERS)
        formation.hello(hello("n2"))
        assert formation.membership() is None
        assert formation.missing == ("n1",)
        formation.hello(hello("n1"))
        membership = formation.membership()
        assert membership is not None
        assert [(m.id, m.uuid, m.client_address) for m in membership.voters] == [
            (name, f"uuid-{name}", f"{name}:10911") for name in ("n0", "n1", "n2")
        ]

    async def test_the_others_wait_for_it(self) -> None:
        formation = Formation(hello("n1"), PEERS)
        formation.hello(hello("n0"))
        formation.hello(hello("n2"))
        assert formation.membership() is None

    async def test_nobody_forms_beside_a_formed_peer(self) -> None:
        formation = Formation(hello("n0"), PEERS)
        formation.hello(hello("n1", lineage=7))
        formation.hello(hello("n2"))
        assert formation.membership() is None
        assert formation.formed_peers == ("n1",)

    async def test_a_peer_that_left_does_not_count_any_more(self) -> None:
        formation = Formation(hello("n0"), PEERS)
        formation.hello(hello("n1"))
        formation.hello(hello("n2"))
        formation.lost("n1")
        assert formation.membership() is None

    async def test_only_an_entry_that_lists_this_very_store_is_adopted(self) -> None:
        formation = Formation(hello("n1"), PEERS)
        listed = Membership((Member(id="n0", uuid="uuid-n0"), Member(id="n1", uuid="uuid-n1")))
        assert formation.refusal(listed) is None
        other = Membership((Member(id="n0", uuid="uuid-n0"), Member(id="n1", uuid="another")))
        assert "the disk was replaced" in str(formation.refusal(other))
        assert "does not list n1" in str(formation.refusal(Membership((Member(id="n0", uuid="uuid-n0"),))))


@dataclass(frozen=True)
class Thing:
    """An entry, as far as these parts look."""

    index: int
    term: int = 1
    size: int = 10

    @property
    def crc(self) -> int:
        return self.index * 1000 + self.term

    @property
    def prev_crc(self) -> int:
        return (self.index - 1) * 1000 + self.term

    @property
    def data(self) -> bytes:
        return bytes(self.size)


def things(first: int, last: int, *, size: int = 10) -> list[EntryLike]:
    return cast("list[EntryLike]", [Thing(index, size=size) for index in range(first, last + 1)])


class Disk:
    """A log that writes down what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.errors: list[Exception] = []
        self.in_memory: dict[int, EntryLike] = {}
        self.on_disk: dict[int, EntryLike] = {}
        self.suspect = False
        self.delay = 0.01
        self.hands: trio.Nursery | None = None
        """Who carries out what is begun; without, every write takes the writer's task."""

    def begin_write(self, entries: Sequence[EntryLike], done: Callable[[OSError | None], None]) -> bool:
        if self.hands is None:
            return False

        async def carry_out() -> None:
            with trio.CancelScope(shield=True):
                try:
                    await self.write(entries)
                except OSError as error:
                    done(error)
                else:
                    done(None)

        self.hands.start_soon(carry_out)
        return True

    async def write(self, entries: Sequence[EntryLike]) -> None:
        await trio.sleep(self.delay)
        if self.errors:
            raise self.errors.pop(0)
        self.calls.append(f"write {entries[0].index}-{entries[-1].index}")

    async def truncate(self, to: EntryId) -> None:
        await trio.sleep(self.delay)
        self.calls.append(f"truncate {to.index}")

    tail_cut = False

    async def note_suspect(self) -> None:
        self.suspect = True

    async def clear_suspect(self) -> None:
        self.suspect = False

    def cached(self, first: int, last: int) -> Sequence[EntryLike] | None:
        if all(index in self.in_memory for index in range(first, last + 1)):
            return [self.in_memory[index] for index in range(first, last + 1)]
        return None

    async def read(self, first: int, last: int) -> Sequence[EntryLike]:
        await trio.sleep(0.01)
        self.calls.append(f"read {first}-{last}")
        return [self.on_disk[index] for index in range(first, min(last, first + 4) + 1)]

    def parse(self, body: memoryview) -> Sequence[EntryLike]:
        raise CodecError("no entries here")


def as_storage(disk: Disk) -> LogStorage:
    return cast("LogStorage", disk)


async def hard_state() -> HardStateFile:
    return await HardStateFile.open(MemoryFileSystem(random.Random(1)), "hard-state", store_empty=True)


def nothing() -> None:
    """Whoever would be told has no part in these tests."""


class TestWriter:
    @pytest.mark.parametrize("begun", [False, True])
    async def test_what_gathers_during_a_write_goes_together(self, begun: bool, autojump_clock: MockClock) -> None:
        disk = Disk()
        writer = LogWriter(as_storage(disk), await hard_state(), nothing, nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            disk.hands = nursery if begun else None
            writer.put([AppendBatch(1, entries=things(1, 1))])
            await trio.sleep(0.005)
            assert not writer.idle
            writer.put([AppendBatch(2, entries=things(2, 2)), AppendBatch(3), AppendBatch(4, entries=things(3, 5))])
            await trio.sleep(0.1)
            assert disk.calls == ["write 1-1", "write 2-5"]
            assert writer.done_seq == 4
            assert writer.idle
            nursery.cancel_scope.cancel()
        assert writer.ended.is_set()

    @pytest.mark.parametrize("begun", [False, True])
    async def test_a_write_is_bounded(self, begun: bool, autojump_clock: MockClock) -> None:
        disk = Disk()
        writer = LogWriter(as_storage(disk), await hard_state(), nothing, nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            disk.hands = nursery if begun else None
            half = WRITE_MAX_BYTES // 2
            writer.put([AppendBatch(seq, entries=things(seq, seq, size=half)) for seq in range(1, 6)])
            await trio.sleep(0.2)
            assert disk.calls == ["write 1-2", "write 3-4", "write 5-5"]
            nursery.cancel_scope.cancel()

    @pytest.mark.parametrize("begun", [False, True])
    async def test_hard_state_and_truncation_are_durable_before_what_follows(
        self, begun: bool, autojump_clock: MockClock
    ) -> None:
        disk = Disk()
        hard = await hard_state()
        writer = LogWriter(as_storage(disk), hard, nothing, nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            disk.hands = nursery if begun else None
            writer.put(
                [
                    AppendBatch(1, entries=things(5, 5)),
                    AppendBatch(2, truncate_to=EntryId(3, 1, 0, 0), entries=things(4, 4)),
                    AppendBatch(3, hard_state=HardState(term=9, vote="n1")),
                    AppendBatch(4, entries=things(6, 6)),
                ]
            )
            await trio.sleep(0.2)
            assert disk.calls == ["write 5-5", "truncate 3", "write 4-4", "write 6-6"]
            assert (hard.state.term, hard.state.vote) == (9, "n1")
            nursery.cancel_scope.cancel()

    async def test_a_full_disk_is_tried_again_and_nothing_is_reported_meanwhile(
        self, autojump_clock: MockClock
    ) -> None:
        disk = Disk()
        disk.errors = [OSError(errno.ENOSPC, "full")] * 3
        writer = LogWriter(as_storage(disk), await hard_state(), nothing, nothing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            writer.put([AppendBatch(1, entries=things(1, 1))])
            await trio.sleep(1)
            assert (writer.fault, writer.done_seq) == (StorageFault.FULL, 0)
            assert writer.busy_for_s(trio.current_time()) > 0.9
            await trio.sleep(2)
            assert (writer.fault, writer.done_seq) == (None, 1)
            nursery.cancel_scope.cancel()

    async def test_a_disk_error_is_final(self, autojump_clock: MockClock) -> None:
        disk = Disk()
        disk.errors = [OSError(errno.EIO, "broken")]
        writer = LogWriter(as_storage(disk), await hard_state(), nothing, nothing)
        writer.put([AppendBatch(1, entries=things(1, 1)), AppendBatch(2, hard_state=HardState(term=2))])
        await writer.run()
        assert (writer.fault, writer.done_seq, disk.calls) == (StorageFault.FAILED, 0, [])
        assert "broken" in writer.reason

    async def test_damage_ends_the_writer_without_blaming_the_disk(self, autojump_clock: MockClock) -> None:
        disk = Disk()
        disk.errors = [StorageDamaged("rot", 7)]
        writer = LogWriter(as_storage(disk), await hard_state(), nothing, nothing)
        writer.put([AppendBatch(1, entries=things(1, 1))])
        await writer.run()
        assert writer.fault is None
        assert writer.ended.is_set()

    async def test_a_disk_error_of_a_begun_write_is_final_too(self, autojump_clock: MockClock) -> None:
        disk = Disk()
        disk.errors = [OSError(errno.EIO, "broken")]
        told: list[StorageFault | None] = []
        writer = LogWriter(as_storage(disk), await hard_state(), lambda: told.append(writer.fault), nothing)
        async with trio.open_nursery() as nursery:
            disk.hands = nursery
            writer.put([AppendBatch(1, entries=things(1, 1)), AppendBatch(2, hard_state=HardState(term=2))])
            await writer.run()
            writer.put([AppendBatch(3, entries=things(2, 2))])
            await trio.sleep(0.1)
        assert (writer.fault, writer.done_seq, writer.hard_seq, disk.calls) == (StorageFault.FAILED, 0, 0, [])
        assert told == [StorageFault.FAILED]
        assert "broken" in writer.reason

    async def test_it_ends_behind_a_write_that_has_begun_and_begins_no_other(self, autojump_clock: MockClock) -> None:
        disk = Disk()
        writer = LogWriter(as_storage(disk), await hard_state(), nothing, nothing)
        async with trio.open_nursery() as hands:
            disk.hands = hands
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writer.run)
                writer.put([AppendBatch(1, entries=things(1, 1))])
                writer.put([AppendBatch(2, entries=things(2, 2))])
                await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
            assert writer.ended.is_set()
            assert (disk.calls, writer.done_seq) == (["write 1-1"], 1)
            await trio.sleep(1)
        assert disk.calls == ["write 1-1"]

    async def test_what_only_waits_its_turn_is_done_with_what_stands_before_it(self, autojump_clock: MockClock) -> None:
        disk = Disk()
        turns: list[int] = []
        writer = LogWriter(as_storage(disk), await hard_state(), lambda: turns.append(writer.done_seq), nothing)
        async with trio.open_nursery() as nursery:
            disk.hands = nursery
            writer.put([AppendBatch(1)])
            assert (writer.done_seq, turns) == (1, [1])
            writer.put([AppendBatch(2, entries=things(1, 1))])
            writer.put([AppendBatch(3)])
            assert writer.done_seq == 1
            await trio.sleep(0.1)
            assert writer.done_seq == 3


def request(first: int, last: int) -> AppendRequest:
    prev, end = Thing(first - 1), Thing(last)
    return AppendRequest(
        term=1,
        sender="n0",
        to="n1",
        prev=EntryId(prev.index, 1, prev.crc, 0),
        last=EntryId(end.index, 1, end.crc, 0),
        commit=0,
        echo=0,
    )


class TestFeeder:
    async def test_what_is_in_memory_leaves_at_once(self) -> None:
        disk = Disk()
        disk.in_memory = {entry.index: entry for entry in things(1, 5)}
        sent: list[tuple[int, int]] = []
        feeder = Feeder(
            as_storage(disk),
            lambda first, last: [entry for entry in things(6, 8) if first <= entry.index <= last],
            lambda req, entries: sent.append((entries[0].index, entries[-1].index)),
            lambda error: None,
        )
        feeder.push(request(3, 7))
        feeder.push(request(6, 8))
        assert sent == [(3, 7), (6, 8)]

    async def test_requests_leave_in_order_though_one_has_to_be_read(self, autojump_clock: MockClock) -> None:
        disk = Disk()
        disk.on_disk = {entry.index: entry for entry in things(1, 30)}
        disk.in_memory = {entry.index: entry for entry in things(21, 30)}
        sent: list[tuple[int, int, int]] = []
        feeder = Feeder(
            as_storage(disk),
            lambda first, last: (),
            lambda req, entries: sent.append((entries[0].index, entries[-1].index, len(entries))),
            lambda error: None,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(feeder.run)
            feeder.push(request(8, 25))
            feeder.push(request(26, 30))
            assert sent == []
            await trio.sleep(1)
            assert sent == [(8, 25, 18), (26, 30, 5)]
            nursery.cancel_scope.cancel()

    async def test_entries_of_another_leadership_are_dropped(self) -> None:
        disk = Disk()
        disk.in_memory = {index: cast("EntryLike", Thing(index, term=2)) for index in range(1, 9)}
        sent: list[AppendRequest] = []
        feeder = Feeder(
            as_storage(disk), lambda first, last: (), lambda req, entries: sent.append(req), lambda error: None
        )
        feeder.push(request(3, 5))
        assert sent == []


class Counted:
    def __init__(self) -> None:
        self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1


async def test_a_late_tick_counts_as_one(mock_clock: MockClock) -> None:
    node = RaftNode(MemoryNetwork().host("a"), random.Random(1), NodeConfig(tick_ms=20))
    group = Counted()
    node.add("g", group)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            mock_clock.jump(0.021)
            await trio.testing.wait_all_tasks_blocked()
        assert group.ticks == 10
        mock_clock.jump(5)
        await trio.testing.wait_all_tasks_blocked()
        assert group.ticks == 11
        mock_clock.jump(0.021)
        await trio.testing.wait_all_tasks_blocked()
        assert group.ticks == 12
        nursery.cancel_scope.cancel()


async def test_a_log_that_is_not_wanted_any_more_is_not_fetched() -> None:
    """The leader's offer may be older than the installation it asked for."""
    end = EntryId(168, 5, 7, 9000)
    sent: list[int] = []
    asked: list[EntryId] = []

    class Staging:
        async def aclose(self) -> None: ...

    def answer(node: str, fields: Sequence[Any], body: Sequence[bytes]) -> bool:
        sent.append(fields[0])
        if fields[0] == EXPORT:
            installer.receive(node, [PLAN, fields[1], 1, *entry_id_fields(end), [["commitlog/0", 10]]], memoryview(b""))
        return True

    def wanted(last: EntryId) -> bool:
        asked.append(last)
        return False

    async def never(last: EntryId) -> None:
        raise AssertionError("nothing is to be switched")

    installer = Installer(cast("StagingLike", Staging()), answer, wanted, never, 1)
    assert not await installer.install(["n1"])
    assert asked == [end]
    assert sent == [EXPORT, DONE]


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([ASK, TOLD, *INSTALL_CODES]), st.lists(plain, max_size=8), st.binary(max_size=9))
async def test_any_driver_message_is_taken_or_raises_the_codec_error(code: int, fields: list[Any], body: bytes) -> None:
    async def never(last: EntryId) -> None: ...

    def export() -> Any:
        raise AssertionError("nothing is exported here")

    storage = as_storage(Disk())
    whole, view = [code, *fields], memoryview(body)
    try:
        if code == ASK:
            RepairDesk(storage, lambda: 0, lambda *_: True).ask("n1", whole)
        elif code == TOLD:
            Repairer(storage, lambda: (), lambda *_: True).told(whole, view)
        else:
            InstallSource(export, lambda *_: True).receive("n1", whole)
    except CodecError:
        pass
    if code in INSTALL_CODES:
        try:
            Installer(cast("StagingLike", None), lambda *_: True, lambda _: True, never, 1).receive("n1", whole, view)
        except CodecError:
            pass
