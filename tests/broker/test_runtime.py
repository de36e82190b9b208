"""The process: what stops its start, what survives, what comes in as garbage."""

from __future__ import annotations

import errno
import random
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from broker.config import BrokerConfig, BrokerRole, Strategy
from broker.runtime import StartError, open_broker
from tests.broker.support import World, drained, local_config, open_local, open_user
from trimq.env import StreamHandler, TaskStatus
from trimq.errors import Disconnected
from trimq.remoting.system import TrioNetwork
from trimq.wire.codes import RequestCode, ResponseCode
from trimq.wire.command import Command, encode
from trimq.wire.headers.offset import QueryOffsetHeader

pytestmark = pytest.mark.trio


async def start(world: World, *configs: BrokerConfig) -> str:
    """Why the broker does not start; "" when it does."""
    try:
        async with open_broker(configs, world.env()) as broker:
            await broker.wait_ready()
    except StartError as error:
        return str(error)
    return ""


async def test_a_port_in_use_is_one_clear_sentence(autojump_clock: MockClock) -> None:
    async with open_local() as (_, _user, world):
        reason = await start(world, local_config(broker_name="b", store_dir="b"))
    assert "port 10911 (listenPort) is in use" in reason
    assert "choose another" in reason
    assert await start(world, local_config(broker_name="b", store_dir="b")) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": Strategy.SYNC, "broker_id": 1}, "brokerId = 1: allowed is 0 for brokerRole ASYNC_MASTER"),
        ({"strategy": Strategy.AUTO, "broker_role": BrokerRole.SLAVE}, "needs brokerId above 0"),
        ({"strategy": Strategy.RAFT}, "dLegerPeers is missing"),
    ],
)
async def test_what_is_not_built_or_contradicts_stops_the_start(
    autojump_clock: MockClock, changes: dict[str, object], words: str
) -> None:
    assert words in await start(World(), local_config(**changes))


async def test_two_replicas_of_one_process_need_stores_and_ports_of_their_own(autojump_clock: MockClock) -> None:
    first = local_config()
    assert "listenPort = 10911 is used by" in await start(World(), first, local_config(broker_name="b", store_dir="b"))
    assert "storePathRootDir = a is used by" in await start(
        World(), first, local_config(broker_name="b", listen_port=10931)
    )


async def test_one_process_hosts_several_groups_and_one_that_cannot_start_stops_all(autojump_clock: MockClock) -> None:
    world = World()
    second = local_config(broker_name="broker-b", store_dir="b", listen_port=10931)
    async with open_broker([local_config(), second], world.env()) as broker:
        await broker.wait_ready()
        assert [replica.address for replica in broker.replicas] == ["10.0.0.1:10911", "10.0.0.1:10931"]
        for replica in broker.replicas:
            async with open_user(world, replica.address) as user:
                assert (await user.send("T", b"x")).code == ResponseCode.SUCCESS
        other = local_config(broker_name="broker-c", store_dir="c", listen_port=10951)
        taken = local_config(broker_name="broker-d", store_dir="d", listen_port=10931)
        assert "10931" in await start(world, other, taken)
    assert ("10.0.0.1", 10951) not in world.network.listeners


async def test_an_asynchronous_master_without_slaves_runs(autojump_clock: MockClock) -> None:
    assert await start(World(), local_config(strategy=Strategy.AUTO)) == ""


async def test_beside_a_free_client_port_the_ha_port_is_a_free_one_too() -> None:
    """`listenPort` 0 starts whatever else runs: the next port may be in use."""

    class Crowded(TrioNetwork):
        first = 0

        async def serve(self, handler: StreamHandler, host: str, port: int, *, task_status: TaskStatus) -> None:
            if self.first and port == self.first + 1:
                raise OSError(errno.EADDRINUSE, f"{port} is in use")
            async with trio.open_nursery() as nursery:
                bound = await nursery.start(super().serve, handler, host, port)
                self.first = self.first or bound
                task_status.started(bound)

    env = replace(World().env(), network=Crowded())
    config = local_config(
        strategy=Strategy.AUTO, listen_port=0, broker_ip="127.0.0.1", bind_address="127.0.0.1", web_socket=False
    )
    async with open_broker([config], env) as broker:
        await broker.wait_ready()
        own = broker.replicas[0].replicator.replicas
        assert own.voters


async def test_cancelling_the_process_stops_it_gracefully(autojump_clock: MockClock) -> None:
    world = World()
    with trio.CancelScope() as scope:
        async with open_broker([local_config()], world.env()) as broker:
            await broker.wait_ready()
            async with open_user(world, broker.replicas[0].address) as user:
                await user.send("T", b"x")
            scope.cancel()
            await trio.sleep_forever()
    async with open_local(world) as (replica, _user, _world):
        assert replica.store.log.verdict.value == "normal"


async def test_garbage_ends_its_own_connection_and_nothing_else(autojump_clock: MockClock) -> None:
    rng = random.Random(7)
    async with open_local() as (_, user, world):
        network = world.at("10.0.7.1")
        for _ in range(50):
            stream = await network.connect("10.0.0.1", 10911)
            await stream.send_all(rng.randbytes(rng.randrange(1, 400)))
            await stream.aclose()
        for code in range(420):
            body = rng.randbytes(rng.randrange(40))
            frame = bytearray(encode(Command(code=code, ext={"topic": "T", "queueId": "x"}, body=body)))
            if code % 3 == 0:
                frame[rng.randrange(8, len(frame))] ^= 1 << rng.randrange(8)
            stream = await network.connect("10.0.0.1", 10911)
            await stream.send_all(bytes(frame))
            with trio.move_on_after(0.05):
                await stream.receive_some(4096)
            await stream.aclose()
        assert (await user.send("T", b"still here")).code == ResponseCode.SUCCESS


async def test_an_oversized_frame_closes_the_connection(autojump_clock: MockClock) -> None:
    async with open_local(max_frame_bytes=1 << 16) as (_, user, _world):
        await user.send("T", b"x")
        with pytest.raises(Disconnected):
            await user.send("T", bytes(1 << 17))
        assert (await user.send("T", b"y")).code == ResponseCode.SUCCESS


async def test_a_disk_error_ends_the_replica_which_is_opened_again(autojump_clock: MockClock) -> None:
    async with open_local() as (replica, user, world):
        assert (await user.send("T", b"0")).code == ResponseCode.SUCCESS
        world.disk("a").fail("write", "commitlog/*", times=1)
        assert (await user.send("T", b"1")).code != ResponseCode.SUCCESS
        await trio.sleep(5)
        async with open_user(world, replica.address) as other:
            assert (await other.send("T", b"2")).code == ResponseCode.SUCCESS
            found = [message.body for message in await drained(other, "T", 0, 2)]
            assert found[0] == b"0"
            assert found[-1] in (b"1", b"2"), "what was refused may be stored or not, what was acknowledged is"


async def test_offsets_kept_without_a_leader_survive_a_restart(autojump_clock: MockClock) -> None:
    world = World()
    async with open_local(world) as (replica, user, _):
        await user.send("T", b"x")
        replica.intake.provisional.put("g", "T", 0, 1)
        await trio.sleep(2)
    async with open_local(world) as (replica, user, _):
        query = QueryOffsetHeader(consumer_group="g", topic="T", queue_id=0).to_ext()
        await trio.sleep(1)
        answer = await user.ask(RequestCode.QUERY_CONSUMER_OFFSET, query)
        assert answer.ext["offset"] == "1"


async def test_status_pages(autojump_clock: MockClock) -> None:
    async with open_local(metrics_port=10919) as (_, user, world):
        await user.send("T", b"x")

        async def get(path: str, method: str = "GET") -> tuple[int, bytes]:
            stream = await world.at("10.0.7.1").connect("10.0.0.1", 10919)
            await stream.send_all(f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            data = b""
            while more := await stream.receive_some(65536):
                data += more
            head, _, body = data.partition(b"\r\n\r\n")
            return int(head.split()[1]), body

        assert await get("/livez") == (200, b"ok\n")
        status, body = await get("/readyz")
        assert status == 200
        assert b'"ready": true' in body
        assert b'"role": "leader"' in (await get("/health"))[1]
        assert b"rocketmq_messages_in_total{" in (await get("/metrics"))[1]
        assert (await get("/nothing"))[0] == 404
        assert (await get("/livez", "POST"))[0] == 405
        status_answer = await user.ask(RequestCode.GROUP_STATUS, {"group": "other"})
        assert "not served here" in status_answer.remark
