"""Routes, and whose word counts about leaders."""

from __future__ import annotations

import random

import pytest

from trimq.client.model import Queue
from trimq.client.namesrv import split_addresses
from trimq.client.route import GroupView, Route, interleave, pick_by_key, read_route
from trimq.client.timing import Backoff
from trimq.errors import NoRoute
from trimq.wire.body.route import TopicRouteData

ANSWER = b"""{"brokerDatas":[{"brokerAddrs":{"0":"b0:1","1":"b1:1"},"brokerName":"b","cluster":"C"},
{"brokerAddrs":{0:"a0:1"},"brokerName":"a","cluster":"C"}],"filterServerTable":{},"queueDatas":[
{"brokerName":"b","perm":6,"readQueueNums":2,"topicSysFlag":0,"writeQueueNums":1},
{"brokerName":"a","perm":4,"readQueueNums":1,"topicSysFlag":0,"writeQueueNums":1},
{"brokerName":"gone","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"""


def route() -> Route:
    return read_route("t", TopicRouteData.from_json(ANSWER))


def test_queues_follow_permissions_and_live_brokers() -> None:
    assert route().read_queues == (Queue("t", "a", 0), Queue("t", "b", 0), Queue("t", "b", 1))
    assert route().write_queues == (Queue("t", "b", 0),), "a may only be read, and nobody serves gone"
    assert route().groups[1].leader == "b0:1"


def test_a_new_topics_route_is_made_from_the_template() -> None:
    new = route().provisional("new", 4)
    assert new.read_queues == (Queue("new", "a", 0), Queue("new", "b", 0))


def test_consecutive_queues_belong_to_different_groups() -> None:
    queues = [Queue("t", group, number) for group in "ab" for number in range(2)]
    assert [queue.group for queue in interleave(queues)] == ["a", "b", "a", "b"]


@pytest.mark.parametrize(("key", "index"), [("42", 2), ("", 0), ("order-1", 2), ("polygenelubricants", 0)])
def test_order_keys_map_to_queues_as_java_maps_them(key: str, index: int) -> None:
    # "polygenelubricants".hashCode() is Integer.MIN_VALUE, whose absolute value Java cannot represent.
    queues = tuple(Queue("t", "a", number) for number in range(4))
    assert pick_by_key(queues, key).id == index


def test_a_hint_counts_from_the_newest_term_on() -> None:
    view = GroupView("a")
    view.routed({0: "a0:1", 1: "a1:1", 2: "a2:1"})
    assert view.hinted("a1:1", 5)
    assert not view.hinted("a2:1", 4)
    assert view.leader == "a1:1"
    assert not view.hinted("a1:1", 5), "no news"
    assert view.hinted("a2:1", 5)
    assert view.targets(replicas=True) == ["a2:1", "a0:1", "a1:1"]
    assert view.targets(replicas=False) == ["a2:1"]


def test_a_route_counts_whatever_was_heard_before() -> None:
    view = GroupView("a")
    view.hinted("a1:1", 5)
    view.routed({0: "a0:1", 1: "a1:1"})
    assert view.leader == "a0:1"
    view.routed({1: "a0:1", 2: "a1:1"})
    assert view.leader == "a0:1", "no leader registered: the last known one is still the best guess"
    view.routed({1: "a1:1", 2: "a2:1"})
    assert view.leader is None, "it is gone itself"
    assert view.targets(replicas=True) == ["a1:1", "a2:1"]
    view.hinted("a2:1", 6)
    view.routed({1: "a1:1", 2: "a2:1"})
    assert view.leader == "a2:1", "it registers as leader in a moment"


def test_name_server_addresses_come_in_several_shapes() -> None:
    assert split_addresses(" a:1; b:2,a:1 ") == ("a:1", "b:2")
    assert split_addresses(["a:1", "b:2"]) == ("a:1", "b:2")
    with pytest.raises(NoRoute, match="no name server address"):
        split_addresses("")
    assert split_addresses("ws://a:1;ws://b:2") == ("ws://a:1", "ws://b:2")
    with pytest.raises(NoRoute, match="mixes ws:// addresses with plain ones"):
        split_addresses("a:1;ws://b:2")


def test_waits_double_and_are_jittered() -> None:
    backoff = Backoff(random.Random(1))
    waits = [backoff.next_s() for _ in range(8)]
    for wait, most in zip(waits, [0.02, 0.04, 0.08, 0.16, 0.2, 0.2, 0.2, 0.2], strict=True):
        assert most / 2 <= wait <= most
    backoff.reset()
    assert backoff.next_s() <= 0.02
