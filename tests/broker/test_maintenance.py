"""Planned work on a group of real brokers under load of the real client: rolling restarts, replaced disks.

The network is in memory and time is virtual: what is shown here is that no send fails and nothing is lost; how long a
pause is on a real machine `tests/drills/test_maintenance.py` prints.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from namesrv.config import NamesrvConfig
from namesrv.server import serve_namesrv
from tests.broker.cluster import NAMESRV, Cluster, Node, open_cluster, until
from tests.broker.support import LoopClock, World, messages, open_user
from trimq import Message, Producer
from trimq.client.client import open_client
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.group import ChangeMembersHeader, CreateGroupHeader

pytestmark = pytest.mark.trio

GROUP = "broker-a"
TOPIC = "T"
EVERY_S = 0.005


@dataclass
class Load:
    """One message each 5 ms, whether or not the ones before are acknowledged."""

    producer: Producer
    acked: list[bytes] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    longest_pause_s: float = 0.0
    last_ack: float = 0.0

    async def run(self, stop: trio.Event) -> None:
        async with trio.open_nursery() as nursery:
            number = 0
            while not stop.is_set():
                nursery.start_soon(self._send, b"%d" % number)
                number += 1
                await trio.sleep(EVERY_S)

    async def _send(self, body: bytes) -> None:
        try:
            await self.producer.send(Message(topic=TOPIC, body=body))
        except Exception as error:
            self.failed.append(f"{body!r}: {error!r}")
            return
        now = trio.current_time()
        if self.last_ack:
            self.longest_pause_s = max(self.longest_pause_s, now - self.last_ack)
        self.last_ack = now
        self.acked.append(body)


@asynccontextmanager
async def site() -> AsyncIterator[tuple[Cluster, Load]]:
    world = World()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_namesrv, NamesrvConfig(), world.at(NAMESRV.partition(":")[0])))
        allowed = ("10.0.9.0/24",)
        async with open_cluster(world=world, namesrv=(NAMESRV,), admin_allow=allowed) as cluster:
            await cluster.ready()
            made = open_client(NAMESRV, world.at("10.0.9.1"), LoopClock(), random.Random(1), client_id="load")
            async with made as client, client.producer() as producer:
                await client.admin.create_topic(TOPIC, queues=1)
                load, stop = Load(producer), trio.Event()
                async with trio.open_nursery() as sending:
                    sending.start_soon(load.run, stop)
                    await trio.sleep(0.5)
                    yield cluster, load
                    await trio.sleep(0.5)
                    stop.set()
            await everything_is_there(cluster, load)
        nursery.cancel_scope.cancel()


async def everything_is_there(cluster: Cluster, load: Load) -> None:
    """Read from every replica: each acknowledged message once."""
    assert not load.failed
    assert len(load.acked) > 100
    await until(lambda: len({node.replica().store.dispatched for node in cluster.nodes}) == 1)
    for node in cluster.nodes:
        found: list[bytes] = []
        async with open_user(cluster.world, node.replica().address) as user:
            while True:
                answer = await user.pull(TOPIC, 0, len(found), hold_ms=0)
                if answer.code != ResponseCode.SUCCESS:
                    break
                found += [message.body for message in messages(answer)]
        assert sorted(found, key=int) == sorted(load.acked, key=int)
        assert len(set(found)) == len(found)


async def change(cluster: Cluster, action: str, node: str, **fields: object) -> None:
    """As `trimq admin group ...`: to any replica, again while only time is missing."""
    header = ChangeMembersHeader(group=GROUP, action=action, node=node, **fields)  # type: ignore[arg-type]
    with trio.fail_after(20):
        while True:
            asked = next(n for n in cluster.nodes if n.broker is not None and f"n{n.number}" != node)
            async with open_user(cluster.world, asked.replica().address) as user:
                answer = await user.ask(RequestCode.CHANGE_GROUP_MEMBERS, header.to_ext())
            if answer.code == ResponseCode.SUCCESS:
                return
            later = (ResponseCode.SYSTEM_BUSY, ResponseCode.SERVICE_NOT_AVAILABLE)
            assert answer.code in later, answer.remark
            await trio.sleep(0.1)


async def test_a_rolling_restart_fails_no_send_and_pauses_less_than_an_election(autojump_clock: MockClock) -> None:
    async with site() as (cluster, load):
        for node in cluster.nodes:
            await node.stop()
            await node.start()
            await cluster.ready()
            await until(lambda: len({each.replica().store.log.last.index for each in cluster.nodes}) <= 2)
            await trio.sleep(0.5)
        assert load.longest_pause_s < 0.1


@pytest.mark.slow
async def test_each_replica_is_replaced_by_an_empty_one_under_load(autojump_clock: MockClock) -> None:
    async with site() as (cluster, load):
        for node in cluster.nodes:
            await replace(cluster, node)
        assert load.longest_pause_s < 1.0


async def replace(cluster: Cluster, node: Node) -> None:
    name = f"n{node.number}"
    await node.stop()
    del cluster.world.disks[f"{name}/{GROUP}"]
    await change(cluster, "remove", name, maintenance=True)
    await node.start()
    status = node.replica().replicator.status()
    await change(
        cluster,
        "add",
        name,
        peer_addr=status.peer_address,
        client_addr=node.replica().address,
        store_uuid=status.store_uuid,
    )
    await change(cluster, "promote", name)
    await until(lambda: name in dict(node.replica().replicator.replicas.voters))


async def test_a_change_from_elsewhere_is_refused(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        async with open_user(cluster.world, leader.replica().address) as user:
            ext = ChangeMembersHeader(group=GROUP, action="remove", node="n1").to_ext()
            answer = await user.ask(RequestCode.CHANGE_GROUP_MEMBERS, ext)
            assert answer.code == ResponseCode.NO_PERMISSION


async def test_running_brokers_take_a_new_group_and_have_it_again_after_a_restart(autojump_clock: MockClock) -> None:
    async with open_cluster(admin_allow=("10.0.9.0/24",)) as cluster:
        await cluster.ready()
        peers = ";".join(f"n{n.number}-10.0.0.{n.number + 1}:40911" for n in cluster.nodes)
        addresses: list[str] = []

        async def take(node: Node, group: str = "broker-x", peers: str = peers) -> Command:
            header = CreateGroupHeader(group=group, node=f"n{node.number}", peers=peers)
            async with open_user(cluster.world, node.replica().address) as user:
                return await user.ask(RequestCode.CREATE_GROUP, header.to_ext())

        for node in cluster.nodes:
            answer = await take(node)
            assert answer.code == ResponseCode.SUCCESS, answer.remark
            addresses.append(answer.ext["addr"])
        assert addresses == [f"10.0.0.{each}:10931" for each in (1, 2, 3)]
        await cluster.ready(1)
        async with open_user(cluster.world, addresses[1]) as user:
            assert (await user.send("T", b"in the new group")).code == ResponseCode.SUCCESS
        assert (await take(cluster.nodes[0])).ext["addr"] == addresses[0], "asked again: nothing happens"
        refused = await take(cluster.nodes[0], "broker-y", "n0-10.0.0.9:1;n1-10.0.0.2:40911")
        assert refused.code == ResponseCode.INVALID_PARAMETER
        assert "must have this process's own peer address" in refused.remark
        for node in cluster.nodes:
            await node.stop()
        for node in cluster.nodes:
            await node.start()
        await cluster.ready(1)
        await until(lambda: len({node.replica(1).store.dispatched for node in cluster.nodes}) == 1)
        for node in cluster.nodes:
            assert node.replica(1).config.broker_name == "broker-x"
            async with open_user(cluster.world, node.replica(1).address) as user:
                (message,) = messages(await user.pull("T", 0, 0, hold_ms=0))
                assert message.body == b"in the new group"
