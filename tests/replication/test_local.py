"""The local strategy: written (and synced) is acknowledged, whatever the disk does."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from broker.replication.base import GroupFailed, Health, NotLeader, Role, TransferFailed, Verdict
from broker.replication.local import LocalConfig, LocalReplicator
from broker.store.fs_memory import MemoryFileSystem
from tests.replication.small import SEGMENT_BYTES, SmallSource, SmallStore, memory_fs, open_small_store

pytestmark = pytest.mark.trio


class Running:
    def __init__(self, store: SmallStore, source: SmallSource, replicator: LocalReplicator) -> None:
        self.store, self.source, self.replicator = store, source, replicator

    def ok(self) -> list[bytes]:
        return [payload for payload, outcome in self.source.outcomes.items() if outcome.ok]


@asynccontextmanager
async def running(fs: MemoryFileSystem, *, flush_sync: bool = True) -> AsyncIterator[Running]:
    async with open_small_store(fs) as store, trio.open_nursery() as nursery:
        source = SmallSource()
        source.log = store.log
        config = LocalConfig(node_id="n0", client_addr="a:1", flush_sync=flush_sync, segment_bytes=SEGMENT_BYTES)
        replicator = LocalReplicator(store, source, config, random.Random(1))
        await nursery.start(replicator.run)
        yield Running(store, source, replicator)
        nursery.cancel_scope.cancel()


async def test_an_empty_store_is_formed_and_ready(autojump_clock: MockClock) -> None:
    async with running(memory_fs(1)) as r:
        assert r.replicator.is_ready
        status = r.replicator.status()
        assert (status.role, status.term, status.health) == (Role.LEADER, 1, Health.OK)
        assert (status.last, status.commit, status.dispatched) == (1, 1, 1)
        assert r.replicator.replicas.voters == (("n0", "a:1"),)
        assert r.replicator.leader.addr == "a:1"


async def test_what_is_put_is_synced_acknowledged_and_dispatched_in_order(autojump_clock: MockClock) -> None:
    fs = memory_fs(2)
    sent = [b"%d" % number for number in range(5000)]
    async with running(fs) as r:
        for payload in sent:
            assert r.source.put(payload)
        await trio.sleep(1)
        assert r.ok() == sent
        assert [payload for _index, payload in r.store.applied] == sent
        assert r.source.batches < 20
        assert r.replicator.visible() == r.store.log.last.end
        fs.crash(keep=0.0)
    async with running(fs) as r:
        assert [payload for _index, payload in r.store.applied] == sent


async def test_entries_that_do_not_fit_a_segment_begin_the_next(autojump_clock: MockClock) -> None:
    fs = memory_fs(3)
    async with running(fs) as r:
        for number in range(60):
            r.source.put(bytes([number]) * 50_000)
            await trio.sleep(0.01)
        assert len(r.ok()) == 60
        assert len(r.store.log.sealed_segments()) >= 2
    async with running(fs) as r:
        assert len(r.store.applied) == 60


async def test_asynchronous_flush_acknowledges_before_the_sync_and_syncs_soon(autojump_clock: MockClock) -> None:
    fs = memory_fs(4)
    async with running(fs, flush_sync=False) as r:
        fs.stall("sync", 0.2)
        r.source.put(b"x")
        await trio.sleep(0.05)
        assert r.ok() == [b"x"]
        assert r.store.log.durable.index < r.store.log.last.index
        await trio.sleep(1)
        assert r.store.log.durable == r.store.log.last
        fs.crash(keep=0.0)
    async with running(fs) as r:
        assert [payload for _index, payload in r.store.applied] == [b"x"]


async def test_a_full_disk_acknowledges_nothing_and_recovers_with_space(autojump_clock: MockClock) -> None:
    fs = memory_fs(5)
    async with running(fs) as r:
        r.source.put(b"before")
        await trio.sleep(0.1)
        fs.capacity = sum(len(fs.content(path)) for path in fs.paths())
        for number in range(40):
            r.source.put(bytes([number]) * 200_000)
        await trio.sleep(1)
        status = r.replicator.status()
        assert (status.health, status.detail) == (Health.IMPAIRED, "disk full")
        assert not r.replicator.has_room
        done = len(r.ok())
        assert done < 41
        await trio.sleep(5)
        assert any(outcome.verdict is Verdict.UNKNOWN for outcome in r.source.outcomes.values())
        fs.capacity = 1 << 40
        await trio.sleep(2)
        assert r.replicator.status().health is Health.OK
        r.source.put(b"after")
        await trio.sleep(0.5)
        assert b"after" in r.ok()
        assert len(r.store.applied) == 42


async def test_a_disk_error_is_final_and_never_acknowledged(autojump_clock: MockClock) -> None:
    fs = memory_fs(6)
    async with running(fs) as r:
        r.source.put(b"good")
        await trio.sleep(0.1)
        fs.fail("write", "commitlog/*", error=errno.EIO)
        r.source.put(b"bad")
        await trio.sleep(0.1)
        assert r.source.outcomes[b"bad"].verdict is Verdict.UNKNOWN
        assert r.replicator.status().health is Health.IMPAIRED
        assert not r.replicator.is_ready
        assert not r.source.put(b"refused")
        with pytest.raises(NotLeader):
            await r.replicator.barrier()
        assert r.store.applied == [(2, b"good")]


async def test_a_stalled_disk_makes_the_outcome_unknown_after_three_seconds(autojump_clock: MockClock) -> None:
    fs = memory_fs(7)
    async with running(fs) as r:
        fs.stall("write", 10, "commitlog/*", times=1)
        r.source.put(b"slow")
        await trio.sleep(2.5)
        assert not r.source.outcomes
        await trio.sleep(1)
        assert r.source.outcomes[b"slow"].verdict is Verdict.UNKNOWN
        await trio.sleep(10)
        assert [payload for _index, payload in r.store.applied] == [b"slow"]


async def test_admission_pauses_while_the_dispatcher_lags(autojump_clock: MockClock) -> None:
    async with running(memory_fs(8)) as r:
        r.store.held = True
        for number in range(40):
            r.source.put(bytes([number]) * 250_000)
            await trio.sleep(0.01)
        assert not r.replicator.has_room


async def test_drain_settles_everything(autojump_clock: MockClock) -> None:
    async with running(memory_fs(9)) as r:
        for number in range(100):
            r.source.put(b"%d" % number)
        await r.replicator.drain()
        assert len(r.ok()) == 100
        assert not r.replicator.admitting


async def test_there_is_nobody_to_hand_over_to(autojump_clock: MockClock) -> None:
    async with running(memory_fs(10)) as r:
        with pytest.raises(TransferFailed, match="one replica"):
            await r.replicator.transfer()
        assert await r.replicator.barrier() == r.store.log.last.end
        event = await anext(r.replicator.subscribe())
        assert (event.role, event.ready) == (Role.LEADER, True)


async def test_after_a_disk_error_the_group_ends_to_be_opened_anew(autojump_clock: MockClock) -> None:
    fs = memory_fs(11)

    async def until_it_ends() -> None:
        async with running(fs) as r:
            r.source.put(b"good")
            await trio.sleep(0.1)
            fs.fail("write", "commitlog/*", error=errno.EIO)
            r.source.put(b"bad")
            await trio.sleep(60)

    with pytest.raises(ExceptionGroup) as caught:
        await until_it_ends()
    assert caught.group_contains(GroupFailed, match="disk error")
    fs.heal()
    async with running(fs) as r:
        assert r.replicator.is_ready
        assert r.store.applied[0] == (2, b"good")


async def test_a_damaged_log_is_read_only(autojump_clock: MockClock) -> None:
    fs = memory_fs(12)
    async with running(fs) as r:
        for number in range(40):
            r.source.put(bytes([number]) * 60_000)
            await trio.sleep(0.01)
    first = min(path for path in fs.paths() if path.startswith("commitlog/"))
    fs.remove(next(path for path in fs.paths() if path.startswith("side/")))
    fs.flip(first, 4096 + 10)
    async with running(fs) as r:
        assert not r.replicator.is_ready
        assert r.replicator.status().health is Health.DAMAGED
        assert not r.source.put(b"refused")
