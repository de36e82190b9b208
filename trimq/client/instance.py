"""What everything of one client shares: connections, routes, capabilities, heartbeats.

One `Instance` per `trimq.connect`, whatever number of producers and consumers; to the brokers it is one client id. It
keeps
- the routes of the topics in use, asked again every 30 s and whenever an answer says that they are old,
- a view of every replica group (who leads, by the newest term heard),
- per connection what the other side can do: HELLO goes first on each new one. Apache's brokers answer that they do
  not know it; then nothing of ours is ever sent to them,
- the memberships, told to all brokers every 30 s and at once when they change.

Calls that only a leader can answer go through `call`: it follows leader hints, at most three hops, then waits a
little and asks the name server again, until the one deadline of the call.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import anyio
import anyio.abc

from trimq.client.namesrv import NameServers
from trimq.client.route import DEFAULT_TOPIC, GroupView, Route
from trimq.client.timing import Backoff, deadline_for
from trimq.env import Clock, Network
from trimq.errors import BrokerError, Busy, Denied, Disconnected, NoRoute, TrimqError
from trimq.remoting.client import Channel, RemotingClient, open_remoting_client
from trimq.wire.body.group import Hello
from trimq.wire.body.heartbeat import ConsumerData, HeartbeatData, ProducerData
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command, encode
from trimq.wire.headers.client import NotifyIdsChangedHeader, UnregisterClientHeader
from trimq.wire.headers.leader import LeaderHint

__all__ = ["Consuming", "Instance", "Link", "open_instance"]

log = logging.getLogger(__name__)

HEARTBEAT_S = 30.0
ROUTE_REFRESH_S = 30.0
ROUTE_MISSING_S = 1.0
"""A topic that is wanted and not there yet is asked for this often: "subscribe, then send" must not wait for 30 s."""

ROUTE_EXPECTED_S = 0.05
"""One that was just created is asked for after this, then at doubling intervals: its brokers register within 50 ms."""

HELLO_S = 1.0
"""A server that does not answer HELLO in this time is frozen or gone."""

ATTEMPT_S = 3.0
"""One attempt of a call that is not held on purpose; then another replica is asked."""

PING_S = 1.0
"""A connection with requests in flight is asked for a sign of life this often (brokers of ours only)."""

DEAD_S = 3.0
"""One that gives none for so long is closed. A frozen process keeps its connections, and a held pull would wait for
it."""

HOPS_MAX = 3
"""Leader hints followed, or replicas tried, before waiting."""

NOT_NOW = frozenset(
    {
        ResponseCode.SERVICE_NOT_AVAILABLE,
        ResponseCode.SYSTEM_BUSY,
        ResponseCode.NOT_STORED,
        ResponseCode.OUTCOME_UNKNOWN,
        ResponseCode.GO_AWAY,
        ResponseCode.FLOW_CONTROL,
    }
)
"""Answers that ask for another attempt of a call that may be repeated."""


@dataclass(frozen=True, slots=True)
class Link:
    """An open connection to a broker, and what that broker can do."""

    addr: str
    channel: Channel
    ours: bool
    """It answered HELLO: sequences, leader fields and our codes are understood."""


class Consuming(Protocol):
    """A consumer, as the instance sees it."""

    group: str

    def heartbeat_data(self) -> ConsumerData: ...

    def ids_changed(self) -> None:
        """The members of the group changed (a broker's notice, code 40)."""
        ...

    def route_changed(self, topic: str) -> None: ...


class Instance:
    """See the module docstring. Made by `open_instance`."""

    def __init__(
        self,
        namesrv: tuple[str, ...],
        remoting: RemotingClient,
        clock: Clock,
        rng: random.Random,
        tasks: anyio.abc.TaskGroup,
        client_id: str,
        default_timeout: float,
    ) -> None:
        self.client_id = client_id
        self.clock = clock
        self.rng = rng
        self.tasks = tasks
        self.default_timeout = default_timeout
        self.remoting = remoting
        self.namesrv = NameServers(namesrv, remoting, rng)
        self._routes: dict[str, Route] = {}
        self._asking: dict[str, anyio.Event] = {}
        self._wanted: dict[str, int] = {}
        self._groups: dict[str, GroupView] = {}
        self._links: dict[str, Link] = {}
        self._greeting: dict[str, anyio.Event] = {}
        self._pinged: dict[str, float] = {}
        """Address to the time of a ping that has no answer yet."""
        self._ours: dict[str, bool] = {}
        self._producers: dict[str, int] = {}
        self._consumers: list[Consuming] = []
        self._route_watchers: list[Callable[[str], None]] = []
        self._beat_now = anyio.Event()
        self._refresh_now = anyio.Event()
        self._missing_pause = ROUTE_EXPECTED_S

    # Routes

    def known_route(self, topic: str) -> Route | None:
        """The route as last heard, without asking."""
        return self._routes.get(topic)

    def group(self, name: str) -> GroupView:
        """What is known of a replica group."""
        view = self._groups.get(name)
        if view is None:
            view = self._groups[name] = GroupView(name)
        return view

    async def route(self, topic: str) -> Route:
        """The route of a topic that exists, waiting a moment for one that was just created.

        Raises `NoRoute`, which names the missing link.
        """
        patience = anyio.current_time() + ROUTE_MISSING_S
        backoff = Backoff(self.rng)
        route = self._routes.get(topic) or await self.refresh(topic)
        while route is None and anyio.current_time() < patience:
            await anyio.sleep(backoff.next_s())
            route = await self.refresh(topic)
        if route is None:
            raise NoRoute(
                f"no broker has the topic {topic!r}", advice="create it, or send to it where auto-creation is on"
            )
        return route

    async def publish_route(self, topic: str, queues: int) -> tuple[Route, bool]:
        """The route for sending, and whether the topic exists; if not, the route that auto-creation will make."""
        route = self._routes.get(topic) or await self.refresh(topic)
        if route is not None:
            return route, True
        template = await self.refresh(DEFAULT_TOPIC)
        if template is None:
            raise NoRoute(
                f"no broker has the topic {topic!r}, and none creates topics by itself",
                advice="create the topic, or set autoCreateTopicEnable=true on the brokers",
            )
        return template.provisional(topic, queues), False

    async def refresh(self, topic: str) -> Route | None:
        """Ask the name server for a route now; None when no broker has the topic (an old route is kept and returned).

        Callers that ask for the same topic at the same time share one question. Raises `NoRoute` when nobody answers.
        """
        while (asking := self._asking.get(topic)) is not None:
            await asking.wait()
            if topic in self._routes:
                return self._routes[topic]
        done = self._asking[topic] = anyio.Event()
        try:
            route = await self.namesrv.route(topic)
        finally:
            del self._asking[topic]
            done.set()
        if route is not None:
            self._learn(topic, route)
        return self._routes.get(topic)

    def _learn(self, topic: str, route: Route) -> None:
        before = self._routes.get(topic)
        self._routes[topic] = route
        for group in route.groups:
            known = group.name in self._groups
            self.group(group.name).routed(group.addresses)
            if not known and (self._producers or self._consumers):
                self.beat_soon()
        if before != route:
            for consumer in self._consumers:
                consumer.route_changed(topic)
            for watcher in self._route_watchers:
                watcher(topic)

    def watch_routes(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call back with each topic whose route changed; returns the call that ends this."""
        self._route_watchers.append(callback)
        return lambda: self._route_watchers.remove(callback)

    def want(self, topic: str) -> None:
        """Keep this topic's route fresh, also while nobody has the topic."""
        self._wanted[topic] = self._wanted.get(topic, 0) + 1
        self.expect(topic)

    def expect(self, topic: str) -> None:
        """A wanted topic that nobody had may be there in the next moment."""
        if topic not in self._routes:
            self._missing_pause = ROUTE_EXPECTED_S
            self._refresh_now.set()

    def unwant(self, topic: str) -> None:
        """Undo one `want`."""
        self._wanted[topic] -= 1
        if not self._wanted[topic]:
            del self._wanted[topic]

    async def _keep_routes(self) -> None:
        next_full = anyio.current_time() + ROUTE_REFRESH_S
        while True:
            pause = next_full - anyio.current_time()
            if any(topic not in self._routes for topic in self._wanted):
                pause = min(self._missing_pause, pause)
                self._missing_pause = min(2 * self._missing_pause, ROUTE_MISSING_S)
            with anyio.move_on_after(max(pause, 0)):
                await self._refresh_now.wait()
            self._refresh_now = anyio.Event()
            topics = [topic for topic in self._wanted if topic not in self._routes]
            if anyio.current_time() >= next_full:
                next_full = anyio.current_time() + ROUTE_REFRESH_S
                topics = list(dict.fromkeys([*self._wanted, *self._routes]))
            for topic in topics:
                try:
                    await self.refresh(topic)
                except TrimqError as error:
                    log.info("route not refreshed", extra={"topic": topic, "error": error})
                    break

    # Links and calls

    def open_link(self, addr: str) -> Link | None:
        """The link to this address if it is open now."""
        link = self._links.get(addr)
        return None if link is None or link.channel.closed else link

    async def link(self, addr: str) -> Link:
        """An open link to a broker; on a new connection HELLO goes first. Raises `Disconnected`."""
        while True:
            link = self.open_link(addr)
            if link is not None:
                return link
            greeting = self._greeting.get(addr)
            if greeting is None:
                return await self._greet(addr)
            await greeting.wait()

    async def _greet(self, addr: str) -> Link:
        done = self._greeting[addr] = anyio.Event()
        try:
            channel = await self.remoting.channel(addr)
            hello = Command(code=RequestCode.HELLO, body=Hello.ours(self.client_id).to_json())
            try:
                with anyio.fail_after(HELLO_S):
                    answer = await channel.invoke(hello)
            except TimeoutError as error:
                channel.close(f"{addr} did not answer HELLO within {HELLO_S:g} s")
                raise Disconnected(channel.close_reason) from error
            ours = answer.code == ResponseCode.SUCCESS and "sequences" in Hello.from_json(answer.body).features
            link = self._links[addr] = Link(addr, channel, ours)
            self._introduce(link)
            return link
        finally:
            del self._greeting[addr]
            done.set()

    async def _keep_watch(self) -> None:
        """Close connections that have gone silent, so that whoever waits on them goes elsewhere."""
        while True:
            await anyio.sleep(PING_S)
            now = anyio.current_time()
            for addr, link in list(self._links.items()):
                if link.channel.closed:
                    del self._links[addr]
                    self._pinged.pop(addr, None)
                elif (since := self._pinged.get(addr)) is None:
                    if link.ours and link.channel.in_flight:
                        self._ping(link, now)
                elif now - since >= DEAD_S:
                    del self._pinged[addr]
                    log.info("silent broker left", extra={"addr": addr})
                    link.channel.close(f"{addr} gives no sign of life")

    def _ping(self, link: Link, now: float) -> None:
        command = Command(code=RequestCode.HELLO, body=Hello.ours(self.client_id).to_json())
        command.opaque = link.channel.next_opaque()
        self._pinged[link.addr] = now
        link.channel.submit(encode(command), command.opaque, lambda _reply: self._alive(link.addr))

    def _alive(self, addr: str) -> None:
        self._pinged.pop(addr, None)

    async def call(self, group: str, command: Command, *, deadline: float | None = None) -> Command:
        """Ask a group's leader, wherever it is by now; returns its answer unless that is "not now".

        For calls that may be repeated. Raises `Disconnected`, `NoRoute` or `Busy` at the deadline, whichever was the
        last reason.
        """
        if deadline is None:
            deadline = deadline_for(self.default_timeout)
        view = self.group(group)
        backoff = Backoff(self.rng)
        last: TrimqError = Disconnected(f"no answer from the leader of {group}")
        with anyio.CancelScope(deadline=deadline):
            while True:
                tried: set[str] = set()
                while len(tried) < HOPS_MAX:
                    addr = next((addr for addr in self._targets(view) if addr not in tried), None)
                    if addr is None:
                        break
                    tried.add(addr)
                    try:
                        with anyio.fail_after(ATTEMPT_S):
                            answer = await (await self.link(addr)).channel.invoke(command)
                    except Disconnected as error:
                        last = error
                        continue
                    except TimeoutError:
                        last = Disconnected(f"{addr} did not answer within {ATTEMPT_S:g} s")
                        continue
                    news = self.note_leader(view, answer)
                    if answer.code not in NOT_NOW:
                        return answer
                    last = refusal(answer, addr)
                    if not news:
                        break
                await anyio.sleep(backoff.next_s())
                await self.find_leader(group)
        raise last

    def _targets(self, view: GroupView) -> list[str]:
        return view.targets(replicas=self._ours.get(view.name, False))

    def targets(self, group: str) -> list[str]:
        """Addresses of a group to try for a leader's work, best first."""
        return self._targets(self.group(group))

    def note_leader(self, view: GroupView, answer: Command) -> bool:
        """Take in the leader hint of an answer, if any; returns whether it names another leader than was known."""
        hint = LeaderHint.find(answer.ext)
        if hint is None:
            return False
        self._ours[view.name] = True
        return view.hinted(hint.leader_addr, hint.leader_term)

    async def find_leader(self, group: str) -> None:
        """Ask the name server who leads a group by now. Says nothing when it does not answer.

        By the route of a topic that lies there; a group of which no topic is known (a new one) by the cluster table.
        """
        topic = next((topic for topic, route in self._routes.items() if route.group(group)), None)
        try:
            if topic is not None:
                await self.refresh(topic)
                return
            broker = (await self.namesrv.cluster()).brokerAddrTable.get(group)
        except TrimqError as error:
            log.debug("route not refreshed", extra={"topic": topic, "group": group, "error": error})
            return
        if broker is not None:
            self.group(group).routed(broker.brokerAddrs)

    # Memberships

    def add_producer(self, group: str) -> None:
        self._producers[group] = self._producers.get(group, 0) + 1

    def remove_producer(self, group: str) -> None:
        """The producer group leaves the brokers' tables when its last producer closes."""
        self._producers[group] -= 1
        if not self._producers[group]:
            del self._producers[group]
            self._unregister(producer_group=group)

    def add_consumer(self, consumer: Consuming) -> None:
        self._consumers.append(consumer)

    def remove_consumer(self, consumer: Consuming) -> None:
        self._consumers.remove(consumer)
        if all(other.group != consumer.group for other in self._consumers):
            self._unregister(consumer_group=consumer.group)

    def _unregister(self, *, producer_group: str = "", consumer_group: str = "") -> None:
        header = UnregisterClientHeader(
            client_id=self.client_id, producer_group=producer_group, consumer_group=consumer_group
        )
        for link in self._links.values():
            if not link.channel.closed:
                command = Command(
                    code=RequestCode.UNREGISTER_CLIENT, opaque=link.channel.next_opaque(), ext=header.to_ext()
                )
                link.channel.submit(encode(command), command.opaque, lambda _reply: None)

    def _heartbeat(self) -> Command:
        data = HeartbeatData(
            clientID=self.client_id,
            producerDataSet=[ProducerData(groupName=group) for group in self._producers],
            consumerDataSet=[consumer.heartbeat_data() for consumer in self._consumers],
        )
        return Command(code=RequestCode.HEART_BEAT, body=data.to_json())

    def _introduce(self, link: Link) -> None:
        """A broker forgets the members of a lost connection, so a new one begins with a heartbeat."""
        for view in self._groups.values():
            if link.addr in view.all_addresses:
                self._ours[view.name] = link.ours
                if self._producers or self._consumers:
                    beat = self._heartbeat()
                    beat.opaque = link.channel.next_opaque()
                    link.channel.submit(encode(beat), beat.opaque, lambda _reply: None)
                return

    def beat_soon(self) -> None:
        """Send a heartbeat to all brokers in the next moment."""
        self._beat_now.set()

    async def beat(self) -> None:
        """Tell every known broker who we are, and wait for their answers (3 s at most; silent ones are skipped)."""
        addresses = dict.fromkeys(addr for view in self._groups.values() for addr in view.all_addresses)
        async with anyio.create_task_group() as group:
            for addr in addresses:
                group.start_soon(self._beat_one, addr)

    async def _beat_one(self, addr: str) -> None:
        with anyio.move_on_after(ATTEMPT_S):
            try:
                await (await self.link(addr)).channel.invoke(self._heartbeat())
            except Disconnected as error:
                log.debug("heartbeat not delivered", extra={"addr": addr, "error": error})

    async def _keep_beating(self) -> None:
        while True:
            with anyio.move_on_after(HEARTBEAT_S):
                await self._beat_now.wait()
            self._beat_now = anyio.Event()
            if self._producers or self._consumers:
                await self.beat()

    # Requests from brokers

    def on_request(self, addr: str, command: Command) -> Command | None:
        """Handle what a broker asks of its clients; what we cannot do is answered so."""
        if command.code == RequestCode.NOTIFY_CONSUMER_IDS_CHANGED:
            group = NotifyIdsChangedHeader.from_ext(command.ext).consumer_group
            for consumer in self._consumers:
                if consumer.group == group:
                    consumer.ids_changed()
            return None
        return Command(
            code=ResponseCode.REQUEST_CODE_NOT_SUPPORTED,
            opaque=command.opaque,
            flag=1,
            remark=f"this client does not serve request code {command.code}",
        )


def refusal(answer: Command, addr: str) -> TrimqError:
    """A refusing answer as the error that fits it."""
    remark = answer.remark or "no reason given"
    match answer.code:
        case ResponseCode.SYSTEM_BUSY | ResponseCode.FLOW_CONTROL:
            return Busy(f"{addr} is overloaded: {remark}", retry_after=0.2)
        case ResponseCode.NO_PERMISSION:
            return Denied(f"{addr} refuses: {remark}")
        case ResponseCode.TOPIC_NOT_EXIST:
            return NoRoute(f"{addr} does not know the topic: {remark}")
        case ResponseCode.SERVICE_NOT_AVAILABLE | ResponseCode.NOT_STORED | ResponseCode.GO_AWAY:
            return NoRoute(f"{addr} cannot serve now: {remark}", advice="its replica group has no leader at the moment")
        case _:
            return BrokerError(answer.code, answer.remark, address=addr)


@asynccontextmanager
async def open_instance(
    namesrv: tuple[str, ...],
    network: Network,
    clock: Clock,
    rng: random.Random,
    *,
    client_id: str,
    default_timeout: float,
) -> AsyncIterator[Instance]:
    """The shared part of one client with its background tasks (heartbeats, routes), for the length of the block."""
    instance: Instance | None = None

    def on_request(addr: str, command: Command) -> Command | None:
        return instance.on_request(addr, command) if instance is not None else None

    failure: Exception | None = None
    async with open_remoting_client(network, on_request=on_request) as remoting, anyio.create_task_group() as tasks:
        instance = Instance(namesrv, remoting, clock, rng, tasks, client_id, default_timeout)
        tasks.start_soon(instance._keep_beating)
        tasks.start_soon(instance._keep_routes)
        tasks.start_soon(instance._keep_watch)
        try:
            yield instance
        except Exception as error:  # kept out of the task group, which would wrap it
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
