"""What everything of one client shares: connections, routes, memberships.

One `Instance` per `trimq.connect`, whatever number of producers and consumers; to the brokers it is one client id. It
tells all of them every 30 s, and at once when that changes, which groups it belongs to.

Calls that only a leader can answer go through `call`: it follows leader hints, at most three hops, then waits a little
and asks the name server again, until the one deadline of the call.
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

import anyio
import anyio.abc

from trimq.client.links import Link, Links
from trimq.client.namesrv import NameServers, split_addresses
from trimq.client.questions import Questions
from trimq.client.replies import Replies
from trimq.client.route import GroupView
from trimq.client.routes import Routes
from trimq.client.timing import Backoff, deadline_for
from trimq.client.trace import Tracer
from trimq.env import Clock, Network
from trimq.errors import BrokerError, Busy, Denied, Disconnected, NoRoute, TrimqError
from trimq.remoting.address_page import REFRESH_S, fetch_addresses
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.remoting.websocket import SCHEME
from trimq.wire.body.heartbeat import ConsumerData, HeartbeatData, ProducerData
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command, encode
from trimq.wire.headers.client import NotifyIdsChangedHeader, UnregisterClientHeader
from trimq.wire.headers.leader import LeaderHint

if TYPE_CHECKING:
    from trimq.client.transaction import Checks

__all__ = ["Consuming", "Instance", "open_instance", "refusal"]

log = logging.getLogger(__name__)

HEARTBEAT_S = 30.0

ATTEMPT_S = 3.0
"""One attempt of a call that is not held on purpose; then another replica is asked."""

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


class Consuming(Protocol):
    """A consumer, as the instance sees it."""

    group: str

    def heartbeat_data(self) -> ConsumerData: ...

    def ids_changed(self) -> None:
        """The members of the group changed (a broker's notice, code 40)."""
        ...


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
        self.tracer: Tracer | None = None
        """Where sends and deliveries are traced to; set before anything is opened."""
        self.remoting = remoting
        self.namesrv = NameServers(namesrv, remoting, rng)
        self.routes = Routes(self.namesrv, rng, self._new_group)
        self.links = Links(remoting, client_id, self._introduce)
        self._ours: dict[str, bool] = {}
        """Replica group to whether its brokers are ours, once one of them said so."""
        self._producers: dict[str, int] = {}
        self._consumers: list[Consuming] = []
        self._beat_now = anyio.Event()
        self._unwelcome: Denied | None = None
        self._served: dict[int, Callable[[str, Command], Command | None]] = {}
        self._replies: Replies | None = None
        self._questions: Questions | None = None
        self._checks: Checks | None = None

    # Calls

    async def call(self, group: str, command: Command, *, deadline: float | None = None) -> Command:
        """Ask a group's leader, wherever it is by now; returns its answer unless that is "not now".

        For calls that may be repeated. Raises `Disconnected`, `NoRoute` or `Busy` at the deadline, whichever was the
        last reason.
        """
        if deadline is None:
            deadline = deadline_for(self.default_timeout)
        view = self.routes.group(group)
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
                            answer = await (await self.links.get(addr)).channel.invoke(command)
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
                await self.routes.find_leader(group)
        raise last

    async def call_once(self, group: str, command: Command) -> Command:
        """Ask a group's leader once, with all of the deadline for its answer: for what must not be repeated."""
        deadline = deadline_for(self.default_timeout)
        with anyio.CancelScope(deadline=deadline):
            for addr in self.targets(group)[:1]:
                return await (await self.links.get(addr)).channel.invoke(command)
        raise Disconnected(f"no answer from the leader of {group}")

    def _targets(self, view: GroupView) -> list[str]:
        return view.targets(replicas=self._ours.get(view.name, False))

    def targets(self, group: str) -> list[str]:
        """Addresses of a group to try for a leader's work, best first."""
        return self._targets(self.routes.group(group))

    def note_leader(self, view: GroupView, answer: Command) -> bool:
        """Take in the leader hint of an answer, if any; returns whether it names another leader than was known."""
        hint = LeaderHint.find(answer.ext)
        if hint is None:
            return False
        self._ours[view.name] = True
        return view.hinted(hint.leader_addr, hint.leader_term)

    @property
    def checks(self) -> Checks:
        """Answers brokers that ask about transactions."""
        if self._checks is None:
            from trimq.client.transaction import Checks

            self._checks = Checks(self)
        return self._checks

    @property
    def replies(self) -> Replies:
        """Requests that wait for a reply."""
        if self._replies is None:
            self._replies = Replies(self)
        return self._replies

    @property
    def questions(self) -> Questions:
        """What brokers ask consumers of this client."""
        if self._questions is None:
            self._questions = Questions(self)
        return self._questions

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
        for link in self.links.all:
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
        for view in self.routes.groups:
            if link.addr in view.all_addresses:
                self._ours[view.name] = link.ours
                if self._producers or self._consumers:
                    beat = self._heartbeat()
                    beat.opaque = link.channel.next_opaque()
                    link.channel.submit(encode(beat), beat.opaque, lambda _reply: None)
                return

    def _new_group(self) -> None:
        if self._producers or self._consumers:
            self.beat_soon()

    def beat_soon(self) -> None:
        """Send a heartbeat to all brokers in the next moment."""
        self._beat_now.set()

    async def beat(self) -> None:
        """Tell every known broker who we are, and wait for their answers (3 s at most; silent ones are skipped).

        Raises `Denied` when a broker does not take this client as it is (its group subscribes differently, its id is
        in use).
        """
        self._unwelcome = None
        addresses = dict.fromkeys(addr for view in self.routes.groups for addr in view.all_addresses)
        async with anyio.create_task_group() as group:
            for addr in addresses:
                group.start_soon(self._beat_one, addr)
        if self._unwelcome is not None:
            raise self._unwelcome

    async def _beat_one(self, addr: str) -> None:
        with anyio.move_on_after(ATTEMPT_S):
            try:
                answer = await (await self.links.get(addr)).channel.invoke(self._heartbeat())
                if answer.code == ResponseCode.NO_PERMISSION:
                    self._unwelcome = Denied(f"{addr} refuses: {answer.remark}", advice="see the reason")
            except Disconnected as error:
                log.debug("heartbeat not delivered", extra={"addr": addr, "error": error})

    async def _keep_beating(self) -> None:
        while True:
            with anyio.move_on_after(HEARTBEAT_S):
                await self._beat_now.wait()
            self._beat_now = anyio.Event()
            if self._producers or self._consumers:
                try:
                    await self.beat()
                except Denied as error:
                    log.warning("a broker does not take this client", extra={"error": error})

    # Requests from brokers

    def serve(self, code: int, handler: Callable[[str, Command], Command | None]) -> None:
        """Call `handler` with the broker's address and each request of this code; what it returns is the answer."""
        self._served[code] = handler

    def on_request(self, addr: str, command: Command) -> Command | None:
        """Handle what a broker asks of its clients; what we cannot do is answered so."""
        if command.code == RequestCode.NOTIFY_CONSUMER_IDS_CHANGED:
            group = NotifyIdsChangedHeader.from_ext(command.ext).consumer_group
            for consumer in self._consumers:
                if consumer.group == group:
                    consumer.ids_changed()
            return None
        served = self._served.get(command.code)
        if served is not None:
            return served(addr, command)
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
            return Busy(f"{addr} asks to wait: {remark}", retry_after=0.2)
        case ResponseCode.NO_PERMISSION:
            return Denied(f"{addr} refuses: {remark}")
        case ResponseCode.TOPIC_NOT_EXIST:
            return NoRoute(f"{addr} does not know the topic: {remark}")
        case ResponseCode.SERVICE_NOT_AVAILABLE | ResponseCode.NOT_STORED | ResponseCode.GO_AWAY:
            return NoRoute(f"{addr} cannot serve now: {remark}", advice="its replica group has no leader at the moment")
        case _:
            return BrokerError(answer.code, answer.remark, address=addr)


async def _follow_page(page: str, network: Network, namesrv: NameServers) -> None:
    """Look at the address page every two minutes; what it said last stands while it does not answer."""
    while True:
        await anyio.sleep(REFRESH_S)
        try:
            addresses = split_addresses(await fetch_addresses(network, page))
        except TrimqError as error:
            log.info("address page not read", extra={"page": page, "error": error})
            continue
        if set(addresses) != set(namesrv.addresses):
            log.info("other name servers", extra={"page": page, "addresses": ";".join(addresses)})
            namesrv.replace(addresses)


@asynccontextmanager
async def open_instance(
    namesrv: tuple[str, ...],
    network: Network,
    clock: Clock,
    rng: random.Random,
    *,
    client_id: str,
    default_timeout: float,
    page: str = "",
) -> AsyncIterator[Instance]:
    """The shared part of one client with its background tasks (heartbeats, routes), for the length of the block.

    `page`: the address page from which `namesrv` came and that is looked at again.
    """
    instance: Instance | None = None

    def on_request(addr: str, command: Command) -> Command | None:
        return instance.on_request(addr, command) if instance is not None else None

    failure: Exception | None = None
    # Routes and leader hints hold plain addresses: a client that came by WebSocket goes on by WebSocket.
    gateways = namesrv[0].startswith(SCHEME)
    async with (
        open_remoting_client(network, on_request=on_request, through_gateways=gateways) as remoting,
        anyio.create_task_group() as tasks,
    ):
        instance = Instance(namesrv, remoting, clock, rng, tasks, client_id, default_timeout)
        tasks.start_soon(instance._keep_beating)
        if page:
            tasks.start_soon(_follow_page, page, network, instance.namesrv)
        tasks.start_soon(instance.routes.run)
        tasks.start_soon(instance.links.run)
        try:
            yield instance
        except Exception as error:  # kept out of the task group, which would wrap it
            failure = error
        finally:
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
