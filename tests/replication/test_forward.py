"""Forwarding to the leader and parking while nobody leads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from broker.replication.base import NO_LEADER, LeaderHint, Outcome, ReplyTo, Verdict
from broker.replication.forward import (
    IN_FLIGHT_MAX_BYTES,
    PARK_S,
    PARKED_PER_CONNECTION_MAX_BYTES,
    Forwarder,
)
from raft.frames import CodecError
from tests.replication.raft_cluster import Replica, cluster

pytestmark = pytest.mark.trio


class Client:
    def __init__(self, peer: str = "1.2.3.4:5") -> None:
        self.peer, self.local = peer, "n:10911"
        self.got: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.got.append(frame)


class Host:
    """A group whose leader and links the test decides."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.admitting = False
        self.leads = False
        self.gone = False
        self.leader: LeaderHint = NO_LEADER
        self.links: dict[str, Host] = {}
        self.forwarder = Forwarder(self)
        self.forwarder.refusal = lambda frame, reply, outcome: outcome.verdict.value.encode() + b":" + frame
        self.forwarder.serve = self.serve
        self.served: list[tuple[str, bytes]] = []
        self.silent = False
        self.frames = 0

    def serve(self, reply: ReplyTo, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.served.append((reply.peer, frame))
            if not self.silent:
                reply.send(b"answer:" + frame)

    def reachable(self, node_id: str) -> bool:
        return node_id in self.links

    def send_app(self, node_id: str, fields: Sequence[Any], body: Sequence[bytes | memoryview]) -> bool:
        target = self.links.get(node_id)
        if target is None:
            return False
        self.frames += 1
        target.forwarder.on_frame(self.name, list(fields), memoryview(b"".join(body)))
        return True

    def lead(self) -> None:
        self.leads = self.admitting = True
        self.leader = LeaderHint(self.name, "", 1)
        self.forwarder.leader_changed()

    def follow(self, other: Host) -> None:
        self.leader = LeaderHint(other.name, "", 1)
        self.forwarder.leader_changed()


def joined() -> tuple[Host, Host]:
    a, b = Host("a"), Host("b")
    a.links["b"], b.links["a"] = b, a
    return a, b


def pump(*hosts: Host) -> None:
    for _ in range(3):
        for host in hosts:
            host.forwarder.flush()


def frames(count: int) -> list[bytes]:
    return [b"frame-%03d" % number for number in range(count)]


async def test_requests_travel_once_together_and_come_back_in_order() -> None:
    a, b = joined()
    b.lead()
    a.follow(b)
    client = Client()
    for frame in frames(100):
        assert a.forwarder.submit(frame, client)
    pump(a, b)
    assert b.served == [("1.2.3.4:5", frame) for frame in frames(100)]
    assert client.got == [b"".join(b"answer:" + frame for frame in frames(100))]
    assert (a.frames, b.frames) == (1, 1)
    assert a.forwarder.in_flight_bytes == 0


async def test_a_oneway_request_is_not_waited_for() -> None:
    a, b = joined()
    b.lead()
    a.follow(b)
    client = Client()
    assert a.forwarder.submit(b"oneway", client, oneway=True)
    assert a.forwarder.in_flight_bytes == 0
    pump(a, b)
    assert b.served == [("1.2.3.4:5", b"oneway")]
    assert client.got == []


async def test_parked_requests_leave_before_newer_ones(autojump_clock: MockClock) -> None:
    a, b = joined()
    one, two = Client("one"), Client("two")
    a.forwarder.submit(b"req1", one)
    a.forwarder.submit(b"req2", two)
    await trio.sleep(1)
    b.lead()
    a.forwarder.submit(b"req3", one)
    a.follow(b)
    a.forwarder.submit(b"req4", one)
    pump(a, b)
    assert [frame for _peer, frame in b.served] == [b"req1", b"req2", b"req3", b"req4"]
    assert a.forwarder.parked_bytes == 0


async def test_parked_requests_are_served_here_when_this_replica_is_elected() -> None:
    a = Host("a")
    client = Client()
    for frame in frames(3):
        a.forwarder.submit(frame, client)
    a.leads = True
    a.forwarder.leader_changed()
    assert not a.served  # elected, its view not complete yet
    a.lead()
    assert [frame for _peer, frame in a.served] == frames(3)
    assert len(client.got) == 3


async def test_a_replica_that_was_removed_keeps_nobody_waiting() -> None:
    a, b = joined()
    client = Client()
    a.forwarder.submit(b"parked", client)
    a.gone = True
    a.leader = LeaderHint(b.name, "", 1)  # its successor: a hint for clients, no place to forward to
    a.forwarder.leader_changed()
    assert a.forwarder.submit(b"late", client)
    pump(a, b)
    assert client.got == [b"lost:parked", b"lost:late"]
    assert (b.served, a.forwarder.parked_bytes) == ([], 0)


async def test_what_is_parked_too_long_surely_was_not_stored(autojump_clock: MockClock) -> None:
    a = Host("a")
    client = Client()
    a.forwarder.submit(b"want", client)
    a.forwarder.submit(b"oneway", client, oneway=True)
    a.forwarder.tick(trio.current_time())
    assert client.got == []
    await trio.sleep(PARK_S)
    a.forwarder.tick(trio.current_time())
    assert client.got == [b"lost:want"]
    assert a.forwarder.parked_bytes == 0


async def test_parking_is_bounded_per_connection() -> None:
    a = Host("a")
    greedy, modest = Client("greedy"), Client("modest")
    big = bytes(PARKED_PER_CONNECTION_MAX_BYTES // 4)
    assert [a.forwarder.submit(big, greedy) for _ in range(5)] == [True, True, True, True, False]
    assert a.forwarder.submit(big, modest)
    a.forwarder.closed(greedy)
    assert a.forwarder.parked_bytes == len(big)
    assert a.forwarder.submit(big, greedy)


async def test_what_is_in_flight_is_bounded() -> None:
    a, b = joined()
    b.lead()
    b.silent = True
    a.follow(b)
    client = Client()
    big = bytes(IN_FLIGHT_MAX_BYTES // 2)
    assert [a.forwarder.submit(big, client) for _ in range(3)] == [True, True, False]


async def test_a_link_that_breaks_after_a_write_makes_the_outcome_unknown() -> None:
    a, b = joined()
    b.lead()
    b.silent = True
    a.follow(b)
    client = Client()
    a.forwarder.submit(b"sent", client)
    pump(a, b)
    a.forwarder.submit(b"held", client)  # not handed to the link yet
    del a.links["b"]
    a.forwarder.link_changed("b", up=False)
    assert client.got == [b"unknown:sent"]
    assert a.forwarder.in_flight_bytes == 0
    a.lead()
    assert [frame for _peer, frame in a.served] == [b"held"]


async def test_an_answer_of_an_earlier_life_of_the_link_reaches_nobody() -> None:
    a, b = joined()
    b.lead()
    b.silent = True
    replies: list[ReplyTo] = []
    b.forwarder.serve = lambda reply, frames: replies.append(reply)
    a.follow(b)
    client = Client()
    a.forwarder.submit(b"old-", client)
    pump(a, b)
    for host, other in ((a, "b"), (b, "a")):
        host.forwarder.link_changed(other, up=False)
        host.forwarder.link_changed(other, up=True)
    assert client.got == [b"unknown:old-"]
    fresh = Forwarder(a)  # the other side's process began anew: its numbers begin at 1 again
    a.forwarder = fresh
    fresh.submit(b"new-", client)
    pump(a, b)
    replies[0].send(b"answer:old-")
    pump(a, b)
    assert client.got == [b"unknown:old-"]


async def test_an_answer_that_never_comes_is_given_up(autojump_clock: MockClock) -> None:
    a, b = joined()
    b.lead()
    b.silent = True
    a.follow(b)
    client = Client()
    a.forwarder.submit(b"lazy", client)
    pump(a, b)
    await trio.sleep(16)
    a.forwarder.tick(trio.current_time())
    assert client.got == [b"unknown:lazy"]


async def test_a_forwarded_request_is_never_forwarded_again() -> None:
    a, b = joined()
    c = Host("c")
    b.links["c"] = c
    a.follow(b)
    b.follow(c)  # a still believes in b, which follows c by now
    client = Client()
    a.forwarder.submit(b"once", client)
    pump(a, b, c)
    assert c.served == []
    assert client.got == [b"lost:once"]


async def test_a_forwarded_request_waits_for_the_new_leaders_view() -> None:
    a, b = joined()
    b.leads = True
    b.leader = LeaderHint("b", "", 1)
    a.follow(b)
    client = Client()
    a.forwarder.submit(b"wait", client)
    pump(a, b)
    assert b.served == []
    b.lead()
    pump(b, a)
    assert client.got == [b"answer:wait"]


async def test_at_the_end_everybody_gets_an_answer() -> None:
    a, b = joined()
    b.lead()
    b.silent = True
    a.follow(b)
    client = Client()
    a.forwarder.submit(b"sent", client)
    a.leader = NO_LEADER
    a.forwarder.submit(b"park", client)
    a.forwarder.stop()
    assert sorted(client.got) == [b"lost:park", b"unknown:sent"]


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(plain, max_size=3), st.binary(max_size=20))
async def test_any_forwarding_frame_is_taken_or_raises_the_codec_error(fields: list[Any], body: bytes) -> None:
    host = Host("a")
    host.lead()
    try:
        host.forwarder.on_frame("b", fields, memoryview(body))
    except CodecError:
        pass


def followers(leader: Replica, replicas: list[Replica]) -> list[Replica]:
    return [replica for replica in replicas if replica is not leader]


async def test_over_real_links_an_election_is_only_a_pause(autojump_clock: MockClock) -> None:
    async with cluster() as c:
        leader = await c.ready("g")
        follower = followers(leader, c.replicas("g"))[0]
        client = Client()
        refused: list[Outcome] = []

        def refusal(frame: bytes, reply: ReplyTo, outcome: Outcome) -> bytes | None:
            refused.append(outcome)
            return None

        follower.replicator.forwarder.refusal = refusal
        for frame in frames(50):
            assert follower.replicator.forwarder.submit(frame, client)
        await trio.sleep(0.1)
        assert leader.served == frames(50)
        assert b"".join(client.got) == b"".join(b"answer:" + frame for frame in frames(50))
        await c.machines[leader.replicator.node_id].kill()
        client.got.clear()
        await trio.sleep(0.005)
        for frame in frames(20):
            assert follower.replicator.forwarder.submit(frame, client)
        await c.ready("g", besides=leader.replicator.node_id)
        await trio.sleep(0.2)
        answers = b"".join(client.got)
        told_unknown = [outcome for outcome in refused if outcome.verdict is Verdict.UNKNOWN]
        assert answers.count(b"answer:") + len(told_unknown) == 20
        assert len(refused) == len(told_unknown)
