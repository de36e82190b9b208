"""The route table: who is where, who may be id 0, what disappears when."""

from __future__ import annotations

import pytest

from namesrv import route_info
from namesrv.route_info import DataVersion, Registration, RouteTable, TableFull, TopicQueues

QUEUES = TopicQueues(4, 4, 6)
TWO = {"T": QUEUES, "U": TopicQueues(8, 8, 6)}


def reg(
    addr: str = "h1:1",
    broker_id: int = 0,
    *,
    name: str = "broker-a",
    term: int = 0,
    counter: int = 1,
    topics: dict[str, TopicQueues] | None = None,
    full: bool = True,
    cluster: str = "C",
    heartbeat_s: float = 120,
) -> Registration:
    return Registration(
        cluster=cluster,
        broker_name=name,
        addr=addr,
        broker_id=broker_id,
        ha_addr=f"{addr}9",
        version=DataVersion(stateVersion=term, timestamp=1000, counter=counter),
        topics=TWO if topics is None else topics,
        full=full,
        heartbeat_s=heartbeat_s,
    )


def told(table: RouteTable, *regs: Registration) -> RouteTable:
    """Register each through a connection of its own (numbers 1, 2, ...), all at time 0."""
    for conn_id, registration in enumerate(regs, 1):
        assert table.register(registration, conn_id=conn_id, now=0).accepted
    return table


def addrs(table: RouteTable, name: str = "broker-a") -> dict[int, str]:
    group = table.group(name)
    return group.addrs() if group else {}


def test_a_registered_leader_and_its_replicas_are_in_the_route() -> None:
    table = told(RouteTable(), reg("h1:1", 0, term=1), reg("h2:1", 2, term=1), reg("h3:1", 3, term=1))
    route = table.route("T")
    assert route is not None
    assert route.queues == (("broker-a", QUEUES),)
    assert route.groups[0].addrs() == {0: "h1:1", 2: "h2:1", 3: "h3:1"}
    assert table.route("nobody has it") is None


def test_a_replica_is_told_its_leader() -> None:
    table = told(RouteTable(), reg("h1:1", 0))
    answer = table.register(reg("h2:1", 1), conn_id=2, now=0)
    assert (answer.master_addr, answer.ha_addr) == ("h1:1", "h1:19")


def test_a_leader_change_is_visible_at_once_and_the_old_leader_leaves_id_0() -> None:
    table = told(RouteTable(), reg("h1:1", 0, term=1), reg("h2:1", 2, term=1))
    before = table.generation
    assert table.register(reg("h2:1", 0, term=2), conn_id=2, now=1).accepted
    assert addrs(table) == {0: "h2:1"}
    assert table.generation > before
    assert table.register(reg("h1:1", 1, term=2), conn_id=1, now=1).accepted
    assert addrs(table) == {0: "h2:1", 1: "h1:1"}


def test_a_leader_that_stepped_down_leaves_id_0_before_anyone_else_takes_it() -> None:
    table = told(RouteTable(), reg("h1:1", 0, term=1))
    table.register(reg("h1:1", 1, term=1), conn_id=1, now=1)
    assert addrs(table) == {1: "h1:1"}
    assert table.route("T") is not None


def test_a_revived_old_leader_cannot_take_the_route_back() -> None:
    table = told(RouteTable(), reg("h1:1", 0, term=5), reg("h2:1", 0, term=6))
    refused = table.register(reg("h1:1", 0, term=5, counter=9, topics={"Old": QUEUES, "T": QUEUES}), conn_id=1, now=1)
    assert not refused.accepted
    assert "term 5 is older than 6, held by h2:1" in refused.reason
    assert addrs(table) == {0: "h2:1"}
    assert table.route("Old") is None


def test_an_old_leader_is_refused_though_the_new_one_has_just_gone() -> None:
    table = told(RouteTable(), reg("h3:1", 3, term=6), reg("h2:1", 0, term=6))
    table.connection_closed(2)
    assert not table.register(reg("h1:1", 0, term=5), conn_id=3, now=1).accepted
    assert table.register(reg("h1:1", 0, term=7), conn_id=3, now=1).accepted


def test_a_group_that_was_wiped_and_formed_again_starts_over() -> None:
    table = told(RouteTable(), reg("h1:1", 0, term=9), reg("h2:1", 2, term=9))
    table.connection_closed(1)
    table.connection_closed(2)
    assert table.register(reg("h2:1", 0, term=1), conn_id=3, now=1).accepted


def test_a_new_process_at_the_leaders_own_address_may_come_with_a_lower_term() -> None:
    table = told(RouteTable(), reg("h1:1", 0, term=9))
    assert table.register(reg("h1:1", 0, term=1), conn_id=2, now=1).accepted


def test_without_terms_the_last_master_wins_as_in_rocketmq() -> None:
    table = told(RouteTable(), reg("h1:1", 0), reg("h2:1", 0))
    assert addrs(table) == {0: "h2:1"}


def test_a_closed_connection_takes_only_what_was_registered_through_it() -> None:
    table = told(RouteTable(), reg("h1:1", 0), reg("h2:1", 1), reg("h9:1", 0, name="broker-b"))
    assert [replica.addr for replica in table.connection_closed(1)] == ["h1:1"]
    assert addrs(table) == {1: "h2:1"}
    assert addrs(table, "broker-b") == {0: "h9:1"}


def test_a_broker_that_has_already_come_back_stays_when_its_old_connection_ends() -> None:
    table = told(RouteTable(), reg("h1:1", 0))
    table.register(reg("h1:1", 0), conn_id=7, now=1)
    assert table.connection_closed(1) == []
    assert addrs(table) == {0: "h1:1"}


def test_the_last_replica_takes_its_topics_with_it() -> None:
    table = told(RouteTable(), reg("h1:1", 0), reg("h9:1", 0, name="broker-b", topics={"T": QUEUES, "V": QUEUES}))
    table.connection_closed(1)
    assert table.topics() == ["T", "V"]
    route = table.route("T")
    assert route is not None
    assert [name for name, _ in route.queues] == ["broker-b"]
    assert table.group("broker-a") is None


def test_a_silent_broker_expires_after_its_own_heartbeat_time() -> None:
    table = told(RouteTable(), reg("h1:1", 0), reg("h2:1", 1, heartbeat_s=5))
    assert table.expire(4.9) == []
    assert [replica.addr for replica in table.expire(5)] == ["h2:1"]
    assert table.refresh("broker-a", "h1:1", conn_id=1, now=100) == DataVersion(
        stateVersion=0, timestamp=1000, counter=1
    )
    assert table.expire(200) == []
    assert [replica.addr for replica in table.expire(220)] == ["h1:1"]
    assert table.refresh("broker-a", "h1:1", conn_id=1, now=230) is None


def test_unregister_needs_the_right_address() -> None:
    table = told(RouteTable(), reg("h1:1", 0), reg("h2:1", 1))
    assert not table.unregister("broker-a", "h3:1")
    assert not table.unregister("broker-x", "h1:1")
    assert table.unregister("broker-a", "h1:1")
    assert addrs(table) == {1: "h2:1"}


def test_topics_come_from_id_0_only() -> None:
    table = told(RouteTable(), reg("h2:1", 1, topics={"T": QUEUES, "Slave": QUEUES}))
    assert table.topics() == []
    table.register(reg("h1:1", 0), conn_id=2, now=0)
    assert table.topics() == ["T", "U"]


def test_topics_are_taken_again_only_with_a_new_version() -> None:
    table = told(RouteTable(), reg("h1:1", 0, counter=1))
    table.register(reg("h1:1", 0, counter=1, topics={"T": QUEUES, "New": QUEUES}), conn_id=1, now=1)
    assert table.topics() == ["T", "U"]
    table.register(reg("h1:1", 0, counter=2, topics={"T": QUEUES, "New": QUEUES}), conn_id=1, now=1)
    assert table.topics() == ["New", "T"]


def test_only_a_whole_table_removes_topics() -> None:
    table = told(RouteTable(), reg("h1:1", 0, counter=1))
    table.register(reg("h1:1", 0, counter=2, topics={"New": QUEUES}, full=False), conn_id=1, now=1)
    assert table.topics() == ["New", "T", "U"]


def test_a_single_topic_of_an_unknown_broker_is_refused_so_that_it_sends_all() -> None:
    answer = RouteTable().register(reg("h1:1", 0, topics={"New": QUEUES}, full=False), conn_id=1, now=0)
    assert not answer.accepted
    assert "register broker failed" in answer.reason


def test_an_unchanged_registration_changes_no_answer() -> None:
    table = told(RouteTable(), reg("h1:1", 0), reg("h2:1", 1))
    before = table.generation
    table.register(reg("h1:1", 0), conn_id=1, now=5)
    table.register(reg("h2:1", 1), conn_id=2, now=5)
    table.refresh("broker-a", "h1:1", conn_id=1, now=6)
    table.expire(50)
    assert table.generation == before


def test_write_permission_is_wiped_and_given_back_for_one_broker() -> None:
    table = told(RouteTable(), reg("h1:1", 0), reg("h9:1", 0, name="broker-b", topics={"T": QUEUES, "V": QUEUES}))
    assert table.wipe_write_permission("broker-a") == 2
    route = table.route("T")
    assert route is not None
    assert [(name, queues.perm) for name, queues in route.queues] == [("broker-a", 4), ("broker-b", 6)]
    assert table.add_write_permission("broker-a") == 2
    assert table.wipe_write_permission("nobody") == 0


def test_deleting_a_topic_in_one_cluster_leaves_the_others() -> None:
    table = told(RouteTable(), reg("h1:1", 0), reg("h9:1", 0, name="broker-b", cluster="D"))
    assert table.delete_topic("T", "D")
    assert table.topics_of_cluster("D") == ["U"]
    assert table.topics_of_cluster("C") == ["T", "U"]
    assert table.delete_topic("T")
    assert table.route("T") is None
    assert not table.delete_topic("T")


def test_a_topic_can_be_added_to_known_brokers_only() -> None:
    table = told(RouteTable(), reg("h1:1", 0))
    table.add_topic("Static", [("broker-a", QUEUES), ("ghost", QUEUES)])
    table.add_topic("Ghost", [("ghost", QUEUES)])
    assert table.topics() == ["Static", "T", "U"]
    route = table.route("Static")
    assert route is not None
    assert [name for name, _ in route.queues] == ["broker-a"]


def test_unit_topics_are_found_by_their_flags() -> None:
    topics = {"unit": TopicQueues(1, 1, 6, 1), "sub": TopicQueues(1, 1, 6, 2), "both": TopicQueues(1, 1, 6, 3)}
    table = told(RouteTable(), reg("h1:1", 0, topics=topics))
    assert table.topics_with_flag(1) == ["both", "unit"]
    assert table.topics_with_flag(2) == ["both", "sub"]
    assert table.topics_with_flag(2, forbidden=1) == ["sub"]


def test_limits_are_errors_and_leave_the_table_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_info, "GROUPS_MAX", 1)
    monkeypatch.setattr(route_info, "REPLICAS_MAX", 2)
    monkeypatch.setattr(route_info, "TOPICS_MAX", 2)
    table = told(RouteTable(), reg("h1:1", 0), reg("h2:1", 1))
    for bad in (reg("h9:1", 0, name="broker-b"), reg("h3:1", 2), reg("h1:1", 0, counter=2, topics={"V": QUEUES})):
        with pytest.raises(TableFull, match="more than"):
            table.register(bad, conn_id=3, now=0)
    with pytest.raises(TableFull, match="more than"):
        table.add_topic("V", [("broker-a", QUEUES)])
    assert addrs(table) == {0: "h1:1", 1: "h2:1"}
    assert table.topics() == ["T", "U"]
