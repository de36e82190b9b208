"""Break a local cluster on purpose and mend it again, one round at a time.

The victim is chosen by role, not by name: the ready leader of the group whose turn it is. A fault is struck in two
calls, `strike` and `mend`, so that the runner can note the moment of the blow itself: `strike` returns the reading of
the clock taken just before the signal went out (for `restart`: before the last process was started again).

Signals need nothing but the process. `kernel-partition` needs nodes in network namespaces of their own
(`trimq.testing.namespaces`). The other faults are *trouble* (`trimq.testing.trouble`): they need a cluster
whose nodes live in a world that breaks on command, which the drill starts for itself.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from trimq.drill.kinds import Fault
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.trouble import Trouble

__all__ = ["PATTERNS", "Blow", "mend", "strike"]


PATTERNS = ("leader cut off", "leader unheard", "leader deaf", "bridge", "flapping", "follower cut off")
"""Partitions, in the order of the rounds.

Unheard: nobody hears the leader, it hears everybody. Deaf: the other way round. Bridge: the leader and one follower do
not reach each other, both reach the third node. Flapping: the leader is cut off and reached again four times a second.
"""

_BACK_AFTER_S = (1.0, 3.0)
_FLAP_S = 0.125
_SLOW_SYNC_MS = 200
_STALL_MS = 1500
_CLOCK_JUMP_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault that was struck."""

    at: float
    """`trio.current_time()` just before the signal (restart: before the last start)."""
    nodes: tuple[str, ...]
    detail: str = ""
    """What exactly was done, when the fault has several kinds."""
    cuts: frozenset[tuple[str, str]] = field(default_factory=frozenset)
    """(from, to): what is sent that way does not arrive."""


async def strike(cluster: LocalCluster, fault: Fault, leader: str, number: int) -> Blow:
    """Strike now, in round `number` (from 0). When it returns the signal is out; the victim of a kill is gone."""
    at = trio.current_time()
    match fault:
        case Fault.PAUSE:
            cluster.pause(leader)
        case Fault.KILL:
            cluster.signal(leader, signal.SIGKILL)
        case Fault.RESTART:
            return await _restart(cluster)
        case Fault.PARTITION | Fault.KERNEL_PARTITION:
            pattern = PATTERNS[number % len(PATTERNS)]
            cuts = _cuts(pattern, leader, [node for node in cluster.nodes if node != leader])
            await _cut(cluster, cuts)
            return Blow(at, (leader,), pattern, cuts)
        case _:
            cluster.trouble(leader, _trouble(fault, number))
    return Blow(at, (leader,))


async def mend(cluster: LocalCluster, fault: Fault, blow: Blow, rng: random.Random) -> None:
    """Bring the victim back after its time. Safe to call for a restart, which mends itself."""
    if fault is Fault.RESTART:
        return
    back_at = blow.at + rng.uniform(*_BACK_AFTER_S)
    if blow.detail == "flapping":
        await _flap(cluster, blow, back_at)
    await trio.sleep_until(back_at)
    for node in blow.nodes:
        match fault:
            case Fault.PAUSE:
                cluster.resume(node)
            case Fault.KILL:
                await trio.to_thread.run_sync(cluster.await_gone, node)
                cluster.start(node)
            case Fault.PARTITION | Fault.KERNEL_PARTITION:
                await _cut(cluster, ())
            case _:
                cluster.trouble(node, Trouble())


async def _restart(cluster: LocalCluster) -> Blow:
    for node in cluster.nodes:
        cluster.signal(node, signal.SIGKILL)
    await trio.to_thread.run_sync(cluster.await_gone, *cluster.nodes)
    for node in cluster.nodes[:-1]:
        cluster.start(node)
    at = trio.current_time()
    cluster.start(cluster.nodes[-1])
    return Blow(at, tuple(cluster.nodes))


def _trouble(fault: Fault, number: int) -> Trouble:
    match fault:
        case Fault.DISK_FULL:
            return Trouble(disk_full=True)
        case Fault.DISK_ERROR:
            return Trouble(sync_fails=True)
        case Fault.DISK_SLOW:
            return Trouble(sync_delay_ms=_SLOW_SYNC_MS)
        case Fault.DISK_HANG:
            return Trouble(disk_hangs=True)
        case Fault.STALL:
            return Trouble(stall_ms=_STALL_MS, stall_number=number + 1)
        case Fault.CLOCK:
            return Trouble(wall_offset_ms=_CLOCK_JUMP_MS if number % 2 == 0 else -_CLOCK_JUMP_MS)
    raise AssertionError(f"{fault} is no trouble")


def _cuts(pattern: str, leader: str, others: list[str]) -> frozenset[tuple[str, str]]:
    """(from, to) of every direction that a partition cuts."""
    match pattern:
        case "leader cut off" | "flapping":
            return frozenset(pair for node in others for pair in ((leader, node), (node, leader)))
        case "leader unheard":
            return frozenset((leader, node) for node in others)
        case "leader deaf":
            return frozenset((node, leader) for node in others)
        case "bridge":
            return frozenset({(leader, others[0]), (others[0], leader)})
        case "follower cut off":
            return frozenset(pair for node in (leader, *others[1:]) for pair in ((others[0], node), (node, others[0])))
    raise AssertionError(f"no partition is called {pattern!r}")


async def _cut(cluster: LocalCluster, cuts: Iterable[tuple[str, str]]) -> None:
    """Cut exactly these directions, and mend all others: in the kernel where it can, else at the brokers' gates."""
    cuts = frozenset(cuts)
    if cluster.namespaces:
        await cluster.namespaces.cut(cuts)
        return
    port = {node: cluster.layout.peer(i) for i, node in enumerate(cluster.nodes)}
    for node in cluster.nodes:
        to = tuple(sorted(port[there] for here, there in cuts if here == node))
        back = tuple(sorted(port[there] for there, here in cuts if here == node))
        cluster.trouble(node, Trouble(cut_to=to, cut_from=back))


async def _flap(cluster: LocalCluster, blow: Blow, until: float) -> None:
    cut = True
    while trio.current_time() < until:
        await trio.sleep(_FLAP_S)
        cut = not cut
        await _cut(cluster, blow.cuts if cut else ())
