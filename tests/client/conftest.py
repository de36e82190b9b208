"""One real broker for the tests of this folder: name server and a `local` group, on real sockets, in a thread.

Servers are Trio, clients run under either library: so the servers have a thread of their own, and a test runs its
client with `anyio.run` on whatever backend it is about. Topics and groups are named by the test, so all may share the
broker.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from broker.config import BrokerConfig, FlushDiskType, Strategy
from broker.runtime import Env, open_broker
from broker.store.fs import open_file_system
from namesrv.config import NamesrvConfig
from namesrv.server import serve_namesrv
from tests.support.ports import port_with_gateway
from trimq.remoting.client import open_remoting_client
from trimq.remoting.system import SystemClock, TrioNetwork
from trimq.remoting.websocket import PORT_OFFSET
from trimq.wire.body.route import ClusterInfo
from trimq.wire.codes import RequestCode
from trimq.wire.command import Command

_numbers = itertools.count()


class BrokerThread:
    """A name server and a broker, started and stopped from outside."""

    def __init__(self, directory: Path) -> None:
        self.namesrv = ""
        self.gateway = ""
        """The same name server by WebSocket."""
        self.failure: BaseException | None = None
        self._directory = directory
        self._ready = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: trio.Event | None = None
        self._thread = threading.Thread(target=self._main, name="broker")

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(20)
        if self.failure is not None:
            raise self.failure
        assert self.namesrv, "the broker was ready in time"

    def stop(self) -> None:
        if self._token is not None and self._stop is not None and self._thread.is_alive():
            self._token.run_sync_soon(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _main(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            self.failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        network = TrioNetwork()
        env = Env(clock=SystemClock(), network=network, open_fs=open_file_system, seed="tests/client")
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with trio.open_nursery() as nursery:
            config = NamesrvConfig(listen_port=port_with_gateway(), bind_address="127.0.0.1")
            port: int = await nursery.start(partial(serve_namesrv, config, network))
            broker_config = BrokerConfig(
                broker_name="solo",
                namesrv=(f"127.0.0.1:{port}",),
                strategy=Strategy.LOCAL,
                flush_disk_type=FlushDiskType.ASYNC_FLUSH,
                listen_port=port_with_gateway(),
                bind_address="127.0.0.1",
                broker_ip="127.0.0.1",
                metrics_port=-1,
                store_dir=str(self._directory),
                segment_bytes=8 << 20,
                transaction_timeout_ms=300,
                transaction_check_interval_ms=200,
                delay_levels_ms=tuple(range(50, 50 * 19, 50)),
            )
            async with open_broker([broker_config], env) as broker:
                await broker.wait_ready()
                assert broker.replicas[0].doors.web_socket_port, "the port above the one that was drawn is free"
                self.gateway = f"ws://127.0.0.1:{port + PORT_OFFSET}"
                await _registered(f"127.0.0.1:{port}", network)
                self.namesrv = f"127.0.0.1:{port}"
                self._ready.set()
                await self._stop.wait()
            nursery.cancel_scope.cancel()


async def _registered(namesrv: str, network: TrioNetwork) -> None:
    """A ready broker registers at once, but not before it is ready: the first test shall not be faster."""
    async with open_remoting_client(network) as client:
        with trio.fail_after(5):
            while True:
                answer = await client.invoke(namesrv, Command(code=RequestCode.GET_BROKER_CLUSTER_INFO))
                if answer.code == 0 and ClusterInfo.from_json(answer.body).brokerAddrTable:
                    return
                await trio.sleep(0.01)


@pytest.fixture(scope="package")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerThread]:
    thread = BrokerThread(tmp_path_factory.mktemp("broker"))
    thread.start()
    yield thread
    thread.stop()


@pytest.fixture(params=["tcp", pytest.param("websocket", marks=pytest.mark.slow)])
def namesrv(broker: BrokerThread, request: pytest.FixtureRequest) -> str:
    """The name server's address of a running broker. Every test of the library runs over TCP and over WebSocket."""
    return broker.namesrv if request.param == "tcp" else broker.gateway


@pytest.fixture
def fresh() -> Callable[[str], str]:
    """Makes names that no other test uses."""
    return lambda prefix: f"{prefix}-{next(_numbers)}"
