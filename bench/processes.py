"""Several broker processes on one machine: two replica groups in one process, or each in a process of its own.

One replica a group, so that the machine's two cores belong to the groups and not to their followers; acknowledged when
it is on the disk. The load comes from two thin clients, each a process, one per group.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

from bench.peers.base import Address
from bench.peers.trimq import Trimq, opener
from bench.rocketmq_dialect import Sends
from bench.scale import Found, Sizes
from bench.thin import drive

__all__ = ["processes"]

_LAYOUTS = ("two groups in one process", "two groups in two processes")


def processes(home: Path, sizes: Sizes, found: Found) -> None:
    """The sum of both groups' rates, for either layout in turn."""
    with ExitStack() as stack:
        one = stack.enter_context(opener("one", "", nodes=1, groups=2)(home / "one"))
        two = [stack.enter_context(opener(name, "", nodes=1)(home / name)) for name in ("left", "right")]
        pool = stack.enter_context(ProcessPoolExecutor(2, mp_context=get_context("spawn")))
        addresses = {_LAYOUTS[0]: _groups(one), _LAYOUTS[1]: [peer.address() for peer in two]}
        for at in range(sizes.rounds):
            for layout in _LAYOUTS if at % 2 == 0 else _LAYOUTS[::-1]:
                loads = [pool.submit(_load, address, sizes.seconds) for address in addresses[layout]]
                found(f"1 KiB, 2 × 256 in flight, {layout}", at, sum(each.result() for each in loads), "msg/s")


def _groups(peer: Trimq) -> list[Address]:
    found = []
    for group in peer.cluster.groups:
        host, _, port = peer.cluster.client_address(peer.cluster.nodes[0], group).rpartition(":")
        found.append((host, int(port)))
    return found


def _load(address: Address, seconds: float) -> float:
    return drive(address, Sends([("bench", queue) for queue in range(4)], 1024), window=256, seconds=seconds).per_second
