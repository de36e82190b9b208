"""What an operator asks and changes: topics, routes, consumer lag, the cluster's replica groups.

There is no metadata across replica groups: a topic exists per group, and the name servers show the union. So a change
goes to the leader of every group, is repeatable, and says of which group it failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime

from trimq.client.dead_letters import DeadLetters, open_dead_letters
from trimq.client.finding import Finding, Track
from trimq.client.instance import Instance, refusal
from trimq.client.model import Position, Queue, Start
from trimq.client.moving import Moving
from trimq.client.received import Received
from trimq.client.route import LEADER_ID, PERM_READ, PERM_WRITE, Route
from trimq.client.timers import Timed, list_timers, recall
from trimq.errors import BadRequest, NoRoute
from trimq.message.names import check_topic, is_system_topic, retry_topic
from trimq.message.trace import TRACE_TOPIC, Step, read_steps
from trimq.wire.body.running import ConsumeDirectlyResult, ConsumerRunningInfo
from trimq.wire.body.stats import ConsumeStats
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.admin import ConsumeStatsHeader, CreateTopicHeader

__all__ = ["Admin", "Cluster", "ClusterGroup", "Lag", "QueueLag", "Topic"]

_STEPS = {"Pub": 0, "SubBefore": 1, "SubAfter": 2}
QUEUES_MAX = 65_535
"""A queue's number has 16 bits in the log's tables."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic and the number of its queues per replica group."""

    name: str
    queues: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class QueueLag:
    """How far a consumer group is in one queue."""

    queue: Queue
    end_offset: int
    """One past the newest message."""
    consumer_offset: int
    behind_since_ms: int
    """Store time of the last consumed message, milliseconds; 0 when the broker does not say."""

    @property
    def messages(self) -> int:
        """Messages not consumed yet."""
        return max(0, self.end_offset - self.consumer_offset)


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a consumer group is, queue by queue, sorted."""

    group: str
    queues: Sequence[QueueLag]

    @property
    def messages(self) -> int:
        """Messages not consumed yet, all queues together."""
        return sum(queue.messages for queue in self.queues)


@dataclass(frozen=True, slots=True)
class ClusterGroup:
    """One replica group as the name server knows it."""

    name: str
    cluster: str
    addresses: Mapping[int, str]
    """Broker id to `ip:port`; id 0 leads."""

    @property
    def leader(self) -> str | None:
        return self.addresses.get(LEADER_ID)


@dataclass(frozen=True, slots=True)
class Cluster:
    """All replica groups, sorted by name."""

    groups: Sequence[ClusterGroup]


class Admin:
    """See the module docstring. `Client.admin`."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._moving = Moving(instance)
        self._finding = Finding(instance)

    async def create_topic(self, name: str, *, queues: int = 8, groups: Sequence[str] | None = None) -> Topic:
        """Create a topic with `queues` queues on each replica group, or change it to that; `groups`: only on these.

        Returns once every group has it; the name server shows it within a moment. Raises the error of the first group
        that refused; calling again is harmless.
        """
        check_topic(name)
        if not 0 < queues <= QUEUES_MAX:
            raise BadRequest(f"queues={queues}: 1 to {QUEUES_MAX} are possible")
        known = {group.name for group in (await self.cluster()).groups}
        chosen = sorted(known if groups is None else groups)
        unknown = [group for group in chosen if group not in known]
        if unknown or not chosen:
            raise NoRoute(
                f"no such replica group: {', '.join(unknown) or 'none is registered'}", advice="see cluster()"
            )
        header = CreateTopicHeader(
            topic=name, read_queue_nums=queues, write_queue_nums=queues, perm=PERM_READ | PERM_WRITE
        )
        for group in chosen:
            command = Command(code=RequestCode.UPDATE_AND_CREATE_TOPIC, ext=header.to_ext())
            answer = await self._instance.call(group, command)
            if answer.code != ResponseCode.SUCCESS:
                raise refusal(answer, group)
        return Topic(name, dict.fromkeys(chosen, queues))

    async def topics(self, *, system: bool = False) -> Sequence[Topic]:
        """All topics, sorted by name; `system`: the system's own and the groups' retry topics too."""
        found = []
        for name in await self._instance.namesrv.topics():
            if not system and (is_system_topic(name) or name.startswith("%")):
                continue
            route = await self._instance.namesrv.route(name)
            if route is not None:
                found.append(Topic(name, {group.name: group.write_queues for group in route.groups}))
        return found

    async def route(self, topic: str) -> Route:
        """Where a topic lives, asked now. Raises `NoRoute` when no broker has it."""
        route = await self._instance.namesrv.route(topic)
        if route is None:
            raise NoRoute(f"no broker has the topic {topic!r}")
        return route

    async def lag(self, group: str) -> Lag:
        """How far a consumer group is in every queue that it has offsets for."""
        header = ConsumeStatsHeader(consumer_group=group)
        queues: list[QueueLag] = []
        for replica_group in (await self.cluster()).groups:
            command = Command(code=RequestCode.GET_CONSUME_STATS, ext=header.to_ext())
            answer = await self._instance.call(replica_group.name, command)
            if answer.code != ResponseCode.SUCCESS:
                continue  # this replica group has never seen the consumer group
            for mq, offsets in ConsumeStats.from_json(answer.body).offsetTable.items():
                if mq.topic == retry_topic(group) and offsets.brokerOffset == 0:
                    continue
                queue = Queue(mq.topic, mq.brokerName, mq.queueId)
                queues.append(QueueLag(queue, offsets.brokerOffset, offsets.consumerOffset, offsets.lastTimestamp))
        return Lag(group, sorted(queues, key=lambda lag: lag.queue))

    def dead_letters(self, group: str) -> AbstractAsyncContextManager[DeadLetters]:
        """What this consumer group gave up on: to look at, and to send again; for the length of the block."""
        return open_dead_letters(self._instance, group)

    async def timers(self, topic: str | None = None, *, limit: int = 1_000) -> Sequence[Timed]:
        """Messages that wait for their time, of one topic or of all, by due time; at most about `limit` per group."""
        found: list[Timed] = []
        for group in (await self.cluster()).groups:
            found += await list_timers(self._instance, group.name, topic or "", limit)
        return sorted(found, key=lambda each: each.due)

    async def cancel_timer(self, timed: Timed) -> bool:
        """Cancel one of them; False when it does not wait any more."""
        return await recall(self._instance, timed.group, timed.topic, timed.recall_handle, "")

    async def reset(
        self, group: str, topic: str, *, to: Position, queue: Queue | None = None, force: bool = True
    ) -> Mapping[Queue, int]:
        """Have a consumer group go on from another place, while it runs: its members are moved at once.

        `to`: a time, an end (`Start`), or with `queue` an offset of it; `queue`: only this one. `force=False` moves
        only where that goes back. Returns the offsets that were set. Raises `BrokerError` when no replica group knows
        the consumer group.
        """
        return await self._moving.reset(group, topic, to, queue=queue, force=force)

    async def skip(self, group: str, topic: str) -> Mapping[Queue, int]:
        """Skip what a consumer group has not consumed: it goes on with what is sent from now on."""
        return await self._moving.reset(group, topic, Start.LAST, queue=None, force=True)

    async def clone(self, source: str, destination: str, topic: str = "") -> None:
        """Have one consumer group stand where another one stands, in one topic or in all of the source's."""
        await self.cluster()
        await self._moving.clone(source, destination, topic)

    async def positions(self, group: str, topic: str) -> Mapping[str, Mapping[Queue, int]]:
        """Client id to the offsets that this member says it has reached; only of those that can say."""
        return await self._moving.positions(group, topic)

    async def message(self, id: str, topic: str = "") -> Received | None:
        """A message by its offset id, or with its topic by its unique id; None when it is not (or no longer) there.

        An offset id works also when the broker whose address is in it is gone: its replica group has the message.
        """
        found = await self._finding.by_offset_id(id)
        if found is None and topic:
            unique = await self._finding.by_key(topic, id, unique=True, since=None, until=None, limit=1)
            found = unique[0] if unique else None
        return found

    async def find(
        self,
        topic: str,
        key: str,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 32,
    ) -> Sequence[Received]:
        """Messages with a business key (or this unique id), newest first, at most 64."""
        return await self._finding.by_key(topic, key, unique=False, since=since, until=until, limit=limit)

    async def track(self, message: Received) -> Sequence[Track]:
        """Who has consumed a message: one answer per consumer group of its topic."""
        return await self._finding.track(message)

    async def trace(self, id: str, trace_topic: str = TRACE_TOPIC) -> Sequence[Step]:
        """What the traces say of a message (by its unique id or a business key), in order of time; at most 64 trace
        messages are looked at. Clients write them where they were told to (`trimq.connect(trace=True)`)."""
        found = await self._finding.by_key(trace_topic, id, unique=False, since=None, until=None, limit=64)
        steps = [step for message in found for step in read_steps(message.body)]
        own = [step for step in steps if id == step.message_id or id in step.keys.split()]
        return sorted(own, key=lambda step: (step.at_ms, _STEPS.get(step.what, 1)))

    async def consume_directly(self, group: str, client_id: str, message: Received) -> ConsumeDirectlyResult:
        """Have one member of a consumer group process a message now, outside its queues and offsets.

        Raises `BrokerError` when that member is not connected (1) or does not answer in time (207).
        """
        return await self._finding.consume_directly(group, client_id, message)

    async def running_info(self, group: str, client_id: str) -> ConsumerRunningInfo:
        """A member's own account of its queues and how fast it works."""
        return await self._finding.running_info(group, client_id)

    async def cluster(self) -> Cluster:
        """All replica groups and their addresses, asked now."""
        info = await self._instance.namesrv.cluster()
        groups = []
        for name, broker in sorted(info.brokerAddrTable.items()):
            addresses = dict(sorted(broker.brokerAddrs.items()))
            self._instance.routes.group(name).routed(addresses)
            groups.append(ClusterGroup(name, broker.cluster, addresses))
        return Cluster(groups)

    async def invoke(self, addr: str, command: Command) -> Command:
        """Send any request to any address and return its answer, whatever its code. Raises `Disconnected`."""
        return await self._instance.remoting.invoke(addr, command)
