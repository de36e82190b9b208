"""The world that breaks on command: real files and real sockets, with what the trouble file says in between."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from broker.store.fs import open_file_system
from trimq.drill.faults import PATTERNS, _cuts
from trimq.drill.leaders import double_terms
from trimq.env import Stream
from trimq.remoting.system import SystemClock, TrioNetwork
from trimq.testing.trouble import Trouble, read_trouble, write_trouble
from trimq.testing.troubled_broker import TroubledClock, TroubledFiles, TroubledNetwork, World


@asynccontextmanager
async def open_world(path: Path) -> AsyncIterator[World]:
    world = World(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.watch)
        yield world
        nursery.cancel_scope.cancel()


async def become(world: World, path: Path, trouble: Trouble) -> None:
    write_trouble(path, trouble)
    with trio.fail_after(5):
        await world.until_it_is(trouble)


def test_trouble_travels_through_its_file(tmp_path: Path) -> None:
    path = tmp_path / "there" / "n0.json"
    assert read_trouble(path) == Trouble()
    trouble = Trouble(cut_to=(9, 10), disk_full=True, stall_ms=5, stall_number=2)
    write_trouble(path, trouble)
    assert read_trouble(path) == trouble


@pytest.mark.parametrize("text", ["", "[]", '{"cut_off": [1]}'])
def test_what_is_no_trouble_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Trouble.from_json(text)


@pytest.mark.trio
async def test_a_full_disk_takes_what_has_room_already(tmp_path: Path) -> None:
    path = tmp_path / "trouble.json"
    async with open_world(path) as world, open_file_system(tmp_path / "store") as real:
        files = TroubledFiles(real, tmp_path / "store", world)
        file = await files.open("log", create=True)
        await file.truncate(4096)
        await become(world, path, Trouble(disk_full=True))
        await file.write(0, [b"fits"], sync=True)
        for attempt in (partial(file.write, 4090, [b"too long"], sync=True), partial(file.truncate, 5000)):
            with pytest.raises(OSError) as caught:
                await attempt()
            assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError):
            await files.open("another", create=True)
        assert (await files.space())[0] == 0
        await become(world, path, Trouble())
        await file.write(4090, [b"too long"], sync=True)
        assert await file.pread(4090, 8) == b"too long"
        assert (await files.space())[0] > 0
        await file.aclose()


@pytest.mark.trio
async def test_a_sync_that_fails_says_so_and_one_that_hangs_waits(tmp_path: Path) -> None:
    path = tmp_path / "trouble.json"
    async with open_world(path) as world, open_file_system(tmp_path / "store") as real:
        file = await TroubledFiles(real, tmp_path / "store", world).open("log", create=True)
        await become(world, path, Trouble(sync_fails=True))
        for attempt in (partial(file.write, 0, [b"x"], sync=True), file.sync):
            with pytest.raises(OSError) as caught:
                await attempt()
            assert caught.value.errno == errno.EIO
        await become(world, path, Trouble(disk_hangs=True))
        done = trio.Event()

        async def write() -> None:
            await file.write(0, [b"late"], sync=True)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            with trio.move_on_after(0.1) as waiting:
                await done.wait()
            assert waiting.cancelled_caught
            await become(world, path, Trouble())
        assert await file.pread(0, 4) == b"late"
        await file.aclose()


@pytest.mark.trio
async def test_a_cut_way_delivers_late_and_only_that_way(tmp_path: Path) -> None:
    path = tmp_path / "trouble.json"
    accepted: list[Stream] = []
    arrived = trio.Event()

    async def keep(stream: Stream) -> None:
        accepted.append(stream)
        arrived.set()
        await trio.sleep_forever()

    async with open_world(path) as world, trio.open_nursery() as nursery:
        network = TroubledNetwork(TrioNetwork(), world)
        port: int = await nursery.start(partial(network.serve, keep, "127.0.0.1", 0))
        stream = await network.connect("127.0.0.1", port)
        await stream.send_all(b"before")
        await arrived.wait()
        assert await accepted[0].receive_some(99) == b"before"

        await become(world, path, Trouble(cut_from=(port,)))
        await accepted[0].send_all(b"held")
        await stream.send_all(b"passes")
        assert await accepted[0].receive_some(99) == b"passes"
        with trio.move_on_after(0.1) as waiting:
            await network.connect("127.0.0.1", port)
        assert waiting.cancelled_caught
        got: list[bytes] = []
        received = trio.Event()

        async def receive() -> None:
            got.append(await stream.receive_some(99))
            received.set()

        nursery.start_soon(receive)
        await trio.sleep(0.1)
        assert not got
        await become(world, path, Trouble())
        with trio.fail_after(5):
            await received.wait()
        assert got == [b"held"]
        await stream.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_the_wall_clock_jumps_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "trouble.json"
    async with open_world(path) as world:
        clock = TroubledClock(SystemClock(), world)
        now = SystemClock().wall_ms()
        for offset in (3_600_000, -3_600_000):
            await become(world, path, Trouble(wall_offset_ms=offset))
            assert abs(clock.wall_ms() - now - offset) < 60_000


def test_every_partition_leaves_a_majority_that_hears_each_other() -> None:
    nodes = ("n0", "n1", "n2")
    for pattern in PATTERNS:
        cuts = _cuts(pattern, "n0", ["n1", "n2"])
        assert cuts, pattern
        whole = [(a, b) for a in nodes for b in nodes if a < b and (a, b) not in cuts and (b, a) not in cuts]
        assert whole, f"{pattern}: no pair is left"


def test_two_nodes_that_led_one_term_are_named(tmp_path: Path) -> None:
    line = (
        "2031-05-01 12:00:00,123 INFO broker.replication.leading: leader is ready  group={} node={} term={} scanned=0\n"
    )
    logs = [tmp_path / "n0.log", tmp_path / "n1.log", tmp_path / "n2.log"]
    logs[0].write_text(line.format("a", "n0", 3) + line.format("b", "n0", 4))
    logs[1].write_text(line.format("a", "n1", 5) + line.format("a", "n1", 3))
    assert double_terms(logs) == ["n0 and n1 both led a in term 3"]
