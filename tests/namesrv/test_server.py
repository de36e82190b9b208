"""The name server on real sockets: connections that end, changes seen by others at once, bad input, key-value file."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from namesrv.config import NamesrvConfig
from namesrv.kv_config import KVFile
from namesrv.server import serve_namesrv
from tests.namesrv.support import ask, client_of, namesrv_running, register_command, route_of
from tests.remoting.support import MemoryNetwork
from trimq.remoting.client import RemotingClient
from trimq.remoting.system import TrioNetwork
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command, encode


async def leaders(client: RemotingClient, addr: str, topic: str = "T") -> dict[int, str]:
    route = await route_of(client, addr, topic)
    return route.brokerDatas[0].brokerAddrs if route else {}


async def eventually_gone(client: RemotingClient, addr: str) -> None:
    with trio.fail_after(5):
        while await route_of(client, addr, "T") is not None:  # the other socket's end travels at its own pace
            await trio.lowlevel.checkpoint()


@pytest.mark.trio
async def test_a_leader_change_is_seen_by_the_next_query_of_another_connection() -> None:
    async with namesrv_running() as addr, client_of() as old, client_of() as new, client_of() as user:
        assert (await old.invoke(addr, register_command("h1:1", term=1))).code == 0
        assert await leaders(user, addr) == {0: "h1:1"}
        for term in range(2, 30):
            broker = new if term % 2 == 0 else old
            assert (await broker.invoke(addr, register_command(f"h{term}:1", term=term))).code == 0
            assert await leaders(user, addr) == {0: f"h{term}:1"}


@pytest.mark.trio
async def test_a_broker_is_gone_when_its_connection_ends() -> None:
    async with namesrv_running() as addr, client_of() as user:
        async with client_of() as broker:
            await broker.invoke(addr, register_command())
            assert await leaders(user, addr) == {0: "10.0.0.1:10911"}
        await eventually_gone(user, addr)
        answer = await ask(user, addr, RequestCode.GET_BROKER_CLUSTER_INFO)
        assert answer.body == b'{"brokerAddrTable":{},"clusterAddrTable":{}}'


@pytest.mark.trio
async def test_a_machine_that_vanishes_leaves_after_the_heartbeat_limit(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    network = MemoryNetwork()
    async with namesrv_running(network=network):
        stream = await network.open()
        probe = await network.open()

        async def leader() -> bool:
            await probe.send_all(encode(Command(code=RequestCode.GET_ROUTEINFO_BY_TOPIC, ext={"topic": "T"})))
            return b"10.0.0.1" in await probe.receive_some(65536)

        await stream.send_all(encode(register_command(heartbeatTimeoutMillis="40000")))
        await stream.receive_some(65536)
        await trio.sleep(39)
        assert await leader()
        await trio.sleep(7)
        assert not await leader()
    assert "no sign of life" in caplog.text


@pytest.mark.trio
async def test_bad_bytes_and_unknown_codes_cost_only_their_sender() -> None:
    async with namesrv_running() as addr, client_of() as good:
        await good.invoke(addr, register_command())
        host, port = addr.split(":")
        for garbage in (
            b"\x16\x03\x01\x00",
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(8),
            b"\x00\x00\x00\x08\x00\x00\x00\x04[[[[",
        ):
            stream = await TrioNetwork().connect(host, int(port))
            await stream.send_all(garbage)
            with trio.fail_after(5):
                try:
                    assert await stream.receive_some(100) == b""
                except OSError:
                    pass  # reset: what was not read was thrown away
            await stream.aclose()
        assert (await ask(good, addr, 31_000)).code == 3
        assert await leaders(good, addr) == {0: "10.0.0.1:10911"}


@pytest.mark.trio
async def test_a_response_nobody_asked_for_and_a_oneway_request_get_no_answer() -> None:
    async with namesrv_running() as addr, client_of() as client:
        channel = await client.channel(addr)
        channel.send(encode(Command(code=0, opaque=1, flag=1)))
        await client.oneway(addr, register_command())
        assert await leaders(client, addr) == {0: "10.0.0.1:10911"}


@pytest.mark.trio
async def test_key_value_settings_survive_a_restart(tmp_path: Path) -> None:
    kv = KVFile(tmp_path / "kv.json")
    async with namesrv_running(kv=kv) as addr, client_of() as client:
        keys = [f"k{n}" for n in range(20)]
        async with trio.open_nursery() as nursery:
            for key in keys:
                ext = {"namespace": "ns", "key": key, "value": f"value of {key}"}
                nursery.start_soon(ask, client, addr, RequestCode.PUT_KV_CONFIG, ext)
        assert (await ask(client, addr, RequestCode.DELETE_KV_CONFIG, {"namespace": "ns", "key": "k0"})).code == 0
    async with namesrv_running(kv=kv) as addr, client_of() as client:
        answer = await ask(client, addr, RequestCode.GET_KV_CONFIG, {"namespace": "ns", "key": "k19"})
        assert answer.ext["value"] == "value of k19"
        assert (await ask(client, addr, RequestCode.GET_KV_CONFIG, {"namespace": "ns", "key": "k0"})).code == 22


@pytest.mark.trio
async def test_a_change_that_cannot_be_saved_is_refused_and_not_seen(tmp_path: Path) -> None:
    kv = KVFile(tmp_path / "kv.json")
    async with namesrv_running(kv=kv) as addr, client_of() as client:
        (tmp_path / "kv.json.new").mkdir()
        answer = await ask(client, addr, RequestCode.PUT_KV_CONFIG, {"namespace": "ns", "key": "k", "value": "v"})
        assert answer.code == 1
        assert "not saved" in answer.remark
        assert (await ask(client, addr, RequestCode.GET_KV_CONFIG, {"namespace": "ns", "key": "k"})).code == 22


@pytest.mark.trio
async def test_damaged_settings_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "kv.json").write_bytes(b"{half")
    with pytest.raises(ValueError):
        await serve_namesrv(NamesrvConfig(listen_port=0), TrioNetwork(), kv=KVFile(tmp_path / "kv.json"))
