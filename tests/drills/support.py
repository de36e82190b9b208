"""What the drills on real processes share: a cluster for one test, quick bulk load, quiet, and the files of a log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from trimq import Client, Queue
from trimq.drill.history import History
from trimq.drill.load import Sender
from trimq.drill.reader import read_everything
from trimq.drill.verdict import Verdict, judge
from trimq.remoting.client import RemotingClient
from trimq.testing import status
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import wait_ready_blocking

SEGMENT_BYTES = 8 << 20
"""The smallest that a broker takes."""
HEADER_BLOCK_BYTES = 4096
BULK_BODY_BYTES = 60_000
_IN_FLIGHT = 32
_NEVER = 1 << 62
_POLL_S = 0.05
_MiB = 1 << 20


@contextmanager
def local_cluster_of(
    directory: Path, *, founders: int, nodes: int, groups: int, **extra: str
) -> Iterator[LocalCluster]:
    """A ready cluster of `founders` nodes; the others up to `nodes` are configured to join, and not started."""
    settings = {"mapedFileSizeCommitLog": str(SEGMENT_BYTES), **extra}
    cluster = LocalCluster.create(directory, base_port=0, groups=groups, nodes=nodes, extra=settings)
    present = cluster.nodes[:founders]
    for node in present:
        for group in cluster.groups:
            path = cluster.configuration_path(node, group)
            lines = path.read_text().splitlines(keepends=True)
            path.write_text("".join(_only(line, founders) for line in lines))
    try:
        cluster.start("namesrv", *present)
        wait_ready_blocking(cluster, all_replicas=founders == nodes)
        yield cluster
    except BaseException:
        for process in ("namesrv", *cluster.nodes):
            print(f"--- {process}\n{cluster.last_words(process, lines=60)}")
        raise
    finally:
        cluster.stop()


def _only(line: str, founders: int) -> str:
    """The line of a configuration file, with the first peers only."""
    key, _, value = line.partition("=")
    return f"{key}={';'.join(value.strip().split(';')[:founders])}\n" if key == "dLegerPeers" else line


@contextmanager
def local_cluster(directory: Path, *, groups: int, troubled: bool = False, **extra: str) -> Iterator[LocalCluster]:
    """A ready cluster of three nodes with small segments and no preferred leaders; gone when the block ends."""
    settings = {"mapedFileSizeCommitLog": str(SEGMENT_BYTES), "preferredLeaderId": "", **extra}
    cluster = LocalCluster.create(directory, base_port=0, groups=groups, extra=settings, troubled=troubled)
    try:
        cluster.start()
        wait_ready_blocking(cluster)
        yield cluster
    except BaseException:
        for process in cluster.processes:
            print(f"--- {process}\n{cluster.last_words(process, lines=40)}")
        raise
    finally:
        cluster.stop()


async def send_bulk(client: Client, queues: Sequence[Queue], history: History, *, number: int, megabytes: int) -> None:
    """Fill the queues with about so many bytes, through one producer."""
    async with client.producer(f"bulk-{number}", compress_over=_NEVER) as producer:
        sender = Sender(number, producer, queues, history, body_bytes=BULK_BODY_BYTES)
        await sender.send_one()  # the route is known from here on: sends begun together keep their order
        room = trio.Semaphore(_IN_FLIGHT)

        async def one() -> None:
            try:
                await sender.send_one()
            finally:
                room.release()

        async with trio.open_nursery() as nursery:
            for _ in range(megabytes * _MiB // BULK_BODY_BYTES):
                await room.acquire()
                nursery.start_soon(one)


async def told_by(asker: RemotingClient, cluster: LocalCluster, node: str, group: str) -> dict[str, Any]:
    """What one replica says of itself now."""
    return (await status.ask(asker, cluster))[group].replicas[node]


async def quiet(asker: RemotingClient, cluster: LocalCluster, group: str, *, within_s: float = 40.0) -> int:
    """Wait until all replicas hold, have committed and dispatched the same; the position where their logs end."""
    seen: dict[str, Any] = {}
    with trio.move_on_after(within_s):
        while True:
            found = (await status.ask(asker, cluster))[group]
            seen = found.replicas
            if found.leader is not None and all(r["role"] in ("leader", "follower") for r in seen.values()):
                marks = {(r["lastPosition"], r["last"], r["commit"], r["dispatched"]) for r in seen.values()}
                if len(marks) == 1:
                    position, last, commit, dispatched = marks.pop()
                    if last == commit == dispatched:
                        return int(position)
            await trio.sleep(_POLL_S)
    raise AssertionError(f"{group} is not quiet after {within_s:.0f} s: {json.dumps(seen)}")


async def until(condition: Callable[[], bool], what: str, *, within_s: float = 30.0) -> None:
    """Poll a condition of the outside world."""
    with trio.move_on_after(within_s):
        while not condition():  # noqa: ASYNC110 - files and processes wake nobody
            await trio.sleep(_POLL_S)
        return
    raise AssertionError(f"not within {within_s:.0f} s: {what}")


async def read_and_judge(
    client: Client,
    cluster: LocalCluster,
    queues: Sequence[Queue],
    history: History,
    nodes: Sequence[str] | None = None,
) -> Verdict:
    """Read every queue through every node (or these) and judge; a second call judges the new readings alone."""
    history.reads.clear()
    await read_everything(client, cluster, queues, history, nodes)
    return judge(history)


def segments(cluster: LocalCluster, node: str, group: str) -> list[int]:
    """Base positions of the segments that a replica holds, oldest first."""
    return sorted(int(path.name) for path in (cluster.store_path(node, group) / "commitlog").glob("[0-9]" * 20))


def segment_file(cluster: LocalCluster, node: str, group: str, base: int) -> Path:
    return cluster.store_path(node, group) / "commitlog" / f"{base:020d}"


def compare_logs(cluster: LocalCluster, group: str, one: str, other: str, end: int) -> int:
    """Assert that two replicas' log files are equal byte by byte up to position `end`, headers and all.

    Segments that only one still holds are left out. Returns the number of bytes compared.
    """
    common = [base for base in segments(cluster, one, group) if base < end]
    common = [base for base in common if base in segments(cluster, other, group)]
    assert common, f"{one} and {other} have no segment in common"
    assert common[-1] + SEGMENT_BYTES >= end, f"{one} or {other} lacks the segment at the log's end"
    compared = 0
    for base in common:
        size = HEADER_BLOCK_BYTES + min(SEGMENT_BYTES, end - base)
        left, right = (segment_file(cluster, node, group, base).read_bytes()[:size] for node in (one, other))
        assert len(left) == size, f"{one}: segment {base} has {len(left)} bytes of {size}"
        if left != right:
            at = next(i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
            raise AssertionError(f"{one} and {other} differ in segment {base} at byte {at}")
        compared += size
    return compared


def flip_bit(path: Path, offset: int) -> None:
    """One bit of a file turned over, as a rotten sector would."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        assert byte, f"{path} ends before {offset}"
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x04]))


def log_lines(cluster: LocalCluster, node: str, *, since: int = 0) -> str:
    """What a node has logged, from a byte offset on."""
    return cluster.log_path(node).read_bytes()[since:].decode(errors="replace")
