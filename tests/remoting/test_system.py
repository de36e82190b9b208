"""The real adapters: loopback sockets under Trio, and the remoting server on them."""

from __future__ import annotations

import logging
import os
import random
import resource
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
import trio.testing

from trimq.env import Stream
from trimq.logs import FactsFormatter
from trimq.remoting.client import open_remoting_client
from trimq.remoting.server import Connection, Limits, RemotingServer, serve_remoting
from trimq.remoting.system import AnyioNetwork, SystemClock, TrioNetwork, TrioStream, connection_limit
from trimq.wire.command import Command, decode, encode, response_to


class Addresses:
    """Answers each request with the addresses of its connection."""

    def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
        for frame in frames:
            conn.send(response_to(decode(frame), 0, ext={"peer": conn.peer, "local": conn.local}))

    def on_closed(self, conn: Connection) -> None:
        pass


@pytest.mark.trio
async def test_both_ends_know_the_addresses_of_a_connection() -> None:
    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(serve_remoting, TrioNetwork(), "127.0.0.1", 0, Addresses())
        async with open_remoting_client(AnyioNetwork()) as client:
            channel = await client.channel(f"127.0.0.1:{port}")
            answer = await channel.invoke(Command(code=1))
            assert answer.ext == {"peer": channel.local, "local": f"127.0.0.1:{port}"}
            assert channel.peer == f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_a_port_in_use_is_an_oserror_before_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        await RemotingServer(Addresses()).serve(TrioNetwork(), "127.0.0.1", taken.getsockname()[1])


@pytest.mark.trio
async def test_what_was_sent_together_is_read_together_and_the_end_comes_behind_it() -> None:
    sent = random.Random(1).randbytes(150_000)
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        stream = TrioStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        for at in range(0, len(sent), 50_000):  # each piece is one for the reader, too
            theirs.sendall(sent[at : at + 50_000])
        got = [await stream.receive_some(120_000), await stream.receive_some(120_000)]
        assert (b"".join(got), [len(data) for data in got]) == (sent, [120_000, 30_000])
        theirs.sendall(b"last")
        theirs.shutdown(socket.SHUT_WR)
        assert await stream.receive_some(120_000) == b"last"
        assert await stream.receive_some(120_000) == b""
        await stream.aclose()


@pytest.mark.trio
async def test_a_stream_that_is_closed_while_somebody_reads_says_so() -> None:
    async def handle(stream: Stream) -> None:
        await trio.sleep_forever()

    async def read(stream: Stream) -> None:
        with pytest.raises(ConnectionError):
            await stream.receive_some(1)

    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(TrioNetwork().serve, handle, "127.0.0.1", 0)
        stream = await TrioNetwork().connect("127.0.0.1", port)
        async with trio.open_nursery() as reading:
            reading.start_soon(read, stream)
            await trio.testing.wait_all_tasks_blocked()
            await stream.aclose()
        with pytest.raises(ConnectionError):
            await stream.receive_some(1)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_sockets_send_at_once_and_notice_dead_hosts() -> None:
    seen: list[Stream] = []

    async def handle(stream: Stream) -> None:
        seen.append(stream)
        await stream.receive_some(1)

    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(TrioNetwork().serve, handle, "127.0.0.1", 0)
        stream = await TrioNetwork().connect("127.0.0.1", port)
        while not seen:
            await trio.lowlevel.checkpoint()
        for end in (stream, seen[0]):
            sock = end._stream.socket  # type: ignore[attr-defined]  # what the protocol hides is what is tested
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        await stream.aclose()
        with pytest.raises(ConnectionError):
            await stream.send_all(b"x")
        nursery.cancel_scope.cancel()


def test_the_wall_clock_is_this_centurys() -> None:
    assert SystemClock().wall_ms() > 1_700_000_000_000


def test_descriptors_are_left_for_files_and_peers() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert 0 < connection_limit(reserve=100) <= 10_000
        assert connection_limit(reserve=hard) >= 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_log_line_ends_with_its_facts() -> None:
    record = logging.LogRecord("x.y", logging.INFO, "", 0, "leader elected", (), None)
    record.term, record.note = 7, "two words"
    assert FactsFormatter().format(record).endswith("INFO x.y: leader elected  term=7 note='two words'")
    record.note = "line\nbreak"
    assert "\n" not in FactsFormatter().format(record)


@pytest.mark.trio
async def test_a_refused_connect_is_told_apart() -> None:
    """Raft takes it as a hint that a peer's process is gone; a bare OSError would hide it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        await TrioNetwork().connect("127.0.0.1", port)


class Mailbox:
    """Says nothing by itself."""

    def __init__(self) -> None:
        self.conn: Connection | None = None
        self.met = trio.Event()

    def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
        self.conn = conn
        self.met.set()

    def on_closed(self, conn: Connection) -> None:
        pass


@asynccontextmanager
async def talking(limits: Limits | None = None) -> AsyncIterator[tuple[Connection, trio.SocketStream]]:
    """A connection at a server, and its client."""
    mailbox = Mailbox()
    async with trio.open_nursery() as nursery:
        server = RemotingServer(mailbox, limits=limits or Limits())
        port: int = await nursery.start(server.serve, TrioNetwork(), "127.0.0.1", 0)
        client = await trio.open_tcp_stream("127.0.0.1", port)
        await client.send_all(encode(Command(code=10)))
        await mailbox.met.wait()
        assert mailbox.conn is not None
        yield mailbox.conn, client
        await client.aclose()
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_an_answer_goes_out_before_any_task_runs() -> None:
    async with talking() as (conn, client):
        conn.send(b"answer")
        assert conn.queued == 0
        raw = socket.socket(fileno=os.dup(client.socket.fileno()))
        with raw:
            assert raw.recv(100, socket.MSG_DONTWAIT) == b"answer"


@pytest.mark.trio
async def test_what_does_not_go_out_at_once_follows_in_order() -> None:
    """Ten megabytes to a client that does not read yet: the socket takes some, the writer the rest."""
    async with talking(Limits(queued_max_bytes=64 << 20, held_max_bytes=64 << 20)) as (conn, client):
        frames = [bytes([number % 251]) * (1 + number * 131 % 5_000) for number in range(4_000)]
        for number, frame in enumerate(frames):
            conn.send(frame)
            if number % 1_000 == 0:
                await trio.lowlevel.checkpoint()
        assert conn.queued > 0
        wanted, got = b"".join(frames), bytearray()
        while len(got) < len(wanted):
            got += await client.receive_some(1 << 20)
        assert got == wanted
        assert conn.queued == 0


@pytest.mark.trio
async def test_a_connection_that_broke_is_found_by_the_writer() -> None:
    async with talking() as (conn, client):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await client.aclose()
        with trio.fail_after(5):
            while not conn.closed:
                conn.send(bytes(1000))
                await trio.sleep(0.001)
