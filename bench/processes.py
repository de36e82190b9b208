"""Several replica groups on one machine: in one process, each in a process of its own, on three nodes.

The load comes from thin clients, each a process, one per group.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

from bench.peers.base import Address
from bench.peers.trimq import Trimq, opener
from bench.rocketmq_dialect import Sends
from bench.scale import Found, Sizes
from bench.thin import drive

__all__ = ["groups", "processes"]

_BALANCED_S = 4.0
"""By then every group is led by the node that is preferred."""
_LAYOUTS = ("two groups in one process", "two groups in two processes")


def processes(home: Path, sizes: Sizes, found: Found) -> None:
    """The sum of two groups' rates, both in one process or each in its own, in turn.

    One replica a group, so that the machine's two cores belong to the groups and not to their followers; acknowledged
    when it is on the disk.
    """
    with ExitStack() as stack:
        one = stack.enter_context(opener("one", "", nodes=1, groups=2)(home / "one"))
        two = [stack.enter_context(opener(name, "", nodes=1)(home / name)) for name in ("left", "right")]
        pool = stack.enter_context(ProcessPoolExecutor(2, mp_context=get_context("spawn")))
        addresses = {_LAYOUTS[0]: _leaders(one), _LAYOUTS[1]: [peer.address() for peer in two]}
        for at in range(sizes.rounds):
            for layout in _LAYOUTS if at % 2 == 0 else _LAYOUTS[::-1]:
                loads = [pool.submit(_load, address, sizes.seconds) for address in addresses[layout]]
                found(f"1 KiB, 2 × 256 in flight, {layout}", at, sum(each.result() for each in loads), "msg/s")


def groups(home: Path, sizes: Sizes, found: Found) -> None:
    """The sum of the rates of three groups on three nodes, and of one group with all of the load, in turn."""
    with opener("three", "", groups=3)(home) as peer, ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        time.sleep(_BALANCED_S)
        leaders = _leaders(peer)
        addresses = {"three groups": leaders, "one group": leaders[:1] * 3}
        for at in range(sizes.rounds):
            for layout, where in addresses.items():
                loads = [pool.submit(_load, address, sizes.seconds) for address in where]
                found(f"1 KiB, 3 × 256 in flight, {layout}", at, sum(each.result() for each in loads), "msg/s")


def _leaders(peer: Trimq) -> list[Address]:
    """Where each group is led."""
    found = []
    for group in peer.cluster.groups:
        leader = peer.leader(group)
        host, _, port = peer.cluster.client_address(leader, group).rpartition(":")
        found.append((host, int(port)))
    return found


def _load(address: Address, seconds: float) -> float:
    return drive(address, Sends([("bench", queue) for queue in range(4)], 1024), window=256, seconds=seconds).per_second
