"""The simulated cluster (`trimq.sim`) of one plan, with what the oracle and the nemesis need to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from broker.replication.raft_group import RaftReplicator
from raft.core import Role, VoteReply
from tests.sim.oracle import Oracle
from tests.sim.plan import Plan
from trimq.sim.cluster import CLIENT_IP, NAMESRV, SimClock, SimNode, SimSettings, Simulation
from trimq.sim.deterministic import Trace, VirtualClock
from trimq.sim.disk import SimDisk

__all__ = ["CLIENT_IP", "NAMESRV", "SimClock", "SimNode", "World"]


class World(Simulation):
    """Everything there is in one run."""

    def __init__(
        self,
        clock: VirtualClock,
        plan: Plan,
        trace: Trace,
        oracle: Oracle,
        nursery: trio.Nursery,
        broker: Mapping[str, Any],
    ) -> None:
        settings = SimSettings(
            groups=plan.groups,
            latency_ms=plan.latency_ms,
            jitter_ms=plan.jitter_ms,
            disk_ms=plan.disk_ms,
            disk_jitter_ms=plan.disk_jitter_ms,
            drift=plan.drift,
            rates=plan.rates,
            beat_ms=plan.beat_ms,
            election_ms=plan.election_ms,
            segment_bytes=plan.segment_bytes,
            retention_s=plan.retention_s,
            broker=broker,
        )
        super().__init__(clock, trace, nursery, plan.seed, settings)
        self.plan, self.oracle = plan, oracle
        self.kills = 0
        self._lineages: dict[str, int] = {}
        oracle.disk_of = self._disk_of
        oracle.lineage_of = self.lineage

    def dying(self, node: SimNode) -> None:
        """Count what a crash hits."""
        reached = self.oracle.reached
        for replica in node.broker.replicas if node.broker is not None else ():
            assert isinstance(replica.replicator, RaftReplicator)
            core = replica.replicator._core
            if core is None:
                continue
            if core.role is Role.LEADER:
                self.oracle.deposed(core.last.index - core.commit)
            if any(isinstance(m, VoteReply) for batch in core.writes._taken for m in batch.release):
                reached["crash before a grant"] += 1
        if any(disk.unsynced(path) for disk in node.disks.values() for path in disk.paths()):
            reached["crash with unsynced bytes"] += 1

    def lineage(self, group: str) -> int:
        """Of the group's log; 0 before it is formed."""
        if not self._lineages.get(group):
            for node in self.nodes:
                replica = self.replica(node, group)
                if replica is not None and replica.store.log.lineage:
                    self._lineages[group] = replica.store.log.lineage
        return self._lineages.get(group, 0)

    def _disk_of(self, node: str, lineage: int) -> SimDisk | None:
        for group in self.groups:
            if self.lineage(group) == lineage:
                return self.nodes[int(node[1:])].disks[group]
        return None
