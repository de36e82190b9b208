"""Nodes in network namespaces: the commands that cut and mend, and a cluster that is not on loopback."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimq.drill.faults import PATTERNS, _cuts
from trimq.drill.kinds import Fault
from trimq.testing.local_cluster import ClusterError, LocalCluster, node_names
from trimq.testing.namespaces import NamespaceError, Namespaces, changes, check_tools

NODES = node_names(3)
NOTHING: frozenset[tuple[str, str]] = frozenset()


def test_a_direction_is_cut_where_it_begins_and_only_there() -> None:
    assert changes(NOTHING, frozenset({("n0", "n2")}), NODES) == {
        "n0": ["neighbour replace 10.0.0.3 lladdr 02:00:00:00:00:ff dev e0 nud permanent"]
    }
    assert changes(frozenset({("n0", "n2")}), NOTHING, NODES) == {
        "n0": ["neighbour replace 10.0.0.3 lladdr 02:00:00:00:00:03 dev e0 nud permanent"]
    }


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_cut_already_is_left_alone_and_what_is_mended_too(pattern: str) -> None:
    cuts = _cuts(pattern, "n1", ["n0", "n2"])
    assert changes(cuts, cuts, NODES) == {}
    cutting, mending = changes(NOTHING, cuts, NODES), changes(cuts, NOTHING, NODES)
    assert set(cutting) == set(mending) == {here for here, _ in cuts}
    assert sum(map(len, cutting.values())) == sum(map(len, mending.values())) == len(cuts)


def test_one_pattern_leads_to_another_without_mending_what_both_cut() -> None:
    before, wanted = frozenset({("n0", "n1"), ("n0", "n2")}), frozenset({("n0", "n1"), ("n1", "n0")})
    told = changes(before, wanted, NODES)
    assert {node: len(lines) for node, lines in told.items()} == {"n0": 1, "n1": 1}
    assert "10.0.0.3 lladdr 02:00:00:00:00:03" in told["n0"][0]
    assert "10.0.0.1 lladdr 02:00:00:00:00:ff" in told["n1"][0]


def test_the_configuration_follows_where_the_nodes_are(tmp_path: Path) -> None:
    namespaces = Namespaces({"n0": 11, "n1": 12, "n2": 13})
    cluster = LocalCluster.create(tmp_path, base_port=0, groups=1, namespaces=namespaces)
    text = cluster.configuration_path("n1", "broker-a").read_text()
    assert "brokerIP1=10.0.0.2\n" in text
    assert f"namesrvAddr=10.0.0.254:{cluster.layout.namesrv}\n" in text
    peers = ";".join(f"n{i}-10.0.0.{i + 1}:{cluster.layout.peer(i)}" for i in range(3))
    assert f"dLegerPeers={peers}\n" in text
    assert "127.0.0.1" not in text
    assert cluster.client_address("n2", "broker-a").startswith("10.0.0.3:")
    assert cluster.websocket_address.startswith("ws://10.0.0.254:")
    assert cluster.command("n1")[:3] == ["nsenter", "--net=/proc/12/ns/net", "--"]
    assert cluster.command("namesrv")[1:3] == ["-m", "namesrv"]


def test_a_cluster_found_again_knows_its_addresses_but_starts_no_node_in_the_wrong_network(tmp_path: Path) -> None:
    created = LocalCluster.create(tmp_path, base_port=0, namespaces=Namespaces({"n0": 11, "n1": 12, "n2": 13}))
    found = LocalCluster.load(tmp_path)
    assert found.hosts == created.hosts
    assert found.namesrv_address == created.namesrv_address
    with pytest.raises(ClusterError, match="namespace of n0 ended"):
        found.command("n0")


def test_without_namespaces_everything_is_on_loopback(tmp_path: Path) -> None:
    cluster = LocalCluster.create(tmp_path, base_port=0)
    assert cluster.hosts == {}
    assert {cluster.host(process) for process in cluster.processes} == {"127.0.0.1"}


def test_a_tool_that_is_not_there_is_named_with_its_package(tmp_path: Path) -> None:
    for tool in ("unshare", "nsenter"):
        (tmp_path / tool).write_text("#!/bin/sh\n")
        (tmp_path / tool).chmod(0o755)
    with pytest.raises(NamespaceError, match=r"`ip` \(iproute2\) is not installed"):
        check_tools(str(tmp_path))


def test_the_gates_in_the_brokers_are_for_the_other_partition() -> None:
    assert Fault.PARTITION.is_trouble
    assert not Fault.KERNEL_PARTITION.is_trouble
