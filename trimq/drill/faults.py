"""Break a local cluster on purpose and mend it again, one round at a time.

The victim is chosen by role, not by name: the ready leader of the group whose turn it is. A fault is struck in two
calls, `strike` and `mend`, so that the runner can note the moment of the blow itself: `strike` returns the reading of
the clock taken just before the signal went out (for `restart`: before the last process was started again).
"""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass
from enum import Enum

import trio

from trimq.testing.local_cluster import LocalCluster


class Fault(Enum):
    """What a round does to its victim."""

    KILL = "kill"
    """kill -9 of the leader, started again after 1-3 s."""
    PAUSE = "pause"
    """SIGSTOP of the leader, SIGCONT after 1-3 s: a leader that still believes."""
    RESTART = "restart"
    """kill -9 of all nodes at once, then all are started."""


_BACK_AFTER_S = (1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault that was struck."""

    at: float
    """`trio.current_time()` just before the signal (restart: before the last start)."""
    nodes: tuple[str, ...]


async def strike(cluster: LocalCluster, fault: Fault, leader: str) -> Blow:
    """Strike now. When it returns the signal is out; the victim of a kill is gone."""
    if fault is Fault.PAUSE:
        at = trio.current_time()
        cluster.pause(leader)
        return Blow(at, (leader,))
    if fault is Fault.KILL:
        at = trio.current_time()
        cluster.signal(leader, signal.SIGKILL)
        return Blow(at, (leader,))
    for node in cluster.nodes:
        cluster.signal(node, signal.SIGKILL)
    await trio.to_thread.run_sync(cluster.await_gone, *cluster.nodes)
    for node in cluster.nodes[:-1]:
        cluster.start(node)
    at = trio.current_time()
    cluster.start(cluster.nodes[-1])
    return Blow(at, tuple(cluster.nodes))


async def mend(cluster: LocalCluster, fault: Fault, blow: Blow, rng: random.Random) -> None:
    """Bring the victim back after its time. Safe to call for a restart, which mends itself."""
    if fault is Fault.RESTART:
        return
    await trio.sleep_until(blow.at + rng.uniform(*_BACK_AFTER_S))
    for node in blow.nodes:
        if fault is Fault.PAUSE:
            cluster.resume(node)
        else:
            await trio.to_thread.run_sync(cluster.await_gone, node)
            cluster.start(node)
