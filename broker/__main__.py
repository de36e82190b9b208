"""`python -m broker -c a.conf [-c b.conf ...] [-n host:9876;host:9876]`: a broker process.

One `-c` file is one replica of one group. Exit status 0 after SIGTERM or SIGINT, 1 when it could not start (one line
says why), 2 for wrong usage. This module alone reads the environment, the host's name and the system's randomness.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import trio

from broker.config import ConfigError, Loaded
from broker.config_file import load_config
from broker.runtime import Broker, Env, StartError, open_broker
from broker.store.fs import open_file_system
from trimq.logs import setup
from trimq.remoting.system import SystemClock, TrioNetwork, connection_limit

log = logging.getLogger("broker")

GC_THRESHOLD = 50_000
"""Young objects before a collection: requests make many that die at once, and a pause is close to a missed beat."""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="broker", description="trimq's broker.")
    parser.add_argument(
        "-c", "--config", type=Path, metavar="FILE", action="append", required=True, dest="files",
        help="broker.conf with RocketMQ's keys, or TOML; several make one process host several groups",
    )  # fmt: skip
    parser.add_argument("-n", "--namesrv", metavar="HOST:PORT;...", help="name servers; overrides namesrvAddr")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument("--seed", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _defaults() -> dict[str, str]:
    """What a file need not say: the environment and this host know it."""
    found = {"brokerName": socket.gethostname() or "broker-a"}
    if namesrv := os.environ.get("NAMESRV_ADDR"):
        found["namesrvAddr"] = namesrv
    return found


def _own_address(towards: str) -> str:
    """The address by which this host reaches `host:port`; loopback when that cannot be found out."""
    host, _, port = towards.rpartition(":")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing: the kernel only picks a route
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return "127.0.0.1"


def _boot_id() -> str:
    """Of this start of the machine; "" where the system does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _load(arguments: argparse.Namespace) -> list[Loaded]:
    loaded: list[Loaded] = []
    for path in arguments.files:
        one = load_config(path, defaults=_defaults())
        config = one.config
        if arguments.namesrv is not None:
            servers = tuple(part.strip() for part in arguments.namesrv.replace(",", ";").split(";") if part.strip())
            config = replace(config, namesrv=servers)
        if not config.broker_ip:
            config = replace(config, broker_ip=_own_address(config.namesrv[0] if config.namesrv else "192.0.2.1:9"))
        config = replace(config, store_dir=str(Path(config.store_dir).expanduser()))
        for notice in one.notices:
            log.warning("configuration: %s", notice, extra={"file": str(path)})
        loaded.append(replace(one, config=config))
    return loaded


Surround = Callable[[Env], AbstractAsyncContextManager[Env]]
"""What the broker's world is wrapped in for as long as it runs. A drill passes a world that breaks on command."""


async def _run(loaded: Sequence[Loaded], seed: str, surround: Surround) -> None:
    """Serve until a signal comes. Signals are watched from the start, so an early one is not lost."""
    plain = Env(
        clock=SystemClock(),
        network=TrioNetwork(),
        open_fs=open_file_system,
        seed=seed,
        connections_max=max(1, connection_limit() // len(loaded)),
        pid=os.getpid(),
        boot_id=_boot_id(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with surround(plain) as env, trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                async for number in signals:
                    log.info("broker stops", extra={"signal": signal.Signals(number).name})
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop_on_signal)
            configs = [one.config for one in loaded]
            async with open_broker(configs, env) as broker:
                _quiet_collector()
                _say_ready(broker)
                await trio.sleep_forever()


def _quiet_collector() -> None:
    """What is there now stays: keep it out of every later collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 100)


def _say_ready(broker: Broker) -> None:
    where = ", ".join(f"{replica.config.broker_name} at {replica.address}" for replica in broker.replicas)
    servers = ";".join(broker.replicas[0].config.namesrv) or "no name server"
    print(f"The broker is ready: {where} ({servers})", flush=True)


def main(argv: Sequence[str] | None = None, *, surround: Surround = nullcontext) -> None:
    """The console script `trimq-broker`."""
    arguments = _arguments(argv)
    setup(arguments.log_level)
    try:
        loaded = _load(arguments)
    except ConfigError as error:
        sys.exit(f"broker: {error}")
    seed = arguments.seed or f"{random.SystemRandom().getrandbits(128):032x}"
    try:
        trio.run(_run, loaded, seed, surround)
    except* StartError as group:
        sys.exit(f"broker: {_first(group)}")


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
