"""`trimq standalone`: name server and one unreplicated broker in one process, for one developer.

Both servers run as they do alone, on real ports, so any client can be tried against it; stopping and starting it again
finds the messages. Messages are flushed to the disk before they are acknowledged.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
from pathlib import Path

import click

from trimq.cli.run import fail

__all__ = ["command"]

DEFAULT_DIR = "~/.trimq/standalone"


@click.command("standalone")
@click.option("--dir", "directory", default=DEFAULT_DIR, show_default=True, help="Where everything is kept.")
@click.option("--port", type=click.IntRange(0, 65535), default=9876, show_default=True, help="Name server's port.")
@click.option(
    "--broker-port",
    type=click.IntRange(0, 65535),
    default=None,
    help="Broker's port.  [default: --port + 1035 = 10911]",
)
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on and to give to clients.")
@click.option("--log-level", default="WARNING", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]))
def command(directory: str, port: int, broker_port: int | None, bind: str, log_level: str) -> None:
    """Run a name server and a broker in this process until Ctrl-C."""
    import trio

    from trimq.logs import setup

    setup(log_level)
    if broker_port is None:
        broker_port = port + 1035 if 0 < port < 64500 else 0
    try:
        trio.run(_run, Path(directory).expanduser(), port, broker_port, bind)
    except KeyboardInterrupt:
        sys.exit(0)
    except BaseExceptionGroup as group:
        reason = _why_not(group, port, broker_port, directory)
        if reason is None:
            raise
        fail(reason)


async def _run(directory: Path, port: int, broker_port: int, bind: str) -> None:
    """Serve until a signal comes; the broker stops before the name server, so that it can say goodbye."""
    from functools import partial

    import trio

    from broker.config import BrokerConfig, FlushDiskType, Strategy
    from broker.runtime import Env, open_broker
    from broker.store.fs import open_file_system
    from namesrv.config import NamesrvConfig
    from namesrv.kv_config import KVFile
    from namesrv.server import serve_namesrv
    from trimq.remoting.system import SystemClock, TrioNetwork

    network = TrioNetwork()
    seed = f"{random.SystemRandom().getrandbits(128):032x}"
    env = Env(clock=SystemClock(), network=network, open_fs=open_file_system, seed=seed, pid=os.getpid())
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as outer:
            namesrv = NamesrvConfig(listen_port=port, bind_address=bind)
            kv = KVFile(directory / "kvConfig.json")
            bound: int = await outer.start(partial(serve_namesrv, namesrv, network, kv=kv))
            config = BrokerConfig(
                broker_name="standalone",
                cluster_name="standalone",
                namesrv=(f"{bind}:{bound}",),
                strategy=Strategy.LOCAL,
                flush_disk_type=FlushDiskType.SYNC_FLUSH,
                listen_port=broker_port,
                bind_address=bind,
                broker_ip=bind,
                metrics_port=-1,
                store_dir=str(directory / "store"),
                segment_bytes=64 << 20,
            )
            async with trio.open_nursery() as inner:

                async def stop_on_signal() -> None:
                    async for _ in signals:
                        inner.cancel_scope.cancel()

                inner.start_soon(stop_on_signal)
                async with open_broker([config], env) as broker:
                    await broker.wait_ready()
                    address = broker.replicas[0].address
                    await _listed(f"{bind}:{bound}", address)
                    _quiet_collector()
                    click.echo(f"ready: name server {bind}:{bound}, broker {address}, data in {directory}")
                    await trio.sleep_forever()
            outer.cancel_scope.cancel()


async def _listed(namesrv: str, broker: str) -> None:
    """Ready means that clients find the broker: wait until the name server shows it as the leader."""
    import trio

    from trimq.cli.admin.session import leader_of, open_session

    async with open_session(namesrv) as session:
        while broker not in map(leader_of, (await session.cluster()).brokerAddrTable.values()):  # noqa: ASYNC110  (remote)
            await trio.sleep(0.005)


def _quiet_collector() -> None:
    """What is there now stays: keep it out of every later collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def _why_not(group: BaseExceptionGroup[BaseException], port: int, broker_port: int, directory: str) -> str | None:
    """One line for what an operator can change; None for what only a developer can."""
    import errno

    from broker.runtime import StartError

    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, StartError):
        return str(error)
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"port {port} or {broker_port} is in use: stop what listens there, or choose others with --port"
    if isinstance(error, OSError | ValueError):
        return f"cannot start in {directory}: {error}"
    return None
