"""What admin commands share: asking name servers and brokers, and saying clearly what is missing when none answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from trimq.errors import BrokerError, Disconnected, NoRoute
from trimq.remoting.address_page import fetch_addresses, is_page
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.remoting.system import TrioNetwork
from trimq.remoting.websocket import SCHEME
from trimq.wire.body.route import BrokerData, ClusterInfo, TopicList, TopicRouteData
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.route import GetRouteHeader

__all__ = ["Session", "in_parallel", "leader_of", "open_session"]

ANSWER_S = 5.0
IN_PARALLEL_MAX = 64

T = TypeVar("T")
V = TypeVar("V")


def leader_of(broker: BrokerData) -> str | None:
    """The address that takes writes; None while nobody leads."""
    return broker.brokerAddrs.get(0)


class Session:
    """Requests to one cluster."""

    def __init__(self, client: RemotingClient, namesrv: str) -> None:
        self._client = client
        self._namesrvs = [addr.strip() for addr in namesrv.replace(",", ";").split(";") if addr.strip()]

    async def ask(
        self, addr: str, code: int, ext: Mapping[str, str] | None = None, body: bytes = b"", *, ok: Iterable[int] = (0,)
    ) -> Command:
        """One request to one server. Raises `Disconnected`, or `BrokerError` for an answer that is not in `ok`."""
        try:
            with trio.fail_after(ANSWER_S):
                answer = await self._client.invoke(addr, Command(code=code, ext=dict(ext or {}), body=body))
        except trio.TooSlowError:
            raise Disconnected(f"{addr} did not answer within {ANSWER_S:g} s") from None
        if answer.code not in ok:
            raise BrokerError(answer.code, answer.remark, address=addr)
        return answer

    async def ask_namesrv(
        self, code: int, ext: Mapping[str, str] | None = None, *, ok: Iterable[int] = (0,)
    ) -> Command:
        """One request to the first name server that answers."""
        failures: list[str] = []
        for addr in self._namesrvs:
            try:
                return await self.ask(addr, code, ext, ok=ok)
            except Disconnected as error:
                failures.append(error.message)
        reason = "; ".join(failures) or "no address was given"
        raise NoRoute(f"no name server answers: {reason}", advice="start one, or give its address with -n HOST:PORT")

    async def cluster(self) -> ClusterInfo:
        return ClusterInfo.from_json((await self.ask_namesrv(RequestCode.GET_BROKER_CLUSTER_INFO)).body)

    async def topics(self) -> list[str]:
        answer = await self.ask_namesrv(RequestCode.GET_ALL_TOPIC_LIST_FROM_NAMESERVER)
        return sorted(TopicList.from_json(answer.body).topicList)

    async def route(self, topic: str) -> TopicRouteData | None:
        """None when no live broker has the topic."""
        ext = GetRouteHeader(topic=topic, accept_standard_json_only=True).to_ext()
        answer = await self.ask_namesrv(
            RequestCode.GET_ROUTEINFO_BY_TOPIC, ext, ok=(ResponseCode.SUCCESS, ResponseCode.TOPIC_NOT_EXIST)
        )
        return TopicRouteData.from_json(answer.body) if answer.code == ResponseCode.SUCCESS else None

    async def leaders(self, cluster: str | None = None) -> dict[str, str]:
        """Broker name to the address of its leader, sorted. Raises `NoRoute` when there is none at all."""
        info = await self.cluster()
        if cluster is not None and cluster not in info.clusterAddrTable:
            known = ", ".join(sorted(info.clusterAddrTable)) or "none"
            raise NoRoute(f"there is no cluster {cluster}", advice=f"known clusters: {known}")
        brokers = [b for _, b in sorted(info.brokerAddrTable.items()) if cluster is None or b.cluster == cluster]
        found = {broker.brokerName: addr for broker in brokers if (addr := leader_of(broker)) is not None}
        if not found:
            known = ", ".join(broker.brokerName for broker in brokers) or "none registered"
            raise NoRoute(f"no broker leads (brokers: {known})", advice="start brokers, or wait for an election")
        return found


async def in_parallel(items: Iterable[T], work: Callable[[T], Awaitable[V]]) -> list[V]:
    """`work` for each item, a bounded number at a time; results in the order of the items."""
    items = list(items)
    results: dict[int, V] = {}
    limit = trio.CapacityLimiter(IN_PARALLEL_MAX)

    async def one(at: int, item: T) -> None:
        async with limit:
            results[at] = await work(item)

    async with trio.open_nursery() as nursery:
        for at, item in enumerate(items):
            nursery.start_soon(one, at, item)
    return [results[at] for at in range(len(items))]


@asynccontextmanager
async def open_session(namesrv: str) -> AsyncIterator[Session]:
    """A session that lives as long as the block."""
    network = TrioNetwork()
    if is_page(namesrv):
        namesrv = ";".join(await fetch_addresses(network, namesrv))
    async with open_remoting_client(network, through_gateways=namesrv.strip().startswith(SCHEME)) as client:
        yield Session(client, namesrv)
