"""The ports beside a broker's main port."""

from __future__ import annotations

import pytest
import trio

from broker.config import ConfigError, parse_settings
from broker.runtime import StartError, open_broker
from tests.broker.support import User, World, local_config, messages, open_local
from trimq.remoting.client import open_remoting_client
from trimq.wire.codes import RequestCode, ResponseCode

pytestmark = pytest.mark.trio


async def test_the_gateway_serves_what_the_main_port_serves(autojump_clock: object) -> None:
    async with (
        open_local() as (replica, user, world),
        open_remoting_client(world.at("10.0.9.2"), through_gateways=True) as client,
    ):
        assert replica.doors.web_socket_port == 10915
        browser = User(client, replica.address)
        assert (await browser.send("T", b"by WebSocket")).code == 0
        assert [message.body for message in messages(await user.pull("T", 0, 0))] == [b"by WebSocket"]
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:

                async def later() -> None:
                    await trio.sleep(3)
                    await user.send("T", b"by TCP")

                nursery.start_soon(later)
                held = await browser.pull("T", 0, 1, hold_ms=15_000)
        assert [message.body for message in messages(held)] == [b"by TCP"]
        assert replica.doors.gauges() == {"trimq_websocket_connections": 1.0, "trimq_websocket_refused": 0.0}


async def test_who_comes_by_websocket_is_never_at_the_brokers_own_machine(autojump_clock: object) -> None:
    async with (
        open_local() as (replica, _, world),
        open_remoting_client(world.at("10.0.0.1"), through_gateways=True) as page,
        open_remoting_client(world.at("10.0.0.1")) as tool,
    ):
        ext = {"topic": "T"}
        assert (await User(tool, replica.address).ask(RequestCode.DELETE_TOPIC_IN_BROKER, ext)).code == 0
        refused = await User(page, replica.address).ask(RequestCode.DELETE_TOPIC_IN_BROKER, ext)
        assert refused.code == ResponseCode.NO_PERMISSION


async def test_the_gateway_can_be_switched_off(autojump_clock: object) -> None:
    async with open_local(web_socket=False) as (replica, _, world):
        assert replica.doors.web_socket_port == 0
        with pytest.raises(ConnectionRefusedError):
            await world.at("10.0.9.2").connect("10.0.0.1", 10915)


async def test_the_vip_port_is_opened_when_asked(autojump_clock: object) -> None:
    async with (
        open_local(vip_channel=True) as (replica, user, world),
        open_remoting_client(world.at("10.0.9.2")) as old,
    ):
        vip = User(old, replica.address.replace("10911", "10909"))
        assert (await vip.send("T", b"x")).code == 0
        assert [message.body for message in messages(await user.pull("T", 0, 0))] == [b"x"]


async def test_a_vip_port_in_use_stops_the_start_and_a_gateway_port_does_not(autojump_clock: object) -> None:
    world = World()
    neighbour = local_config(listen_port=10909, broker_name="b", store_dir="b", web_socket=False)
    async with open_broker([neighbour], world.env()):
        with pytest.raises(StartError, match=r"vipChannelEnable needs port 10909 \(listenPort - 2\)"):
            async with open_broker([local_config(vip_channel=True)], world.env()):
                pass
    neighbour = local_config(listen_port=10915, broker_name="b", store_dir="b", web_socket=False)
    async with open_broker([neighbour], world.env()), open_local(world) as (replica, _, _world):
        assert replica.doors.web_socket_port == 0


@pytest.mark.parametrize("text", ["mq.example", "http://a/b", "ftp://a", "http://a;x"])
async def test_origins_are_checked_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match="webSocketAllowedOrigins"):
        parse_settings({"webSocketAllowedOrigins": text})


async def test_origins_are_read() -> None:
    loaded = parse_settings({"webSocketAllowedOrigins": "http://a:1, https://b/;null"})
    assert loaded.config.web_socket_origins == ("http://a:1", "https://b/", "null")
