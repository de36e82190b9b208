"""A leader that is stopped for five seconds under load and then goes on as if nothing had happened.

It believes to lead, its socket buffers hold requests, and nobody told it otherwise. The route must not go back to it,
it must step down, and whatever it says OK to must be found in every replica. Some senders therefore talk to it alone,
with requests that a foreign client would send: no sequence, no retry, no leader hints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

import trimq
from tests.drills.support import local_cluster, quiet, read_and_judge, told_by
from trimq.drill.history import History, Outcome, QueueId, Value, make_body
from trimq.drill.load import Sender, run_sender, warm_up
from trimq.errors import TrimqError
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import ask
from trimq.wire.body.route import TopicRouteData
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.send import SendHeader

GROUP = "broker-a"
TOPIC = "revived"
PAUSE_S = 5.0
AFTER_S = 4.0
RATE_EACH = 150.0
PRODUCERS = 3
STUBBORN = 4
_STUBBORN_NUMBER = 500


@dataclass
class Watch:
    """What the name server and the old leader said, in order, without repetitions."""

    routes: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    looked: int = 0


async def watch_route(asker: RemotingClient, cluster: LocalCluster, seen: Watch) -> None:
    """Which address the name server gives as the group's leader, each 10 ms."""
    while True:
        command = Command(code=RequestCode.GET_ROUTEINFO_BY_TOPIC, ext={"topic": TOPIC})
        answer = await asker.invoke(cluster.namesrv_address, command)
        seen.looked += 1
        leader = "nobody"
        if answer.code == ResponseCode.SUCCESS:
            brokers = TopicRouteData.from_json(bytes(answer.body)).brokerDatas
            leader = next((b.brokerAddrs.get(0, "nobody") for b in brokers if b.brokerName == GROUP), "nobody")
        if not seen.routes or seen.routes[-1] != leader:
            seen.routes.append(leader)
        await trio.sleep(0.01)


async def watch_role(asker: RemotingClient, cluster: LocalCluster, node: str, seen: Watch) -> None:
    while True:
        role = (await told_by(asker, cluster, node, GROUP))["role"]
        if not seen.roles or seen.roles[-1] != role:
            seen.roles.append(role)
        await trio.sleep(0.02)


async def send_to_it_alone(
    asker: RemotingClient, address: str, queue: trimq.Queue, number: int, history: History, stop: trio.Event
) -> None:
    """One request after the other to one address, each with a deadline of its own; silence leaves it unknown."""
    sequence = 0
    while not stop.is_set():
        value = Value(number, sequence)
        sequence += 1
        history.begin(value, QueueId(queue.topic, queue.group, queue.id))
        header = SendHeader(
            producer_group="stubborn", topic=queue.topic, queue_id=queue.id, sys_flag=0, born_timestamp=1
        )
        command = Command(code=RequestCode.SEND_MESSAGE, ext=header.to_ext(), body=make_body(value))
        with trio.move_on_after(0.5):
            try:
                answer = await asker.invoke(address, command)
            except TrimqError:
                history.client_errors += 1
                await trio.sleep(0.05)
                continue
            if answer.code == ResponseCode.SUCCESS:
                history.end(value, Outcome.OK)
        await trio.sleep(0.02)


async def revive(cluster: LocalCluster) -> None:
    history, seen, stop = History(), Watch(), trio.Event()
    async with (
        open_remoting_client(AnyioNetwork()) as asker,
        open_remoting_client(AnyioNetwork()) as stubborn,
        trimq.connect(cluster.namesrv_address) as client,
    ):
        queues = await warm_up(client, TOPIC, cluster.groups, 4)
        await quiet(asker, cluster, GROUP)
        found = (await ask(asker, cluster))[GROUP]
        victim, term = found.leader, found.term
        assert victim is not None
        address = cluster.client_address(victim, GROUP)

        async def produce(number: int) -> None:
            async with client.producer(f"revived-{number}") as producer:
                sender = Sender(number, producer, queues, history)
                await sender.send_one()  # the route is known from here on: sends begun together keep their order
                await run_sender(sender, RATE_EACH, stop)

        async with trio.open_nursery() as watching:
            watching.start_soon(watch_route, asker, cluster, seen)
            watching.start_soon(watch_role, asker, cluster, victim, seen)
            async with trio.open_nursery() as load:
                for number in range(PRODUCERS):
                    load.start_soon(produce, number)
                for number in range(STUBBORN):
                    load.start_soon(
                        send_to_it_alone, stubborn, address, queues[number], _STUBBORN_NUMBER + number, history, stop
                    )
                await trio.sleep(1.5)
                cluster.pause(victim)
                try:
                    await trio.sleep(PAUSE_S)
                finally:
                    cluster.resume(victim)
                await trio.sleep(AFTER_S)
                stop.set()
            await quiet(asker, cluster, GROUP)
            watching.cancel_scope.cancel()

        found = (await ask(asker, cluster))[GROUP]
        assert found.leader not in (None, victim)
        assert found.term > term
        assert found.replicas[victim]["role"] == "follower"
        assert seen.routes[0] == address
        assert address not in seen.routes[1:], seen.routes
        assert seen.routes[-1] == cluster.client_address(found.leader or "", GROUP)
        verdict = await read_and_judge(client, cluster, queues, history)
        stubborn_ok = sum(
            1 for v, (_, o) in history.sends.items() if v.producer >= _STUBBORN_NUMBER and o is Outcome.OK
        )
        print(
            f"revived leader: routes {seen.routes} in {seen.looked} looks, it was {seen.roles}; acked {verdict.acked}"
            f" ({stubborn_ok} of them by it alone), unknown {verdict.unknown}, violations {verdict.violations}"
        )
        assert verdict.violations == 0, verdict.examples
        assert verdict.acked > RATE_EACH * PRODUCERS * (PAUSE_S + AFTER_S) / 2


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_revived_leader_never_takes_the_route_back(tmp_path: Path) -> None:
    with local_cluster(tmp_path, groups=1) as cluster:
        trio.run(revive, cluster)
