"""The client's channels on real loopback sockets, under Trio and under asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest

from trimq.errors import ConnectFailed, Disconnected
from trimq.remoting.client import RemotingClient, Reply, open_remoting_client, split_addr
from trimq.remoting.system import AnyioNetwork
from trimq.wire.command import Command, decode, encode, response_to
from trimq.wire.frame import FrameDecoder

BACKENDS = pytest.mark.parametrize("backend", ["trio", "asyncio"])
Script = Callable[["Peer", Command], Awaitable[None]]

ECHO, SILENT, HANG_UP, GARBAGE, ASK_BACK, TWICE, SWAP = range(1, 8)


class Peer:
    """A scripted server: what it does with a request depends on the code."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream = stream
        self.got: list[Command] = []
        self.reads = 0

    async def run(self, seen: list[Command]) -> None:
        decoder = FrameDecoder()
        async with self.stream:
            while True:
                try:
                    data = await self.stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    return
                self.reads += 1
                for frame in decoder.feed(data):
                    command = decode(frame)
                    seen.append(command)
                    try:
                        await self.act(command)
                    except anyio.BrokenResourceError:
                        return

    async def act(self, command: Command) -> None:
        answer = response_to(command, 0, body=bytes(command.body))
        match command.code:
            case _ if command.is_response:
                pass
            case 1:
                await self.stream.send(answer)
            case 3:
                await self.stream.aclose()
            case 4:
                await self.stream.send(b"\x00\x00\x00\x08\x00\x00\x00\x04null")
            case 5:
                await self.stream.send(encode(Command(code=40, opaque=command.opaque, body=b"news")) + answer)
            case 6:
                await self.stream.send(answer + answer)
            case 7:
                self.got.append(command)
                if len(self.got) == 2:
                    for held in reversed(self.got):
                        await self.stream.send(response_to(held, 0, body=bytes(held.body)))


@asynccontextmanager
async def scripted_server() -> AsyncIterator[tuple[str, list[Command]]]:
    seen: list[Command] = []
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra_attributes[anyio.abc.SocketAttribute.local_port]()

    async def handle(stream: anyio.abc.SocketStream) -> None:
        await Peer(stream).run(seen)

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, handle)
        yield f"127.0.0.1:{port}", seen
        group.cancel_scope.cancel()


def run(backend: str, body: Callable[[RemotingClient, str, list[Command]], Awaitable[None]], **options: object) -> None:
    """Run `body` with a client and a scripted server."""

    async def main() -> None:
        with anyio.fail_after(20):
            async with (
                scripted_server() as (addr, seen),
                open_remoting_client(AnyioNetwork(), **options) as client,  # type: ignore[arg-type]
            ):
                await body(client, addr, seen)

    anyio.run(main, backend=backend)


@BACKENDS
def test_requests_in_flight_together_each_get_their_own_answer(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        answers: dict[int, bytes] = {}

        async def one(n: int) -> None:
            answers[n] = bytes((await client.invoke(addr, Command(code=ECHO, body=b"%d" % n))).body)

        async with anyio.create_task_group() as group:
            for n in range(100):
                group.start_soon(one, n)
        assert answers == {n: b"%d" % n for n in range(100)}
        assert len({command.opaque for command in seen}) == 100

    run(backend, body)


@BACKENDS
def test_answers_may_come_in_any_order(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        order: list[bytes] = []
        channel = await client.channel(addr)
        both = anyio.Event()

        def settle(reply: Reply) -> None:
            assert isinstance(reply, Command)
            order.append(bytes(reply.body))
            if len(order) == 2:
                both.set()

        for name in (b"first", b"second"):
            opaque = channel.next_opaque()
            channel.submit(encode(Command(code=SWAP, opaque=opaque, body=name)), opaque, settle)
        await both.wait()
        assert order == [b"second", b"first"]

    run(backend, body)


@BACKENDS
def test_pipelined_requests_travel_together(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        channel = await client.channel(addr)
        done = anyio.Event()
        replies: list[Reply] = []

        def settle(reply: Reply) -> None:
            replies.append(reply)
            if len(replies) == 1000:
                done.set()

        for _ in range(1000):
            opaque = channel.next_opaque()
            channel.submit(encode(Command(code=ECHO, opaque=opaque)), opaque, settle)
        assert channel.in_flight == 1000
        await done.wait()
        assert [command.opaque for command in seen] == list(range(1, 1001))
        assert channel.in_flight == channel.queued == 0

    run(backend, body)


@BACKENDS
def test_a_lost_connection_ends_every_request_in_flight_once(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        lost: list[tuple[str, str]] = []
        client.on_channel_closed(lambda where, why: lost.append((where, why)))
        channel = await client.channel(addr)
        replies: list[Reply] = []
        for code in (SILENT, SILENT, HANG_UP):
            opaque = channel.next_opaque()
            channel.submit(encode(Command(code=code, opaque=opaque)), opaque, replies.append)
        closed = anyio.Event()
        channel.on_closed(lambda reason: closed.set())
        await closed.wait()
        assert [type(reply) for reply in replies] == [Disconnected] * 3
        assert [where for where, _ in lost] == [addr]
        assert channel.closed
        channel.submit(b"", 9, replies.append)
        assert isinstance(replies[-1], Disconnected)
        again = await client.invoke(addr, Command(code=ECHO, body=b"again"))
        assert bytes(again.body) == b"again"
        assert await client.channel(addr) is not channel

    run(backend, body)


@BACKENDS
def test_invoke_raises_disconnected_when_the_server_hangs_up_or_talks_garbage(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        for code in (HANG_UP, GARBAGE):
            with pytest.raises(Disconnected, match=r"closed the connection|bad frame|reset"):
                await client.invoke(addr, Command(code=code))

    run(backend, body)


@BACKENDS
def test_nobody_listening_is_connect_failed_with_address_and_cause(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
        port = listener.extra_attributes[anyio.abc.SocketAttribute.local_port]()
        await listener.aclose()
        with pytest.raises(ConnectFailed, match=rf"cannot connect to 127.0.0.1:{port}: Connection refused"):
            await client.invoke(f"127.0.0.1:{port}", Command(code=ECHO))

    run(backend, body)


@BACKENDS
def test_the_callers_deadline_ends_the_wait_and_the_late_answer_is_dropped(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        with anyio.move_on_after(0.05) as scope:
            await client.invoke(addr, Command(code=SILENT))
        assert scope.cancelled_caught
        channel = await client.channel(addr)
        assert channel.in_flight == 0
        assert bytes((await client.invoke(addr, Command(code=TWICE, body=b"x"))).body) == b"x"
        assert bytes((await client.invoke(addr, Command(code=ECHO, body=b"y"))).body) == b"y"

    run(backend, body)


@BACKENDS
def test_a_oneway_request_is_flagged_and_waits_for_nothing(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        await client.oneway(addr, Command(code=SILENT, body=b"no answer"))
        await client.invoke(addr, Command(code=ECHO))
        assert [command.is_oneway for command in seen] == [True, False]

    run(backend, body)


@BACKENDS
def test_a_request_of_the_server_is_handled_and_answered_though_its_opaque_is_in_use(backend: str) -> None:
    asked: list[tuple[str, int, bytes]] = []

    def on_request(addr: str, command: Command) -> Command | None:
        asked.append((addr, command.code, bytes(command.body)))
        return Command(code=0, opaque=command.opaque, flag=1, body=b"noted")

    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        answer = await client.invoke(addr, Command(code=ASK_BACK, body=b"mine"))
        assert bytes(answer.body) == b"mine"
        assert asked == [(addr, 40, b"news")]
        await client.invoke(addr, Command(code=ECHO))
        assert [bytes(command.body) for command in seen if command.is_response] == [b"noted"]

    run(backend, body, on_request=on_request)


@BACKENDS
def test_a_failing_callback_or_handler_does_not_harm_the_connection(
    backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    def on_request(addr: str, command: Command) -> Command | None:
        raise ZeroDivisionError

    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        channel = await client.channel(addr)
        opaque = channel.next_opaque()
        channel.submit(encode(Command(code=ECHO, opaque=opaque)), opaque, lambda reply: 1 // 0)  # type: ignore[arg-type]
        assert bytes((await client.invoke(addr, Command(code=ASK_BACK, body=b"ok"))).body) == b"ok"

    run(backend, body, on_request=on_request)
    assert "callback failed" in caplog.text
    assert "handler of a server's request failed" in caplog.text


@BACKENDS
def test_callers_share_one_connection_attempt_and_a_cancelled_one_does_not_spoil_it(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        channels = []

        async def want() -> None:
            channels.append(await client.channel(addr))

        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as impatient:
                impatient.cancel()
                await client.channel(addr)
            for _ in range(5):
                group.start_soon(want)
        assert len({id(channel) for channel in channels}) == 1

    run(backend, body)


@BACKENDS
def test_room_waits_while_too_much_is_queued(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        channel = await client.channel(addr)
        for _ in range(3):
            channel.send(encode(Command(code=SILENT, flag=2, body=bytes(4 << 20))))
        assert channel.queued > 8 << 20
        await channel.room()
        assert channel.queued <= 8 << 20
        await client.invoke(addr, Command(code=ECHO))
        assert len(seen) == 4

    run(backend, body)


@BACKENDS
def test_an_error_in_the_block_comes_out_as_it_is(backend: str) -> None:
    async def body(client: RemotingClient, addr: str, seen: list[Command]) -> None:
        await client.channel(addr)
        raise KeyError("mine")

    async def main() -> None:
        async with open_remoting_client(AnyioNetwork()) as client:
            await client.channel("nonsense")

    with pytest.raises(ConnectFailed, match="host:port"):
        anyio.run(main, backend=backend)


@BACKENDS
def test_leaving_the_block_ends_waiting_calls(backend: str) -> None:
    async def main() -> None:
        outcome: list[str] = []
        async with scripted_server() as (addr, _), anyio.create_task_group() as group:
            async with open_remoting_client(AnyioNetwork()) as client:

                async def wait() -> None:
                    try:
                        await client.invoke(addr, Command(code=SILENT))
                    except Disconnected as error:
                        outcome.append(error.message)

                group.start_soon(wait)
                await client.invoke(addr, Command(code=ECHO))
            with pytest.raises(ConnectFailed, match="closed"):
                await client.invoke(addr, Command(code=ECHO))
        assert outcome == ["client closed"]

    anyio.run(main, backend=backend)


@pytest.mark.parametrize("addr", ["", "host", "host:", ":1", "host:0", "host:65536", "host:1x", "host:-1", "host:²"])
def test_bad_addresses_are_named(addr: str) -> None:
    with pytest.raises(ConnectFailed, match="host:port"):
        split_addr(addr)


def test_addresses_are_cut_at_the_last_colon() -> None:
    assert split_addr("10.0.0.1:9876") == ("10.0.0.1", 9876)
    assert split_addr("::1:9876") == ("::1", 9876)
    assert split_addr("[::1]:9876") == ("::1", 9876)
