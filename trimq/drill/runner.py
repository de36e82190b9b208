"""One drill from start to verdict: load, rounds of faults, quiet, the final read, the judgement."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import trio

import trimq
from trimq import Client, Queue
from trimq.drill.faults import Blow, mend, strike
from trimq.drill.history import History
from trimq.drill.kinds import Fault
from trimq.drill.leaders import double_terms
from trimq.drill.load import PRODUCERS, SEND_DEADLINE_S, Prober, Sender, run_sender, warm_up
from trimq.drill.reader import read_everything
from trimq.drill.verdict import Verdict, judge, percentiles
from trimq.drill.watch import CONSUMERS, run_consumer, watch_offsets
from trimq.errors import TrimqError
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing import status
from trimq.testing.local_cluster import LocalCluster
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.group import PromoteMasterHeader

QUEUES_PER_GROUP = 4
_SETTLED_LAG_BYTES = 1024 * 1024
_ROUND_DEADLINE_S = 30.0
_QUIET_DEADLINE_S = 40.0
_PROBER_NUMBER = 1000


class _Invalid(Exception):
    """The run proves nothing, and why."""


@dataclass(slots=True, kw_only=True)
class Drill:
    """The plan of a drill against a running cluster."""

    cluster: LocalCluster
    fault: Fault
    rounds: int
    rate: int
    topic: str
    rng: random.Random
    say: Callable[[str], None]
    """Called with one line of progress per round."""
    websocket: bool = False
    """Load and readers come through the WebSocket gateways."""
    history: History = field(default_factory=History)
    failovers_ms: list[float] = field(default_factory=list)
    stalls_ms: list[float] = field(default_factory=list)
    """The longest stretch without an OK in each round, from a prober's seat."""
    probers: dict[str, Prober] = field(default_factory=dict)

    async def run(self) -> Verdict:
        """Run it all. The cluster is up and healed afterwards, unless the verdict says that it never healed."""
        hit, invalid = 0, ""
        async with AsyncExitStack() as stack:
            asker = await stack.enter_async_context(open_remoting_client(AnyioNetwork()))
            address = self.cluster.websocket_address if self.websocket else self.cluster.namesrv_address
            clients = [
                await stack.enter_async_context(trimq.connect(address, default_timeout=SEND_DEADLINE_S))
                for _ in range(CONSUMERS)
            ]
            queues = await warm_up(clients[0], self.topic, self.cluster.groups, QUEUES_PER_GROUP)
            senders = await self._open_senders(stack, clients[0], queues)
            stop = trio.Event()
            async with trio.open_nursery() as readers:
                for client in clients:
                    await readers.start(run_consumer, client, self.topic, self.history)
                async with trio.open_nursery() as load:
                    for sender in senders:
                        load.start_soon(run_sender, sender, self.rate / PRODUCERS, stop)
                    for prober in self.probers.values():
                        load.start_soon(prober.run, stop)
                    load.start_soon(watch_offsets, clients[0], queues, self.history, stop)
                    try:
                        for number in range(self.rounds):
                            await self._round(asker, number)
                            hit += 1
                        await self._settled(asker)
                    except _Invalid as error:
                        invalid = str(error)
                    stop.set()
                    load.cancel_scope.deadline = trio.current_time() + _QUIET_DEADLINE_S
                await self._drained(queues)
                readers.cancel_scope.cancel()
            try:
                await read_everything(clients[0], self.cluster, queues, self.history)
            except TrimqError as error:  # nothing can be judged without it
                invalid = f"{invalid or 'all rounds were hit'}; then what is stored could not be read: {error}"
                return Verdict(rounds=self.rounds, rounds_hit=hit, invalid=invalid)
        verdict = judge(self.history)
        doubles = double_terms(self.cluster.log_path(node) for node in self.cluster.nodes)
        verdict.two_leaders = len(doubles)
        verdict.examples += doubles
        verdict.may_lose = self.cluster.strategy == "async"
        verdict.rounds, verdict.rounds_hit, verdict.invalid = self.rounds, hit, invalid
        verdict.failover_ms = percentiles(self.failovers_ms)
        verdict.stall_ms = percentiles(self.stalls_ms)
        return verdict

    async def _open_senders(self, stack: AsyncExitStack, client: Client, queues: list[Queue]) -> list[Sender]:
        """Producers of the load, and a prober per group; each has sent one message, so its route is known."""
        senders: list[Sender] = []
        for number in range(PRODUCERS):
            producer = await stack.enter_async_context(client.producer(f"drill-{number}"))
            senders.append(Sender(number, producer, queues[number:] + queues[:number], self.history))
            await senders[-1].send_one()
        for at, group in enumerate(self.cluster.groups):
            producer = await stack.enter_async_context(client.producer(f"drill-prober-{group}"))
            own = [queue for queue in queues if queue.group == group]
            self.probers[group] = Prober(Sender(_PROBER_NUMBER + at, producer, own, self.history))
            await self.probers[group].sender.send_one()
        return senders

    async def _round(self, asker: RemotingClient, number: int) -> None:
        group = self.cluster.groups[number % len(self.cluster.groups)]
        leader = await self._settled(asker, group)
        await trio.sleep(self.rng.uniform(0.1, 0.6))  # not always the same moment after healing
        prober = self.probers[group]
        await prober.sender.busy()  # hit in the middle of a write
        blow: Blow = await strike(self.cluster, self.fault, leader, number)
        self.history.blows_at.append(blow.at)
        prober.watch(trio.current_time())
        with trio.move_on_after(_ROUND_DEADLINE_S) as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mend, self.cluster, self.fault, blow, self.rng)
                if self.cluster.strategy != "raft" and self.fault is not Fault.RESTART:
                    nursery.start_soon(self._promote, asker, group, blow.nodes)
                await prober.recovered.wait()
        if waiting.cancelled_caught or prober.recovered_at is None:
            raise _Invalid(f"round {number + 1}: no progress in {group} within {_ROUND_DEADLINE_S:.0f} s")
        took_ms = (prober.recovered_at - blow.at) * 1000
        self.failovers_ms.append(took_ms)
        stall_ms = prober.longest_s * 1000
        self.stalls_ms.append(stall_ms)
        what = " ".join(part for part in (self.fault.value, blow.detail and f"({blow.detail})") if part)
        self.say(
            f"round {number + 1}/{self.rounds}: {what} at {', '.join(blow.nodes)}, leader of {group}: next OK after"
            f" {took_ms:.0f} ms, longest without {stall_ms:.0f} ms"
        )

    async def _promote(self, asker: RemotingClient, group: str, down: tuple[str, ...]) -> None:
        """What an operator does: the slave with the longest log is made master, else the next (`async`: forced)."""
        slaves = [node for node in self.cluster.nodes if node not in down]
        force = self.cluster.strategy == "async"
        told = (await status.ask(asker, self.cluster))[group].replicas
        slaves.sort(key=lambda node: -int(told[node].get("lastPosition", 0)))
        while True:
            for node in slaves:
                header = PromoteMasterHeader(group=group, node=node, force=force)
                command = Command(code=RequestCode.PROMOTE_MASTER, ext=header.to_ext())
                try:
                    answer = await asker.invoke(self.cluster.client_address(node, group), command)
                except TrimqError:
                    continue
                if answer.code == ResponseCode.SUCCESS:
                    return
            await trio.sleep(0.1)

    async def _settled(self, asker: RemotingClient, group: str | None = None) -> str:
        """Wait until every replica answers and is within 1 MiB of its leader; the leader of `group` then.

        Master-slave: masters of other groups that died with the node have to come back by themselves.
        """
        with trio.move_on_after(_ROUND_DEADLINE_S):
            while True:
                groups = await status.ask(asker, self.cluster)
                lags = [found.lag_bytes() for found in groups.values()]
                whole = self.cluster.strategy == "raft" or all(
                    len(found.in_sync) == len(self.cluster.nodes) for found in groups.values()
                )
                if whole and all(lag is not None and lag <= _SETTLED_LAG_BYTES for lag in lags):
                    leader = groups[group or self.cluster.groups[0]].leader
                    assert leader is not None
                    return leader
                await trio.sleep(0.05)
        raise _Invalid(f"the replicas did not catch up within {_ROUND_DEADLINE_S:.0f} s")

    async def _drained(self, queues: list[Queue]) -> None:
        """Give the consumers time to see what was stored; what they miss is not judged, only counted."""
        with trio.move_on_after(_ROUND_DEADLINE_S):
            expected = sum(1 for _, outcome in self.history.sends.values() if outcome.value == "ok")
            while len(self.history.deliveries) < expected:  # noqa: ASYNC110 - the history is a plain value
                await trio.sleep(0.1)
