"""A name server and its clients inside a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial

import trio

from namesrv.config import NamesrvConfig
from namesrv.kv_config import KVStore
from namesrv.server import serve_namesrv
from trimq.env import Network
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.remoting.system import AnyioNetwork, TrioNetwork
from trimq.wire.body.register import RegisterBrokerBody, body_crc32
from trimq.wire.body.route import DataVersion, TopicRouteData
from trimq.wire.body.topic_config import TopicConfig, TopicConfigTable
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command
from trimq.wire.headers.route import RegisterBrokerHeader

__all__ = ["ask", "client_of", "namesrv_running", "register_command", "route_of"]


@asynccontextmanager
async def namesrv_running(
    config: NamesrvConfig | None = None, *, network: Network | None = None, kv: KVStore | None = None
) -> AsyncIterator[str]:
    """A name server on a loopback port; yields its address."""
    config = config or NamesrvConfig(listen_port=0, bind_address="127.0.0.1")
    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(partial(serve_namesrv, config, network or TrioNetwork(), kv=kv))
        yield f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def client_of() -> AsyncIterator[RemotingClient]:
    async with open_remoting_client(AnyioNetwork()) as client:
        yield client


async def ask(
    client: RemotingClient, addr: str, code: int, ext: Mapping[str, str] | None = None, body: bytes = b""
) -> Command:
    with trio.fail_after(5):
        return await client.invoke(addr, Command(code=code, ext=dict(ext or {}), body=body))


async def route_of(client: RemotingClient, addr: str, topic: str) -> TopicRouteData | None:
    answer = await ask(client, addr, RequestCode.GET_ROUTEINFO_BY_TOPIC, {"topic": topic})
    if answer.code == ResponseCode.TOPIC_NOT_EXIST:
        return None
    assert answer.code == 0, answer.remark
    return TopicRouteData.from_json(answer.body)


def register_command(
    addr: str = "10.0.0.1:10911",
    broker_id: int = 0,
    *,
    name: str = "broker-a",
    cluster: str = "C",
    term: int = 1,
    counter: int = 1,
    topics: tuple[str, ...] = ("T", "U"),
    compressed: bool = False,
    **ext: str,
) -> Command:
    """A registration as our brokers send it."""
    table = TopicConfigTable(
        dataVersion=DataVersion(stateVersion=term, timestamp=1, counter=counter),
        topicConfigTable={topic: TopicConfig(topicName=topic, readQueueNums=4, writeQueueNums=4) for topic in topics},
    )
    body = RegisterBrokerBody(topicConfigSerializeWrapper=table)
    data = body.compress(493) if compressed else body.to_json()
    header = RegisterBrokerHeader(
        broker_name=name,
        broker_addr=addr,
        cluster_name=cluster,
        ha_server_addr="10.0.0.1:10912",
        broker_id=broker_id,
        compressed=compressed,
        body_crc32=body_crc32(data),
    )
    return Command(code=RequestCode.REGISTER_BROKER, ext={**header.to_ext(), "full": "true", **ext}, body=data)
