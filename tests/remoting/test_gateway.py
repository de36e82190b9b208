"""The gateway: handshake, origins, limits and signs of life; the other end is trio-websocket, ours, or raw bytes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing
from trio_websocket import ConnectionClosed, WebSocketConnection, open_websocket
from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, CloseConnection, Ping, Request

from tests.remoting.support import MemoryNetwork, PipeEnd
from tests.remoting.test_server import Echo, request
from trimq.errors import ConnectFailed
from trimq.remoting.client import open_remoting_client
from trimq.remoting.gateway import HANDSHAKE_S, PING_S, Gateway, origin_allowed
from trimq.remoting.server import Limits, RemotingServer
from trimq.remoting.system import AnyioNetwork, TrioNetwork
from trimq.wire.codes import SerializeType
from trimq.wire.command import Command, decode, encode

KIB = 1024
pytestmark = pytest.mark.trio


@asynccontextmanager
async def serving(
    limits: Limits | None = None, allowed: tuple[str, ...] = ()
) -> AsyncIterator[tuple[int, RemotingServer, Gateway]]:
    """A gateway on a real socket."""
    server = RemotingServer(Echo(), limits=limits or Limits())
    gateway = Gateway(server.handle, allowed_origins=allowed, frame_max_bytes=server.limits.frame_max_bytes)
    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(gateway.serve, TrioNetwork(), "127.0.0.1", 0)
        yield port, server, gateway
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def browser(port: int, origin: str = "") -> AsyncIterator[WebSocketConnection]:
    headers = [(b"Origin", origin.encode())] if origin else []
    opening = open_websocket("127.0.0.1", port, "/", use_ssl=False, extra_headers=headers, max_message_size=32 << 20)
    async with opening as socket:
        try:
            yield socket
        finally:
            if socket.closed:  # by the server: then trio-websocket leaves the socket open
                await socket._stream.aclose()


async def test_one_message_is_one_frame_both_ways() -> None:
    async with serving() as (port, server, gateway), browser(port) as socket:
        for number in range(50):
            await socket.send_message(request(number, b"x%d" % number))
        answers = [await socket.get_message() for _ in range(50)]
        for number, answer in enumerate(answers):
            assert isinstance(answer, bytes)
            assert int.from_bytes(answer[:4]) == len(answer) - 4
            assert (decode(answer[4:]).opaque, decode(answer[4:]).body) == (number, b"x%d" % number)
        assert gateway.statistics().connections == server.statistics().connections == 1


async def test_a_frame_larger_than_any_buffer_is_still_one_message() -> None:
    async with serving() as (port, _, _), browser(port) as socket:
        body = bytes(range(256)) * 20_000
        await socket.send_message(request(1, body))
        answer = await socket.get_message()
        assert isinstance(answer, bytes)
        assert decode(answer[4:]).body == body


@pytest.mark.parametrize("form", list(SerializeType))
async def test_every_header_form_is_answered_in_its_own(form: SerializeType) -> None:
    async with serving() as (port, _, _), browser(port) as socket:
        await socket.send_message(encode(Command(code=10, opaque=7, serialize=form, body=b"hello")))
        answer = await socket.get_message()
        assert isinstance(answer, bytes)
        assert (decode(answer[4:]).serialize, decode(answer[4:]).body) == (form, b"hello")


async def test_our_client_speaks_to_it_and_shares_its_connection_limit() -> None:
    async with serving(Limits(connections_max=1)) as (port, _, _), open_remoting_client(AnyioNetwork()) as client:
        answer = await client.invoke(f"ws://127.0.0.1:{port}", Command(code=10, body=b"hello"))
        assert answer.body == b"hello"
        async with browser(port) as socket:
            with pytest.raises(ConnectionClosed):
                await socket.get_message()


@pytest.mark.parametrize(
    ("origin", "host", "allowed", "answer"),
    [
        (None, "10.0.0.1:10915", (), True),
        ("http://10.0.0.1:10915", "10.0.0.1:10915", (), True),
        ("http://[::1]:10915", "[::1]:10915", (), True),
        ("http://LOCALHOST:10915", "localhost:10915", (), True),
        ("http://10.0.0.1:8080", "10.0.0.1:10915", (), False),
        ("http://10.0.0.1:8080", "10.0.0.1:10915", ("http://10.0.0.1:8080/",), True),
        ("https://mq.example", "mq.example", (), False),  # a name may be rebound: it has to be configured
        ("https://mq.example", "mq.example", ("https://MQ.example",), True),
        ("http://mq.example", "10.0.0.1:10915", ("https://mq.example",), False),
        ("https://mq.example.evil", "10.0.0.1:10915", ("https://mq.example",), False),
        ("http://evil.example", "10.0.0.1:10915", ("*",), True),
        ("null", "10.0.0.1:10915", (), False),
        ("null", "10.0.0.1:10915", ("null",), True),
        ("", "", (), False),
        ("http://[", "[", (), False),
    ],
)
async def test_which_pages_may_connect(origin: str | None, host: str, allowed: tuple[str, ...], answer: bool) -> None:
    assert origin_allowed(origin, host, allowed) is answer


async def test_a_page_of_another_site_is_refused_and_told_why(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(allowed=("http://ours.example",)) as (port, _, gateway):
        page = [(b"Origin", b"http://evil.example")]
        ws = WSConnection(ConnectionType.CLIENT)
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(ws.send(Request(host=f"127.0.0.1:{port}", target="/", extra_headers=page)))
            answer = b"".join([bytes(data) async for data in stream])
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"http://evil.example is not allowed here: add it to webSocketAllowedOrigins" in answer
        assert gateway.statistics().refused == 1
        for origin in ("http://ours.example", f"http://127.0.0.1:{port}"):
            async with browser(port, origin) as socket:
                await socket.send_message(request(1))
                await socket.get_message()
    assert "WebSocket connection refused" in caplog.text


@pytest.mark.parametrize(
    ("said", "status", "text"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"400", b"takes WebSocket connections"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n", b"400", b"must be GET"),
        (request(1), b"400", b"takes WebSocket connections"),
        (
            b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 8\r\n\r\n",
            b"426",
            b"takes WebSocket connections",
        ),
        (b"GET / HTTP/1.1\r\nHost: xn--\xff\xfe\r\n\r\n", b"400", b""),
        (b"GET / HTTP/1.1\r\nHost: " + b"h" * 100_000, b"4", b""),
    ],
)
async def test_what_is_no_websocket_gets_an_answer(said: bytes, status: bytes, text: bytes) -> None:
    async with serving() as (port, server, _):
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(said)
        answer = b""
        with trio.fail_after(5):
            try:
                async for data in stream:
                    answer += data
            except trio.BrokenResourceError:  # reset: it had not read all that we sent
                pass
        assert answer.startswith(b"HTTP/1.1 " + status)
        assert text in answer
        assert server.statistics().accepted == 0
        await stream.aclose()


async def test_a_gateway_that_refuses_our_client_is_quoted() -> None:
    async def no(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nnot today")

    async with trio.open_nursery() as nursery, open_remoting_client(AnyioNetwork()) as client:
        (listener,) = await nursery.start(partial(trio.serve_tcp, no, 0, host="127.0.0.1"))
        addr = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        with pytest.raises(ConnectFailed, match="answered 403: not today"):
            await client.channel(addr)
        with pytest.raises(ConnectFailed, match="TLS is not built yet"):
            await client.channel("wss://h:1")
        with pytest.raises(ConnectFailed, match="is no address"):
            await client.channel("ws://h")
        nursery.cancel_scope.cancel()


async def test_an_oversized_message_is_refused_with_its_reason_and_nobody_else_notices() -> None:
    async with serving(Limits(frame_max_bytes=64 * KIB)) as (port, server, _), browser(port) as other:
        async with browser(port) as socket:
            with pytest.raises(ConnectionClosed) as closed:  # noqa: PT012  (either call may be the one that notices)
                await socket.send_message(request(1, bytes(1 << 20)))
                await socket.get_message()
            assert closed.value.reason is not None
            assert closed.value.reason.code == 1009
            assert "over the limit of 65536" in (closed.value.reason.reason or "")
        await other.send_message(request(2, b"still here"))
        answer = await other.get_message()
        assert isinstance(answer, bytes)
        assert answer.endswith(b"still here")
        assert server.statistics().held_bytes == 0


# --- On pipes, with a clock that jumps


@asynccontextmanager
async def on_pipes(
    limits: Limits | None = None,
) -> AsyncIterator[tuple[MemoryNetwork, RemotingServer, Gateway]]:
    network = MemoryNetwork()
    server = RemotingServer(Echo(), limits=limits or Limits())
    gateway = Gateway(server.handle)
    async with trio.open_nursery() as nursery:
        await nursery.start(gateway.serve, network, "gateway", 5)
        yield network, server, gateway
        nursery.cancel_scope.cancel()


async def shake(network: MemoryNetwork, max_buffer: int = 1 << 30) -> tuple[PipeEnd, WSConnection]:
    end, ws = await network.open(max_buffer), WSConnection(ConnectionType.CLIENT)
    await end.send_all(ws.send(Request(host="h", target="/any/path")))
    ws.receive_data(await end.receive_some())
    list(ws.events())
    return end, ws


async def test_a_client_that_stops_reading_is_not_read_and_bounds_what_is_held(autojump_clock: object) -> None:
    limits = Limits(queued_high_bytes=64 * KIB, queued_low_bytes=32 * KIB, read_bytes=16 * KIB)
    async with on_pipes(limits) as (network, server, _):
        end, ws = await shake(network, 64 * KIB)
        sent = 0

        async def ask_and_never_read() -> None:
            nonlocal sent
            for number in range(10_000):
                await end.send_all(ws.send(BytesMessage(data=request(number, bytes(2 * KIB)))))
                sent += 2 * KIB

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_and_never_read)
            await trio.testing.wait_all_tasks_blocked(0.01)
            held = server.statistics().held_bytes
            assert limits.queued_low_bytes < held < limits.queued_high_bytes + 2 * limits.read_bytes
            assert sent < 512 * KIB, "the client's own writing stopped: it is the one who waits"
            # It reads again: everything goes on where it stopped.
            got = 0
            while got < 1 << 20:
                ws.receive_data(await end.receive_some(64 * KIB))
                got += sum(len(event.data) for event in ws.events() if isinstance(event, BytesMessage))
            nursery.cancel_scope.cancel()


async def test_half_a_message_is_counted_and_ends_after_its_time(autojump_clock: object) -> None:
    async with on_pipes(Limits(half_frame_s=30)) as (network, server, _):
        end, ws = await shake(network)
        await end.send_all(ws.send(BytesMessage(data=request(1, bytes(KIB))[:500], message_finished=False)))
        # The sweep for time limits belongs to the server's own listener.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server._sweep)
            await trio.testing.wait_all_tasks_blocked()
            assert server.statistics().held_bytes == 500
            began = trio.current_time()
            while await end.receive_some():
                pass
            assert 30 <= trio.current_time() - began <= 40
            nursery.cancel_scope.cancel()


async def test_who_answers_pings_stays_and_who_does_not_is_closed(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with on_pipes() as (network, server, gateway):
        living, ws = await shake(network)
        dead, _ = await shake(network)
        pings = 0

        async def answer_pings() -> None:
            nonlocal pings
            while data := await living.receive_some():
                ws.receive_data(data)
                for event in ws.events():
                    if isinstance(event, Ping):
                        pings += 1
                        await living.send_all(ws.send(event.response()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_pings)
            began = trio.current_time()
            while await dead.receive_some():
                pass
            assert PING_S < trio.current_time() - began <= 3 * PING_S
            await trio.sleep(3 * PING_S)
            assert pings >= 2
            assert gateway.statistics().connections == server.statistics().connections == 1
            nursery.cancel_scope.cancel()
    assert "no answer to a ping" in caplog.text


async def test_a_handshake_that_is_begun_and_not_finished_ends(autojump_clock: object) -> None:
    async with on_pipes() as (network, server, _):
        end = await network.open()
        await end.send_all(b"GET / HTTP/1.1\r\nHost: h\r\n")
        began = trio.current_time()
        assert await end.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(HANDSHAKE_S, abs=0.1)
        assert server.statistics().accepted == 0


async def test_a_server_that_stops_says_so(autojump_clock: object) -> None:
    async with on_pipes() as (network, server, _):
        end, ws = await shake(network)
        await trio.testing.wait_all_tasks_blocked()
        await server.drain()
        ws.receive_data(await end.receive_some())
        (bye,) = ws.events()
        assert isinstance(bye, CloseConnection)
        assert bye.code == 1001
