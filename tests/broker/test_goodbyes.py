"""A consumer that leaves around a change of leaders is gone at once: nobody waits for it as for one that may be silent.

Each test has a member `c2` that is known by the log and says goodbye where the leader that comes next does not hear it,
or where the one that heard it cannot log it any more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from tests.broker.cluster import Cluster, Node, node_ip, open_cluster, until
from tests.broker.support import User, open_user
from trimq.wire.body.consumer_list import ConsumerIdList
from trimq.wire.codes import RequestCode
from trimq.wire.headers.client import ConsumerListHeader, UnregisterClientHeader

pytestmark = pytest.mark.trio

GROUP = "g"


@asynccontextmanager
async def member(cluster: Cluster, client_id: str, *nodes: Node) -> AsyncIterator[list[User]]:
    """A consumer with a connection to each of these nodes."""
    async with AsyncExitStack() as stack:
        users = []
        for node in nodes:
            user = await stack.enter_async_context(open_user(cluster.world, node.replica().address))
            await user.heartbeat(client_id, GROUP, {"T": "*"})
            users.append(user)
        yield users


async def leave(user: User, client_id: str) -> None:
    await user.ask(
        RequestCode.UNREGISTER_CLIENT, UnregisterClientHeader(client_id=client_id, consumer_group=GROUP).to_ext()
    )


async def listed(node: Node, cluster: Cluster) -> list[str]:
    async with open_user(cluster.world, node.replica().address) as user:
        answer = await user.ask(
            RequestCode.GET_CONSUMER_LIST_BY_GROUP, ConsumerListHeader(consumer_group=GROUP).to_ext()
        )
        return ConsumerIdList.from_json(answer.body).consumerIdList


def logged(node: Node) -> tuple[str, ...]:
    info = node.replica().state.groups.get(GROUP)
    return node.replica().state.members.get(info.gid) if info is not None else ()


async def test_a_goodbye_just_before_leadership_is_handed_over(autojump_clock: MockClock) -> None:
    """The next leader has no connection to the member, and sets are logged once a second: now it is logged before."""
    async with open_cluster() as cluster:
        leader = await cluster.ready()
        target = cluster.followers()[0]
        async with member(cluster, "c1", leader, target), member(cluster, "c2", leader) as users:
            await trio.sleep(3)
            assert logged(target) == ("c1", "c2")
            async with member(cluster, "c3", leader, target):  # a change of a moment ago: the next waits for its second
                await trio.sleep(0.1)
                await leave(users[0], "c2")
                assert logged(leader) == ("c1", "c2", "c3")
                await leader.replica().replicator.transfer(target.replica().replicator.node_id)
                assert await cluster.ready() is target
                assert await listed(target, cluster) == ["c1", "c3"]


async def test_a_goodbye_that_only_a_follower_hears_is_passed_on(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        old = await cluster.ready()
        successor, other = cluster.followers()
        async with member(cluster, "c1", old, successor, other), member(cluster, "c2", old, other) as users:
            await trio.sleep(3)
            await old.replica().replicator.transfer(successor.replica().replicator.node_id)
            assert await cluster.ready() is successor
            assert await listed(successor, cluster) == ["c1", "c2"]
            await leave(users[1], "c2")
            await trio.sleep(0.1)
            assert await listed(successor, cluster) == ["c1"]


async def test_a_goodbye_that_the_old_leader_never_heard_was_heard_by_the_next(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        old = await cluster.ready()
        others = cluster.followers()
        async with member(cluster, "c1", old, *others), member(cluster, "c2", old, *others) as users:
            await trio.sleep(3)
            cluster.world.network.cut(node_ip(old.number), [node_ip(node.number) for node in others])
            for user in users[1:]:
                await leave(user, "c2")
            await until(lambda: any(node.replica().ready for node in others))
            successor = next(node for node in others if node.replica().ready)
            assert await listed(successor, cluster) == ["c1"]
