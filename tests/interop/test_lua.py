"""The gateway path: a web server that logs its requests through lua-resty-rocketmq, as Apache APISIX does.

nginx and its Lua module are Debian's. The client is in no registry but LuaRocks; where that is not to be had, a
checkout of its repository can be named by TRIMQ_LUA_RESTY_ROCKETMQ.
"""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.bench import Killer, cluster_for_clients, create_topic, stored
from tests.interop.chromium import NotToBeHad, debian_packages
from tests.interop.table import FAILED, NOT_TO_BE_HAD, PASSED, Row, record

CLIENT = "lua-resty-rocketmq (nginx)"
HERE = Path(__file__).parent / "lua"
MESSAGES = 10_000
KILLS = 3
THREADS = 8
pytestmark = [pytest.mark.interop, pytest.mark.timeout(460)]


def library() -> tuple[Path, str]:
    """Where the client is, and its version. Raises `NotToBeHad`."""
    places = [os.environ.get("TRIMQ_LUA_RESTY_ROCKETMQ"), "/usr/local/share/lua/5.1", "/usr/share/lua/5.1"]
    for place in (Path(each) for each in places if each):
        if (place / "lib" / "resty" / "rocketmq").is_dir():
            rockspec = (place / "lua-resty-rocketmq.rockspec").read_text()
            return place, rockspec.split('version = "')[1].split('"')[0]
        if (place / "resty" / "rocketmq").is_dir():
            return place, "installed"
    raise NotToBeHad(
        "in none of Debian's, npm's and PyPI's registries; LuaRocks is not reached: a checkout's path goes into"
        " TRIMQ_LUA_RESTY_ROCKETMQ"
    )


@contextmanager
def nginx(directory: Path, client: Path, namesrv: str, topic: str) -> Iterator[int]:
    """A running web server; its port."""
    debian_packages("nginx-light", "libnginx-mod-http-lua", "lua-cjson", program="nginx")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    text = (HERE / "nginx.conf").read_text()
    words = {"DIRECTORY": directory, "LIBRARY": client, "HERE": HERE, "NAMESRV": namesrv, "PORT": port, "TOPIC": topic}
    head, _, rest = text.partition("load_module")
    for word, value in words.items():
        rest = rest.replace(word, str(value))
    configuration = directory / "nginx.conf"
    configuration.write_text(f"{head}load_module{rest}")
    process = subprocess.Popen(["nginx", "-c", str(configuration)], stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 15
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (directory / "error.log").read_text()
                assert time.monotonic() < until, "nginx does not listen"
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(15)


class Load:
    """Requests from several visitors at once; each is one message."""

    def __init__(self, port: int) -> None:
        self.acked: list[str] = []
        self.errors: list[str] = []
        self._port = port
        self._next = iter(range(MESSAGES))
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._visit) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def _visit(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while True:
            with self._lock:
                number = next(self._next, None)
            if number is None:
                connection.close()
                return
            connection.request("GET", f"/log?body=body-{number}")
            answer = connection.getresponse()
            said = answer.read().decode()
            (self.acked if answer.status == 200 else self.errors).append(
                f"body-{number}" if answer.status == 200 else said.strip()
            )
            if answer.status != 200:
                time.sleep(0.01)

    def reached(self, count: int) -> None:
        """Wait until so many requests were answered."""
        while len(self.acked) + len(self.errors) < count:
            assert any(thread.is_alive() for thread in self._threads)
            time.sleep(0.02)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def test_a_web_server_logs_ten_thousand_requests_while_leaders_are_killed(tmp_path: Path) -> None:
    try:
        client, version = library()
    except NotToBeHad as error:
        record(Row(client=CLIENT, version="-", feature="all", result=NOT_TO_BE_HAD, note=str(error)))
        pytest.skip(str(error))
    with cluster_for_clients(tmp_path / "cluster") as cluster:
        namesrv, topic = cluster.namesrv_address, "access-log"
        create_topic(namesrv, topic)
        with nginx(tmp_path, client, namesrv, topic) as port:
            load, killer = Load(port), Killer(cluster)
            try:
                for number in range(KILLS):
                    load.reached(MESSAGES * (number + 1) // (KILLS + 1))
                    killer.kill()
            finally:
                load.join()
                killer.returned()
        killer.healed()
        there = stored(namesrv, topic)
    lost = len(set(load.acked) - there.bodies)
    most = "; ".join(f"{count} x {text[:60]}" for text, count in Counter(load.errors).most_common(2))
    record(
        Row(
            client=CLIENT,
            version=version,
            feature="send, leader kills",
            result=FAILED if lost or not load.acked else PASSED,
            messages=len(load.acked),
            kills=killer.kills,
            lost=lost,
            twice=there.twice_in_one_group,
            errors=len(load.errors),
            note=f"the client itself never tries again{'; ' if most else ''}{most}",
        )
    )
    assert len(load.acked) > MESSAGES // 2
    assert not lost
