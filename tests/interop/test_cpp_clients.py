"""The native C++ clients, unchanged, against a three-node Raft cluster whose leaders are killed in the middle."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import trimq
from tests.interop.environments import python_with
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import query, wait_ready_blocking

PROGRAM = Path(__file__).with_name("cpp_client.py")
MESSAGES = 2000
KILLS = 2


@pytest.mark.interop
@pytest.mark.timeout(300)
@pytest.mark.parametrize("requirement", ["rocketmq==0.4.4", "rocketmq-python-cvs==2.1.0.3"])
def test_a_native_client_sends_and_consumes_while_leaders_are_killed(requirement: str, tmp_path: Path) -> None:
    python = python_with(requirement)
    cluster = LocalCluster.create(tmp_path, base_port=0)
    cluster.start()
    try:
        wait_ready_blocking(cluster)
        home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}  # its log files go under HOME
        topic = "cpp-orders"

        def run(*arguments: object) -> subprocess.Popen[str]:
            command = [str(python), str(PROGRAM), *map(str, arguments)]
            return subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=home, cwd=tmp_path
            )

        consumer = run("consume", cluster.namesrv_address, topic, "cpp-readers", MESSAGES, 120)
        producer = run("send", cluster.namesrv_address, topic, MESSAGES)
        try:
            sent = _follow(producer, cluster)
            read = _last(consumer)
        finally:
            for process in (producer, consumer):
                if process.poll() is None:
                    process.kill()
                process.communicate()  # also closes its pipe
        assert sent["sent"] == MESSAGES
        missing = {f"body-{n}" for n in range(MESSAGES)} - set(read["bodies"])
        print(
            f"{requirement}: sent {sent['sent']}, client errors {sent['errors']}, "
            f"consumed {read['distinct']} distinct in {read['deliveries']} deliveries"
        )
        assert not missing, f"{len(missing)} messages never arrived"
    finally:
        cluster.stop()


async def _create_topic(namesrv: str, topic: str) -> None:
    async with trimq.connect(namesrv) as client:
        await client.admin.create_topic(topic, queues=4)


def _follow(producer: subprocess.Popen[str], cluster: LocalCluster) -> dict[str, Any]:
    """Read the producer's lines; kill a leader at each third of the way, and bring it back two seconds later."""
    kill_at = [MESSAGES * (n + 1) // (KILLS + 1) for n in range(KILLS)]
    last: dict[str, Any] = {}
    assert producer.stdout is not None
    for line in producer.stdout:
        last = json.loads(line)
        if last["event"] == "sent" and kill_at and last["count"] >= kill_at[0]:
            kill_at.pop(0)
            group = cluster.groups[len(kill_at) % len(cluster.groups)]
            leader = query(cluster)[group].leader
            assert leader is not None
            cluster.kill(leader)
            time.sleep(2)
            cluster.start(leader)
    assert last.get("event") == "done", f"the producer ended early: {last}"
    assert not kill_at
    return last


def _last(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    lines = process.stdout.read().splitlines()
    found: dict[str, Any] = json.loads(lines[-1])
    assert found["event"] == "done", f"the consumer ended early: {found}"
    return found
