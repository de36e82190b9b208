"""`python -m namesrv [-p PORT] [-c namesrv.conf]`: a name server process.

Exit status 0 after SIGTERM or SIGINT, 1 when it could not start (one line says why), 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import errno
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import trio

from namesrv.config import ConfigError, NamesrvConfig, read
from namesrv.kv_config import KVFile
from namesrv.server import serve_namesrv
from trimq.logs import setup
from trimq.remoting.limits import Limits
from trimq.remoting.system import TrioNetwork, connection_limit

log = logging.getLogger("namesrv")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="namesrv", description="trimq's name server.")
    parser.add_argument("-p", "--port", type=_port, help="listen port (default 9876, or listenPort of the file)")
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="namesrv.conf with RocketMQ's keys")
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return parser.parse_args(argv)


async def _run(config: NamesrvConfig, kv: KVFile) -> None:
    """Serve until a signal comes. Signals are watched from the start, so an early one is not lost."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def stop_on_signal() -> None:
                async for number in signals:
                    log.info("name server stops", extra={"signal": signal.Signals(number).name})
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop_on_signal)
            limits = Limits(connections_max=connection_limit(reserve=32))
            await serve_namesrv(config, TrioNetwork(), kv=kv, limits=limits)


def _why_not(error: Exception, config: NamesrvConfig) -> str:
    """One line that says what to do."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"port {config.listen_port} is in use: stop what listens there, or choose another with -p"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EADDRNOTAVAIL):
        return f"cannot listen on {config.bind_address}:{config.listen_port}: {error.strerror}"
    return f"cannot use {config.kv_config_path}: {error}. Correct or remove it, or set kvConfigPath"


def main(argv: Sequence[str] | None = None) -> None:
    """The console script `trimq-namesrv`."""
    arguments = _arguments(argv)
    setup(arguments.log_level)
    try:
        config, ignored = read(arguments.config) if arguments.config else (NamesrvConfig(), [])
    except ConfigError as error:
        sys.exit(f"namesrv: {error}")
    if ignored:
        log.warning("keys without a meaning here were ignored", extra={"keys": " ".join(ignored)})
    if arguments.port is not None:
        config = replace(config, listen_port=arguments.port)
    try:
        trio.run(_run, config, KVFile(Path(config.kv_config_path).expanduser()))
    except* (OSError, ValueError) as group:
        sys.exit(f"namesrv: {_why_not(_first(group), config)}")


def _first(error: BaseException) -> Exception:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error


if __name__ == "__main__":
    main()
