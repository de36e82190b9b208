"""Asking the name servers: any of them will do, so the client stays with one until it fails.

Name servers hold the same table each on its own, so there is no leader to find. A failing one is left for the next in
the list; the first is chosen at random, which spreads the clients of a cluster.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import anyio

from trimq.client.route import Route, read_route
from trimq.errors import BrokerError, Disconnected, NoRoute, ProtocolError
from trimq.remoting.client import RemotingClient
from trimq.remoting.websocket import SCHEME
from trimq.wire.body.route import ClusterInfo, TopicList, TopicRouteData
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.route import GetRouteHeader

__all__ = ["NameServers", "split_addresses"]

log = logging.getLogger(__name__)

ANSWER_S = 3.0
"""RocketMQ's default timeout of a route query."""


def split_addresses(namesrv: str | Sequence[str]) -> tuple[str, ...]:
    """`host:port` or `ws://host:port` addresses from text with `;` or `,` between them, or from a sequence.

    Raises `NoRoute` for none, and for a mixture: whether brokers are reached by WebSocket must be one answer.
    """
    parts = namesrv.replace(",", ";").split(";") if isinstance(namesrv, str) else list(namesrv)
    addresses = tuple(dict.fromkeys(part.strip() for part in parts if part.strip()))
    if not addresses:
        raise NoRoute(
            "no name server address was given",
            advice='pass one, as in connect("127.0.0.1:9876"), or set NAMESRV_ADDR',
        )
    if len({addr.startswith(SCHEME) for addr in addresses}) > 1:
        raise NoRoute(
            f"{';'.join(addresses)} mixes {SCHEME} addresses with plain ones",
            advice=f"give all of them with {SCHEME} (their WebSocket gateways), or none",
        )
    return addresses


class NameServers:
    """The name servers of one cluster."""

    def __init__(self, addresses: Sequence[str], remoting: RemotingClient, rng: random.Random) -> None:
        self.addresses = tuple(addresses)
        self._remoting = remoting
        self._current = rng.randrange(len(self.addresses))

    def replace(self, addresses: Sequence[str]) -> None:
        """Other name servers from now on; the one in use stays in use if it is among them."""
        current = self.addresses[self._current]
        self.addresses = tuple(addresses)
        self._current = self.addresses.index(current) if current in self.addresses else 0

    async def ask(self, command: Command) -> Command:
        """The first answer that any name server gives. Raises `NoRoute` when none does."""
        failures: list[str] = []
        for _ in self.addresses:
            addr = self.addresses[self._current]
            try:
                with anyio.fail_after(ANSWER_S):
                    return await self._remoting.invoke(addr, command)
            except Disconnected as error:
                failures.append(error.message)
            except TimeoutError:
                failures.append(f"{addr} did not answer within {ANSWER_S:g} s")
            self._current = (self.addresses.index(addr) + 1 if addr in self.addresses else 0) % len(self.addresses)
        raise NoRoute(
            f"no name server answers: {'; '.join(failures)}",
            advice="check the name server's address and that it runs",
        )

    async def route(self, topic: str) -> Route | None:
        """The route of a topic, None when no live broker has it. Raises `NoRoute` when no name server answers."""
        header = GetRouteHeader(topic=topic, accept_standard_json_only=True)
        answer = await self.ask(Command(code=RequestCode.GET_ROUTEINFO_BY_TOPIC, ext=header.to_ext()))
        if answer.code == ResponseCode.TOPIC_NOT_EXIST:
            return None
        self._check(answer)
        try:
            route = read_route(topic, TopicRouteData.from_json(answer.body))
        except ProtocolError as error:
            raise NoRoute(f"the name server's route of {topic!r} cannot be read: {error}") from error
        return route if route.groups else None

    async def cluster(self) -> ClusterInfo:
        """All brokers."""
        answer = await self.ask(Command(code=RequestCode.GET_BROKER_CLUSTER_INFO))
        self._check(answer)
        return ClusterInfo.from_json(answer.body)

    async def topics(self) -> list[str]:
        """The names of all topics, sorted."""
        answer = await self.ask(Command(code=RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER))
        self._check(answer)
        return sorted(TopicList.from_json(answer.body).topicList)

    def _check(self, answer: Command) -> None:
        if answer.code != ResponseCode.SUCCESS:
            raise BrokerError(answer.code, answer.remark, address=self.addresses[self._current])
