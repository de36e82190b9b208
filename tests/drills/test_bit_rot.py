"""One flipped bit in a follower's files: found, made good from the peers, and nobody is ever given the rotten bytes.

After each case the follower's log files must be equal to the leader's byte by byte. While it is mended it is asked
what it is, again and again: it must never say that it leads.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

import trimq
from broker.store.entry import HEADER_BYTES, parse_header
from tests.drills.support import (
    HEADER_BLOCK_BYTES,
    SEGMENT_BYTES,
    compare_logs,
    flip_bit,
    local_cluster,
    log_lines,
    quiet,
    read_and_judge,
    segment_file,
    segments,
    send_bulk,
    told_by,
)
from trimq.drill.history import History
from trimq.drill.load import warm_up
from trimq.remoting.client import RemotingClient, open_remoting_client
from trimq.remoting.system import AnyioNetwork
from trimq.testing.local_cluster import LocalCluster
from trimq.testing.status import ask

GROUP = "broker-a"
MEGABYTES = 20
HARD_STATE = "hard-state"
HARD_STATE_BLOCKS = 4


@dataclass
class Patient:
    """The follower that rots, and what it said of itself meanwhile."""

    cluster: LocalCluster
    node: str
    end: int
    """Where the log ended, all of it committed, when the bit was flipped."""
    roles: list[str] = field(default_factory=list)

    def entries(self, base: int) -> list[tuple[int, int]]:
        """(offset in the file, size) of each entry of a segment, in order."""
        data = segment_file(self.cluster, self.node, GROUP, base).read_bytes()
        found, at = [], 0
        while at < SEGMENT_BYTES and base + at < self.end:
            header = parse_header(data, HEADER_BLOCK_BYTES + at, position=base + at)
            found.append((HEADER_BLOCK_BYTES + at, header.size))
            at += header.size
        return found

    def store_file(self, name: str) -> Path:
        return self.cluster.store_path(self.node, GROUP) / name


def rot_sealed_body(patient: Patient) -> None:
    assert len(segments(patient.cluster, patient.node, GROUP)) > 2
    entries = patient.entries(0)
    at, size = max(entries[:-1], key=lambda entry: entry[1])
    flip_bit(segment_file(patient.cluster, patient.node, GROUP, 0), at + size // 2)


def rot_sealed_header(patient: Patient) -> None:
    entries = patient.entries(0)
    at, _ = entries[len(entries) // 2]
    flip_bit(segment_file(patient.cluster, patient.node, GROUP, 0), at + 20)


def rot_active_body(patient: Patient) -> None:
    base = active_base(patient)
    at, size = max(patient.entries(base), key=lambda entry: entry[1])
    flip_bit(segment_file(patient.cluster, patient.node, GROUP, base), at + HEADER_BYTES + (size - HEADER_BYTES) // 2)


def rot_active_header(patient: Patient) -> None:
    base = active_base(patient)
    entries = patient.entries(base)
    at, _ = entries[len(entries) // 2]
    flip_bit(segment_file(patient.cluster, patient.node, GROUP, base), at + 20)


def rot_last_entry(patient: Patient) -> None:
    base = active_base(patient)
    at, _ = patient.entries(base)[-1]
    flip_bit(segment_file(patient.cluster, patient.node, GROUP, base), at + 20)


def active_base(patient: Patient) -> int:
    return patient.end - patient.end % SEGMENT_BYTES


def rot_one_copy_of_the_hard_state(patient: Patient) -> None:
    data = patient.store_file(HARD_STATE).read_bytes()
    newest = max((0, 2), key=lambda block: data[block * 4096 + 8 : block * 4096 + 16])
    flip_bit(patient.store_file(HARD_STATE), newest * 4096 + 24)


def rot_every_copy_of_the_hard_state(patient: Patient) -> None:
    for block in range(HARD_STATE_BLOCKS):
        flip_bit(patient.store_file(HARD_STATE), block * 4096 + 24)


CASES: dict[str, tuple[Callable[[Patient], None], bool, str]] = {
    "body in a sealed segment": (rot_sealed_body, False, "damaged"),
    "header in a sealed segment": (rot_sealed_header, False, "damaged"),
    "body in the active segment": (rot_active_body, False, "damaged"),
    "header in the active segment": (rot_active_header, True, "damaged"),
    "header of the last entry": (rot_last_entry, True, ""),
    "one copy of the hard state": (rot_one_copy_of_the_hard_state, True, "mended from the other one"),
    "every copy of the hard state": (rot_every_copy_of_the_hard_state, True, "rebuilt from the peers"),
}
"""What is flipped, whether the follower is killed (else stopped in good order) before, what its log must say."""


async def watch_roles(asker: RemotingClient, patient: Patient, *, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    while True:
        found = (await ask(asker, patient.cluster, answer_s=0.5))[GROUP].replicas[patient.node]
        if not patient.roles or patient.roles[-1] != found["role"]:
            patient.roles.append(found["role"])
        await trio.sleep(0.02)


async def one_case(
    asker: RemotingClient,
    client: trimq.Client,
    cluster: LocalCluster,
    queues: list[trimq.Queue],
    history: History,
    name: str,
    rng: random.Random,
) -> str:
    """Stop a follower, rot it, start it, read everything through everybody, compare. Returns the figures."""
    rot, kill, evidence = CASES[name]
    end = await quiet(asker, cluster, GROUP)
    leader = (await ask(asker, cluster))[GROUP].leader
    node = rng.choice([each for each in cluster.nodes if each != leader])
    await trio.sleep(1.2)  # the marks are written each second
    if kill:
        cluster.signal(node, signal.SIGKILL)
        await trio.to_thread.run_sync(cluster.await_gone, node)
    else:
        await trio.to_thread.run_sync(cluster.stop, node)
    patient = Patient(cluster, node, end)
    rot(patient)
    log_at = cluster.log_path(node).stat().st_size
    begun = trio.current_time()
    async with trio.open_nursery() as watching:
        await watching.start(watch_roles, asker, patient)
        cluster.start(node)
        verdict = await read_and_judge(client, cluster, queues, history)
        assert verdict.violations == 0, (name, verdict.examples)
        await quiet(asker, cluster, GROUP)
        watching.cancel_scope.cancel()
    took = trio.current_time() - begun
    said = log_lines(cluster, node, since=log_at)
    assert evidence in said, (name, said)
    assert "leader" not in patient.roles, (name, patient.roles)
    compared = compare_logs(cluster, GROUP, node, leader or "", end)
    there = (await told_by(asker, cluster, node, GROUP))["role"]
    return f"{name}: {node} {' > '.join(patient.roles)}, now {there}; {compared:,} bytes equal after {took:.1f} s"


async def leader_rots(
    asker: RemotingClient,
    client: trimq.Client,
    cluster: LocalCluster,
    queues: list[trimq.Queue],
    history: History,
) -> str:
    """A bit flips in the running leader's oldest segment, with nothing in its caches: it finds it when it is asked."""
    await trio.to_thread.run_sync(cluster.stop, *cluster.nodes)
    cluster.start()
    end = await quiet(asker, cluster, GROUP)
    node = (await ask(asker, cluster))[GROUP].leader or ""
    log_at = cluster.log_path(node).stat().st_size
    begun = trio.current_time()
    rot_sealed_body(Patient(cluster, node, end))
    verdict = await read_and_judge(client, cluster, queues, history)
    assert verdict.violations == 0, verdict.examples
    end = await quiet(asker, cluster, GROUP)
    took = trio.current_time() - begun
    assert "damaged" in log_lines(cluster, node, since=log_at)
    after = (await ask(asker, cluster))[GROUP].leader
    compared = compare_logs(cluster, GROUP, node, next(each for each in cluster.nodes if each != node), end)
    return f"leader {node} while it runs: now {after} leads; {compared:,} bytes equal after {took:.1f} s"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_flipped_bit_is_found_mended_and_never_served(tmp_path: Path) -> None:
    history = History()
    rng = random.Random("bit rot")

    async def main(cluster: LocalCluster) -> None:
        async with (
            open_remoting_client(AnyioNetwork()) as asker,
            trimq.connect(cluster.namesrv_address) as client,
        ):
            queues = await warm_up(client, "rot", cluster.groups, 2)
            await send_bulk(client, queues, history, number=1, megabytes=MEGABYTES)
            for name in CASES:
                print(await one_case(asker, client, cluster, queues, history, name, rng))
            print(await leader_rots(asker, client, cluster, queues, history))

    with local_cluster(tmp_path, groups=1) as cluster:
        trio.run(main, cluster)
