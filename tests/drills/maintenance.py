"""What the drills of planned work share: steady load with a measure of its pauses, and commands to a running cluster.

A *pause* is the time between two acknowledgements that follow each other in one group, while a probe leaves every
5 ms: what a user of that group would notice. A *failed* send is one that ended in an error at our client after all of
its retries.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

import trimq
from tests.drills.support import local_cluster_of, read_and_judge
from trimq import Client
from trimq.cli.admin.group_members import change_members, joining
from trimq.cli.admin.group_view import find_group, own_status
from trimq.cli.admin.session import Session, open_session
from trimq.drill.history import History
from trimq.drill.load import PROBE_EVERY_S, SEND_DEADLINE_S, Sender, run_sender, warm_up
from trimq.drill.verdict import Verdict
from trimq.errors import TrimqError
from trimq.remoting.client import open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing import status
from trimq.testing.local_cluster import LocalCluster
from trimq.wire.headers.group import ChangeMembersHeader

__all__ = ["Site", "local_cluster_of", "open_site"]

QUEUES_PER_GROUP = 2
RATE = 300
WAIT_S = 30.0
SETTLED_LAG_BYTES = 1 << 20


@dataclass(slots=True)
class Pauses:
    """Acknowledgements of one group's probes."""

    last: float = 0.0
    longest_s: float = 0.0

    def ack(self, now: float) -> None:
        if self.last:
            self.longest_s = max(self.longest_s, now - self.last)
        self.last = now

    def reset(self) -> None:
        self.longest_s = 0.0


@dataclass(slots=True)
class Site:
    """A cluster under load, and the hands that work on it."""

    cluster: LocalCluster
    client: Client
    session: Session
    history: History = field(default_factory=History)
    pauses: dict[str, Pauses] = field(default_factory=dict)
    topic: str = "maintenance"
    gone: set[str] = field(default_factory=set)
    """Nodes that left for good: nothing is read through them in the end."""

    def longest_ms(self) -> float:
        """The longest pause in any group since the last call."""
        found = max(each.longest_s for each in self.pauses.values()) * 1000
        for each in self.pauses.values():
            each.reset()
        return found

    # nodes

    async def stop(self, node: str) -> None:
        await trio.to_thread.run_sync(self.cluster.stop, node)

    async def start(self, *nodes: str) -> None:
        await trio.to_thread.run_sync(self.cluster.start, *nodes)

    async def wipe(self, node: str) -> None:
        """The disk of a stopped node is replaced by an empty one."""
        await trio.to_thread.run_sync(shutil.rmtree, self.cluster.directory / "store" / node)

    async def settled(self, nodes: Sequence[str], group: str | None = None) -> None:
        """Until these nodes answer, have a ready leader among them and lag less than 1 MiB."""
        async with open_remoting_client(AnyioNetwork()) as asker:
            with trio.fail_after(WAIT_S):
                while not all(  # noqa: ASYNC110 - other processes wake nobody
                    self._is_settled(found, nodes)
                    for name, found in (await status.ask(asker, self.cluster)).items()
                    if group in (None, name)
                ):
                    await trio.sleep(0.05)

    @staticmethod
    def _is_settled(found: status.GroupStatus, nodes: Sequence[str]) -> bool:
        replicas = [found.replicas[node] for node in nodes]
        if found.leader not in nodes or not all(r["role"] in ("leader", "follower", "learner") for r in replicas):
            return False
        ends = [int(r["lastPosition"]) for r in replicas]
        return max(ends) - min(ends) <= SETTLED_LAG_BYTES

    async def leader(self, group: str) -> str:
        view = await find_group(self.session, group)
        assert view.leader
        return view.leader

    async def leave(self, node: str) -> None:
        """A removed node is stopped for good."""
        self.gone.add(node)
        await self.stop(node)

    # members

    async def add(self, node: str, group: str) -> None:
        """As `trimq admin group add-replica` and `promote-learner`."""
        view = await find_group(self.session, group)
        address = self.cluster.client_address(node, group)
        await self._answers(address)
        await change_members(self.session, view, await joining(self.session, group, address), WAIT_S)
        await change_members(self.session, view, ChangeMembersHeader(group=group, action="promote", node=node), WAIT_S)

    async def remove(self, node: str, group: str, *, maintenance: bool = False) -> None:
        view = await find_group(self.session, group)
        header = ChangeMembersHeader(group=group, action="remove", node=node, maintenance=maintenance)
        await change_members(self.session, view, header, WAIT_S)

    async def remove_by_command(self, node: str, group: str) -> list[str]:
        """`trimq admin group remove-replica` as an operator types it; returns the voters that it tells of."""
        command = ["group", "remove-replica", "-n", self.cluster.namesrv_address, "-g", group, "-r", node, "--json"]
        done = await trio.run_process(
            [sys.executable, "-m", "trimq.cli", "admin", *command],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        said = json.loads(done.stdout)
        assert node not in said["voters"]
        return list(said["voters"])

    async def unregistered(self, node: str, group: str) -> None:
        """Until the name server does not know the node for this group any more."""
        address = self.cluster.client_address(node, group)
        with trio.fail_after(WAIT_S):
            while address in (await self.session.cluster()).brokerAddrTable[group].brokerAddrs.values():  # noqa: ASYNC110
                await trio.sleep(0.05)

    async def voters(self, group: str) -> list[str]:
        view = await find_group(self.session, group)
        return sorted(node for node, each in (view.replicas or {}).items() if not each.learner)

    async def _answers(self, address: str) -> None:
        with trio.fail_after(WAIT_S):
            while True:
                try:
                    await own_status(self.session, address)
                except TrimqError:
                    await trio.sleep(0.05)
                else:
                    return


@asynccontextmanager
async def open_site(cluster: LocalCluster, verdicts: list[Verdict]) -> AsyncIterator[Site]:
    """Load on every group for as long as the block runs; then everything is read back and judged."""
    async with (
        trimq.connect(cluster.namesrv_address, default_timeout=SEND_DEADLINE_S) as client,
        open_session(cluster.namesrv_address) as session,
    ):
        site = Site(cluster, client, session)
        queues = await warm_up(client, site.topic, cluster.groups, QUEUES_PER_GROUP)
        stop = trio.Event()
        async with client.producer("load") as producer, trio.open_nursery() as nursery:
            sender = Sender(0, producer, queues, site.history)
            await sender.send_one()
            nursery.start_soon(run_sender, sender, RATE, stop)
            for number, group in enumerate(cluster.groups):
                own = [queue for queue in queues if queue.group == group]
                prober = Sender(1 + number, producer, own, site.history)
                site.pauses[group] = Pauses()
                nursery.start_soon(_probe, prober, site.pauses[group], stop)
            await trio.sleep(0.5)
            site.longest_ms()
            try:
                yield site
                await trio.sleep(0.3)
            finally:
                stop.set()
        left = [node for node in cluster.nodes if node not in site.gone]
        verdicts.append(await read_and_judge(client, cluster, queues, site.history, left))


async def _probe(sender: Sender, pauses: Pauses, stop: trio.Event) -> None:
    async def one() -> None:
        answered = await sender.send_one()
        if answered is not None:
            pauses.ack(answered)

    async with trio.open_nursery() as nursery:
        while not stop.is_set():
            nursery.start_soon(one)
            await trio.sleep(PROBE_EVERY_S)
