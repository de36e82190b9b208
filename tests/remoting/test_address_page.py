"""The page that names the name servers: read by a client, by a broker, and refused when it is no such page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.broker.support import World, open_local
from tests.broker.test_registration import NAMESRV, addresses, name_server
from trimq.client.client import open_client
from trimq.env import Stream
from trimq.errors import ConnectFailed, NoRoute
from trimq.remoting.address_page import REFRESH_S, fetch_addresses, page_of

pytestmark = pytest.mark.trio
PAGE = "http://10.0.7.1:8080/rocketmq/nsaddr"


class Page:
    """A web server in the world of memory; what it answers can be changed."""

    def __init__(self, text: str) -> None:
        self.answer = self.saying(text)
        self.asked: list[bytes] = []

    @staticmethod
    def saying(text: str, status: str = "200 OK") -> bytes:
        body = text.encode()
        return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    async def serve(self, stream: Stream) -> None:
        self.asked.append(await stream.receive_some(65536))
        await stream.send_all(self.answer)


@asynccontextmanager
async def serving(world: World, text: str = "") -> AsyncIterator[Page]:
    page = Page(text)
    async with trio.open_nursery() as nursery:
        host = world.at("10.0.7.1")

        async def serve(*, task_status: trio.TaskStatus[int]) -> None:
            await host.serve(page.serve, "10.0.7.1", 8080, task_status=task_status)

        await nursery.start(serve)
        yield page
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "text", ["10.0.0.1:9876;10.0.0.2:9876", " 10.0.0.1:9876 ; 10.0.0.2:9876;\r\n", "10.0.0.1:9876\n10.0.0.2:9876\n"]
)
async def test_addresses_are_read_in_their_order(text: str, autojump_clock: object) -> None:
    world = World()
    async with serving(world, text) as page:
        assert await fetch_addresses(world.at("10.0.9.9"), PAGE) == ("10.0.0.1:9876", "10.0.0.2:9876")
    assert page.asked[0].startswith(b"GET /rocketmq/nsaddr HTTP/1.1\r\nHost: 10.0.7.1:8080\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Page.saying(""), "names no name server"),
        (Page.saying("<html>hello</html>"), "is no address"),
        (Page.saying("10.0.0.1:9876", "503 Busy"), "answered 503"),
        (Page.saying("x" * 70_000), "more than 65536 bytes"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "cannot be read"),
        (b"", "cannot be read"),
    ],
    ids=range(6),
)
async def test_what_is_no_such_page_is_refused_with_the_reason(
    answer: bytes, reason: str, autojump_clock: object
) -> None:
    world = World()
    async with serving(world) as page:
        page.answer = answer
        with pytest.raises(ConnectFailed, match=reason):
            await fetch_addresses(world.at("10.0.9.9"), PAGE)


async def test_a_page_that_is_not_there_or_silent_is_refused_in_time(autojump_clock: object) -> None:
    world = World()
    for page in (PAGE, "https://10.0.7.1/x", "http://", "http://h:99999/"):
        with pytest.raises(ConnectFailed):
            await fetch_addresses(world.at("10.0.9.9"), page)
    assert page_of("10.0.7.1", "nsaddr") == PAGE
    assert page_of("a:80", "g") == "http://a:80/rocketmq/g"


async def test_a_broker_registers_with_the_name_servers_of_the_page_and_follows_it(autojump_clock: object) -> None:
    world = World()
    async with name_server(world), serving(world, "10.0.8.2:9876") as page:
        config = {"fetch_namesrv": True, "address_server": "10.0.7.1"}
        async with open_local(world, **config) as (replica, _, _):
            await trio.sleep(1)
            assert await addresses(world) == {}
            page.answer = page.saying(f"10.0.8.2:9876;{NAMESRV}")
            await trio.sleep(REFRESH_S + 1)
            assert await addresses(world) == {0: replica.address}
            page.answer = page.saying("", "500 Broken")
            await trio.sleep(REFRESH_S + 1)
            assert await addresses(world) == {0: replica.address}, "what was said last stands"
            page.answer = page.saying("10.0.8.2:9876")
            await trio.sleep(REFRESH_S + 1)
            assert await addresses(world) == {}, "it left the one that is not named any more"


async def test_a_broker_that_starts_before_its_page_registers_when_it_is_there(autojump_clock: object) -> None:
    world = World()
    config = {"fetch_namesrv": True, "address_server": "10.0.7.1"}
    async with name_server(world), open_local(world, **config) as (replica, _, _):
        await trio.sleep(5)
        async with serving(world, NAMESRV):
            await trio.sleep(2)
        assert await addresses(world) == {0: replica.address}


async def test_a_client_finds_its_name_servers_by_the_page_and_follows_it(autojump_clock: object) -> None:
    world = World()
    async with name_server(world), open_local(world, namesrv=(NAMESRV,)), serving(world, NAMESRV) as page:
        env = world.env("10.0.9.5")
        rng = env.rng("c", "client")
        async with open_client(PAGE, env.network, env.clock, rng, client_id="c") as client:
            assert (await client.send("T", b"x")).offset == 0
            page.answer = page.saying(f"10.0.8.9:1;{NAMESRV}")
            await trio.sleep(REFRESH_S + 1)
            assert client.instance.namesrv.addresses == ("10.0.8.9:1", NAMESRV)
            assert (await client.send("T2", b"x")).offset == 0
    with pytest.raises(NoRoute, match="no name server is known"):
        async with open_client(PAGE, env.network, env.clock, rng, client_id="c"):
            pass
