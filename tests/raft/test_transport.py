"""Links between nodes: hello, lanes, garbage, silence, death."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from raft.frames import CodecError, encode_frame
from raft.transport import Address, Mismatch, PeerTransport, TransportConfig
from tests.raft.memory_net import MemoryNetwork

pytestmark = pytest.mark.trio

A, B = Address("a", 1), Address("b", 1)


class Party:
    """An endpoint that writes down what happens."""

    def __init__(self, name: str, cluster: str = "c") -> None:
        self.name, self.cluster = name, cluster
        self.got: list[Any] = []
        self.events: list[str] = []
        self.app: list[Any] = []

    def hello(self) -> dict[str, Any]:
        return {"name": self.name, "cluster": self.cluster}

    def check_hello(self, addr: Address, hello: dict[str, Any]) -> Mismatch | None:
        if not isinstance(hello.get("cluster"), str):
            raise CodecError("no cluster")
        if hello["cluster"] != self.cluster:
            return Mismatch("cluster", f"{self.cluster} here, {hello['cluster']} there")
        return None

    def link_up(self, addr: Address) -> None:
        self.events.append(f"up {addr}")

    def link_down(self, addr: Address) -> None:
        self.events.append(f"down {addr}")

    def peer_gone(self, addr: Address) -> None:
        self.events.append(f"gone {addr}")

    def receive(self, addr: Address, messages: Sequence[tuple[list[Any], memoryview]]) -> None:
        for fields, body in messages:
            if fields[0] == "garbage":
                raise CodecError("garbage")
            self.got.append((fields, bytes(body)))

    def receive_app(self, addr: Address, fields: list[Any], body: memoryview) -> None:
        self.app.append((fields, bytes(body)))


class Pair:
    def __init__(self, net: MemoryNetwork, nursery: trio.Nursery) -> None:
        self.net = net
        self.nursery = nursery
        config = TransportConfig()
        self.a = PeerTransport(net.host("a"), random.Random(1), A, config)
        self.b = PeerTransport(net.host("b"), random.Random(2), B, config)
        self.scopes: dict[str, trio.CancelScope] = {}

    async def start(self, name: str, transport: PeerTransport) -> None:
        scope = self.scopes[name] = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[int]) -> None:
            with scope:
                await transport.run(task_status=task_status)

        await self.nursery.start(run)
        self.nursery.start_soon(self._tick, transport, scope)

    async def _tick(self, transport: PeerTransport, scope: trio.CancelScope) -> None:
        while not scope.cancel_called:
            await trio.sleep(0.02)
            transport.tick(trio.current_time())

    def kill(self, name: str) -> None:
        self.net.reset(name)
        self.scopes[name].cancel()


@asynccontextmanager
async def pair(**groups: tuple[Party, Party]) -> AsyncIterator[Pair]:
    async with trio.open_nursery() as nursery:
        both = Pair(MemoryNetwork(), nursery)
        for group, (one, two) in groups.items():
            both.a.register(group, one)
            both.b.register(group, two)
            both.a.set_peers(group, [A, B])
            both.b.set_peers(group, [A, B])
        await both.start("b", both.b)
        await both.start("a", both.a)
        await trio.sleep(0.5)
        yield both
        nursery.cancel_scope.cancel()


async def test_two_nodes_share_one_connection_for_all_groups(autojump_clock: MockClock) -> None:
    parties = {group: (Party("n0"), Party("n1")) for group in ("g1", "g2", "g3")}
    async with pair(**parties) as both:
        assert both.net.connections == 1
        for one, two in parties.values():
            assert (one.events, two.events) == (["up b:1"], ["up a:1"])
        assert both.a.link(B).send_control("g1", ["beat", 1])
        assert both.a.link(B).send_control("g2", ["beat", 2])
        assert both.b.link(A).send_data("g3", ["entries", 3], [b"ab", b"cd"])
        await trio.sleep(0.1)
        assert parties["g1"][1].got == [(["beat", 1], b"")]
        assert parties["g2"][1].got == [(["beat", 2], b"")]
        assert parties["g3"][0].got == [(["entries", 3], b"abcd")]


async def test_control_messages_of_all_groups_leave_in_one_frame_before_data(autojump_clock: MockClock) -> None:
    one, two = Party("n0"), Party("n1")
    async with pair(g1=(one, two), g2=(Party("n0"), Party("n1"))) as both:
        link = both.a.link(B)
        frames = both.b.link(A).received_frames
        link.send_bulk("g1", ["chunk"], [b"bulk"])
        link.send_data("g1", ["entries"], [b"data"])
        link.send_control("g1", ["beat", 1])
        link.send_control("g2", ["beat", 2])
        link.send_control("g1", ["beat", 3])
        await trio.sleep(0.1)
        assert [fields for fields, _body in two.got] == [["beat", 1], ["beat", 3], ["entries"], ["chunk"]]
        assert both.b.link(A).received_frames - frames == 3


@pytest.mark.parametrize("prompt_bytes", [0, 7, 100, 1 << 20])
async def test_prompt_messages_stay_in_order_whatever_goes_out_at_once(
    prompt_bytes: int, autojump_clock: MockClock
) -> None:
    one, two = Party("n0"), Party("n1")
    async with pair(g=(one, two)) as both:
        both.net.prompt_bytes = prompt_bytes
        link = both.a.link(B)
        sent = []
        for number in range(60):
            body = b"%d " % number * (number % 5 * 50)
            link.send_data("g", ["entries", number], [body], prompt=number % 3 != 1)
            sent.append((["entries", number], body))
            if number % 7 == 0:
                link.send_control("g", ["reply", number], prompt=number % 2 == 0)
            if number % 11 == 0:
                await trio.lowlevel.checkpoint()  # the sender may be in the middle of its work
        await trio.sleep(0.1)
        assert [message for message in two.got if message[0][0] == "entries"] == sent
        assert [fields[1] for fields, _body in two.got if fields[0] == "reply"] == list(range(0, 60, 7))


async def test_what_is_sent_promptly_leaves_in_this_very_pass_with_what_waits(autojump_clock: MockClock) -> None:
    one, two = Party("n0"), Party("n1")
    async with pair(g=(one, two)) as both:
        link = both.a.link(B)
        session = link.session
        assert session is not None
        link.send_control("g", ["beat", 1])
        link.send_data("g", ["entries", 2], [b"ab"])
        assert session.data_bytes > 0
        link.send_control("g", ["reply", 3], prompt=True)
        assert (len(session.control), len(session.data), session.data_bytes) == (0, 0, 0)
        await trio.sleep(0.1)
        assert [fields for fields, _body in two.got] == [["beat", 1], ["reply", 3], ["entries", 2]]


async def test_the_application_channel_is_separate(autojump_clock: MockClock) -> None:
    one, two = Party("n0"), Party("n1")
    async with pair(g=(one, two)) as both:
        both.b.link(A).send_data("g", ["x", 7], [b"frame"], app=True)
        await trio.sleep(0.1)
        assert one.app == [(["x", 7], b"frame")]
        assert one.got == []


async def test_a_mismatch_refuses_that_group_only_and_says_so_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    good = (Party("n0"), Party("n1"))
    bad = (Party("n0", "cluster-1"), Party("n1", "cluster-2"))
    async with pair(good=good, bad=bad) as both:
        await trio.sleep(30)
        assert good[0].events == ["up b:1"]
        assert bad[0].events == bad[1].events == []
        assert not both.a.link(B).send_control("bad", ["beat"])
        assert both.net.connections == 1
        said = [r.message for r in caplog.records if "cluster differs" in r.message]
        assert len(said) <= 4  # each side: its own finding and what the peer said


async def test_a_link_without_any_agreement_is_closed_and_tried_slowly(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    bad = (Party("n0", "cluster-1"), Party("n1", "cluster-2"))
    async with pair(bad=bad) as both:
        await trio.sleep(20)
        assert both.a.link(B).session is None or not both.a.link(B).groups
        assert 5 <= both.net.connections <= 25
        assert sum("cluster differs" in r.message for r in caplog.records) <= 4


async def test_a_group_that_starts_later_joins_the_present_connection(autojump_clock: MockClock) -> None:
    async with pair(g1=(Party("n0"), Party("n1"))) as both:
        late = (Party("n0"), Party("n1"))
        both.a.set_peers("g2", [A, B])
        both.a.register("g2", late[0])
        await trio.sleep(0.1)
        both.b.register("g2", late[1])
        both.b.set_peers("g2", [A, B])
        await trio.sleep(0.1)
        assert late[0].events == ["up b:1"]
        assert late[1].events == ["up a:1"]
        assert both.a.link(B).send_control("g2", ["beat"])
        await trio.sleep(0.1)
        assert late[1].got == [(["beat"], b"")]
        assert both.net.connections == 1


async def test_a_dead_process_is_noticed_on_both_sides_of_the_dialling(autojump_clock: MockClock) -> None:
    for victim in ("a", "b"):
        one, two = Party("n0"), Party("n1")
        async with pair(g=(one, two)) as both:
            both.kill(victim)
            await trio.sleep(0.3)
            other, address = (two, "a:1") if victim == "a" else (one, "b:1")
            assert other.events == [f"up {address}", f"down {address}", f"gone {address}"]


async def test_a_silent_peer_is_not_called_dead_and_comes_back(autojump_clock: MockClock) -> None:
    one, two = Party("n0"), Party("n1")
    async with pair(g=(one, two)) as both:
        both.net.cut("a", ["b"])
        await trio.sleep(5)
        assert one.events == ["up b:1", "down b:1"]
        both.net.heal()
        await trio.sleep(3)
        assert one.events == ["up b:1", "down b:1", "up b:1"]
        assert both.b.link(A).agreed("g")


async def test_an_idle_link_stays_up(autojump_clock: MockClock) -> None:
    one, two = Party("n0"), Party("n1")
    async with pair(g=(one, two)) as both:
        await trio.sleep(60)
        assert one.events == ["up b:1"]
        assert both.net.connections == 1


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\xff" * 100, encode_frame([1, {}]), encode_frame([4, []]), b"\0\0"],
)
async def test_garbage_at_the_listener_ends_that_connection_only(autojump_clock: MockClock, garbage: bytes) -> None:
    one, two = Party("n0"), Party("n1")
    async with pair(g=(one, two)) as both:
        stream = await both.net.host("x").connect("b", 1)
        await stream.send_all(garbage)
        with trio.fail_after(3):
            assert await stream.receive_some(100) == b""
        assert one.events == ["up b:1"]
        assert two.events == ["up a:1"]


async def test_garbage_within_a_session_ends_it_and_a_new_one_begins(autojump_clock: MockClock) -> None:
    one, two = Party("n0"), Party("n1")
    async with pair(g=(one, two)) as both:
        both.a.link(B).send_control("g", ["garbage"])
        await trio.sleep(2)
        assert two.events == ["up a:1", "down a:1", "up a:1"]
        assert both.a.link(B).agreed("g")


async def test_a_stranger_is_refused(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    async with pair(g=(Party("n0"), Party("n1"))) as both:
        hello = {"v": 1, "feature": 1, "from": "x:1", "to": "b:1", "groups": {"g": {"cluster": "c"}}}
        stream = await both.net.host("x").connect("b", 1)
        await stream.send_all(encode_frame([1, hello]))
        assert await stream.receive_some(100) == b""
        assert any("x:1 is in no group's list" in str(getattr(r, "reason", "")) for r in caplog.records)


async def test_sending_without_a_session_drops(autojump_clock: MockClock) -> None:
    async with pair(g=(Party("n0"), Party("n1"))) as both:
        both.kill("b")
        await trio.sleep(0.1)
        assert not both.a.link(B).send_control("g", ["beat"])
        assert not both.a.link(B).send_data("g", ["x"], [b"y"])


async def test_a_group_that_registers_while_the_hellos_travel_is_introduced_on_that_session(
    autojump_clock: MockClock,
) -> None:
    """The hello was said without it and the session did not exist yet: its introduction used to get lost."""
    for delay_ms in range(12):
        early, late = (Party("n0"), Party("n1")), (Party("n0"), Party("n1"))
        async with trio.open_nursery() as nursery:
            both = Pair(MemoryNetwork(), nursery)
            for transport, party, other in ((both.a, early[0], late[0]), (both.b, early[1], None)):
                transport.register("early", party)
                transport.set_peers("early", [A, B])
                if other is not None:
                    transport.register("late", other)
                    transport.set_peers("late", [A, B])
            await both.start("b", both.b)
            await both.start("a", both.a)
            await trio.sleep(delay_ms / 2000)
            both.b.register("late", late[1])
            both.b.set_peers("late", [A, B])
            await trio.sleep(0.5)
            assert both.a.link(B).agreed("late"), f"registered {delay_ms / 2} ms after the start"
            assert both.b.link(A).agreed("late")
            nursery.cancel_scope.cancel()
