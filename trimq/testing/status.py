"""Ask every replica of a local cluster how it is: the figures of `run3.sh status` and of the drill's rounds.

Each replica speaks only for itself (its role, its marks), so all are asked, at once, and their answers are joined;
one that is dead or paused just does not answer in time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import trio

from trimq.errors import TrimqError
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing.local_cluster import ClusterError, LocalCluster
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command

_ANSWER_S = 1.0
_POLL_S = 0.02
_NOT_YET = ("down", "unformed")
_NOT_WELL = (*_NOT_YET, "damaged", "impaired", "failed")
"""What a replica says in place of its role while it neither votes nor acknowledges."""


@dataclass(slots=True)
class GroupStatus:
    """One replica group, as its replicas describe themselves."""

    name: str
    replicas: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Node to what it said: addr, pid, role, term, ready, last, commit, dispatched. Silent nodes have role `down`."""

    @property
    def leader(self) -> str | None:
        """The ready leader of the newest term, or None."""
        leading = [(r["term"], node) for node, r in self.replicas.items() if r["role"] == "leader" and r["ready"]]
        return max(leading)[1] if leading else None

    @property
    def term(self) -> int:
        return max((r["term"] for r in self.replicas.values() if r["role"] != "down"), default=0)

    @property
    def in_sync(self) -> list[str]:
        """Master-slave: the replicas that the master counts, itself included."""
        return list(self.replicas[self.leader].get("inSync", [])) if self.leader is not None else []

    def lag_bytes(self) -> int | None:
        """How far the slowest replica's log is behind the leader's; None while one is not well or nobody leads."""
        if self.leader is None or any(r["role"] in _NOT_WELL for r in self.replicas.values()):
            return None
        ends: list[int] = [int(r["lastPosition"]) for r in self.replicas.values()]
        return max(ends) - min(ends)

    def as_json(self) -> dict[str, Any]:
        return {"leader": self.leader, "term": self.term, "replicas": self.replicas}


async def ask(client: RemotingClient, cluster: LocalCluster, *, answer_s: float = _ANSWER_S) -> dict[str, GroupStatus]:
    """The state of every group, in order. Never raises for a replica that does not answer."""
    groups = {name: GroupStatus(name, {node: {} for node in cluster.nodes}) for name in cluster.groups}

    async def one(node: str, group: str) -> None:
        address = cluster.client_address(node, group)
        found: dict[str, Any] = {"addr": address, "pid": cluster.pids.get(node, 0), "role": "down"}
        with trio.move_on_after(answer_s):
            try:
                answer = await client.invoke(address, Command(code=RequestCode.GROUP_STATUS, ext={"group": group}))
            except (TrimqError, OSError):
                answer = None
            if answer is not None and answer.code == ResponseCode.SUCCESS:
                said = json.loads(bytes(answer.body))
                found |= said["replicas"][said["answeredBy"]]
                found["strategy"] = said["strategy"]
                found.setdefault("term", said["term"])
        groups[group].replicas[node] = found

    async with trio.open_nursery() as nursery:
        for group in cluster.groups:
            for node in cluster.nodes:
                nursery.start_soon(one, node, group)
    return groups


async def wait_ready(client: RemotingClient, cluster: LocalCluster, *, all_replicas: bool = False) -> None:
    """Until every group has a ready leader (and, if asked, every replica answers). The caller sets the deadline.

    Raises ClusterError when a process of the cluster ended meanwhile, with its last words.
    """
    while True:
        for name in cluster.processes:
            if name in cluster.pids and not cluster.running(name):
                raise ClusterError(f"{name} ended:\n{cluster.last_words(name)}")
        groups = await ask(client, cluster)
        if all(
            g.leader is not None
            and (not all_replicas or all(r["role"] not in _NOT_YET for r in g.replicas.values()))
            and (not all_replicas or cluster.strategy == "raft" or len(g.in_sync) == len(cluster.nodes))
            for g in groups.values()
        ):
            return
        await trio.sleep(_POLL_S)


def query(cluster: LocalCluster) -> dict[str, GroupStatus]:
    """`ask`, for a caller without an event loop."""

    async def main() -> dict[str, GroupStatus]:
        async with open_remoting_client(AnyioNetwork()) as client:
            return await ask(client, cluster)

    return trio.run(main)


def wait_ready_blocking(cluster: LocalCluster, *, within_s: float = 30.0, all_replicas: bool = True) -> None:
    """`wait_ready` for a caller without an event loop, of all replicas unless told otherwise.

    Raises ClusterError after `within_s`.
    """

    async def main() -> None:
        async with open_remoting_client(AnyioNetwork()) as client:
            with trio.move_on_after(within_s) as scope:
                await wait_ready(client, cluster, all_replicas=all_replicas)
            if scope.cancelled_caught:
                raise ClusterError(f"no ready leader in every group within {within_s:.0f} s")

    trio.run(main)
