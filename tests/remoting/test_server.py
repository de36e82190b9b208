"""The server driver on memory streams and a clock that jumps: passes, limits, deadlines, bad clients."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.remoting.support import MemoryNetwork, PipeEnd
from trimq.errors import ProtocolError
from trimq.remoting.server import Connection, Limits, RemotingServer
from trimq.wire.command import Command, decode, encode, response_to

KIB = 1024


class Echo:
    """Answers every request with its own body; remembers what the driver called."""

    def __init__(self) -> None:
        self.passes: list[int] = []
        self.closed: list[Connection] = []
        self.conns: list[Connection] = []
        self.before: Callable[[Connection], None] = lambda conn: None

    def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
        self.passes.append(len(frames))
        if conn not in self.conns:
            self.conns.append(conn)
        self.before(conn)
        for frame in frames:
            request = decode(frame)
            if not request.is_oneway:
                conn.send(response_to(request, 0, body=bytes(request.body)))

    def on_closed(self, conn: Connection) -> None:
        self.closed.append(conn)


def request(opaque: int, body: bytes = b"") -> bytes:
    return encode(Command(code=10, opaque=opaque, body=body))


@asynccontextmanager
async def serving(service: Echo, limits: Limits | None = None) -> AsyncIterator[tuple[MemoryNetwork, RemotingServer]]:
    network = MemoryNetwork()
    server = RemotingServer(service, limits=limits or Limits())
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, network, "server", 1)
        yield network, server
        nursery.cancel_scope.cancel()


async def read_frames(stream: PipeEnd, count: int) -> list[Command]:
    """Read until `count` answers have come."""
    data = b""
    answers: list[Command] = []
    while len(answers) < count:
        chunk = await stream.receive_some(1 << 20)
        assert chunk, f"closed after {len(answers)} of {count} answers"
        data += chunk
        while len(data) >= 4 and len(data) >= 4 + (size := int.from_bytes(data[:4])):
            answers.append(decode(data[4 : 4 + size]))
            data = data[4 + size :]
    return answers


async def send_for_ever(stream: PipeEnd) -> None:
    for n in range(100_000):
        await stream.send_all(request(n, bytes(2 * KIB)))


async def trickle(stream: PipeEnd, data: bytes) -> None:
    for byte in data:
        await stream.send_all(bytes([byte]))
        await trio.sleep(10)


@pytest.mark.trio
async def test_all_frames_of_one_read_are_one_pass_and_answered_with_one_send(autojump_clock: object) -> None:
    echo = Echo()
    async with serving(echo) as (network, server):
        stream = await network.open()
        await stream.send_all(b"".join(request(n, b"x%d" % n) for n in range(50)))
        await trio.testing.wait_all_tasks_blocked()
        assert echo.passes == [50]
        chunk = await stream.receive_some(1 << 20)
        assert chunk.count(b'"opaque"') == 50
        assert server.statistics().held_bytes == 0


@pytest.mark.trio
async def test_a_stream_cut_at_every_byte_gives_the_same_answers(autojump_clock: object) -> None:
    echo = Echo()
    async with serving(echo) as (network, _):
        stream = await network.open()
        for byte in request(1, b"hello") + request(2):
            await stream.send_all(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        answers = await read_frames(stream, 2)
    assert [(a.opaque, bytes(a.body)) for a in answers] == [(1, b"hello"), (2, b"")]


@pytest.mark.trio
async def test_many_frames_of_one_read_are_handled_in_slices(autojump_clock: object) -> None:
    echo = Echo()
    async with serving(echo, Limits(frames_per_pass_max=16)) as (network, _):
        stream = await network.open()
        await stream.send_all(b"".join(request(n) for n in range(40)))
        assert len(await read_frames(stream, 40)) == 40
    assert echo.passes == [16, 16, 8]


@pytest.mark.trio
async def test_a_client_that_does_not_read_stops_being_read_and_goes_on_when_it_reads(autojump_clock: object) -> None:
    echo = Echo()
    limits = Limits(queued_high_bytes=64 * KIB, queued_low_bytes=16 * KIB, read_bytes=8 * KIB)
    async with serving(echo, limits) as (network, server):
        stream = await network.open(max_buffer=4 * KIB)
        done = trio.Event()

        async def flood() -> None:
            for n in range(200):
                await stream.send_all(request(n, bytes(2 * KIB)))
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked()
            conn = echo.conns[0]
            assert conn.reading_paused
            assert not done.is_set()
            assert 64 * KIB < server.statistics().held_bytes < 90 * KIB
            answers = await read_frames(stream, 200)
        assert [a.opaque for a in answers] == list(range(200))
        await trio.testing.wait_all_tasks_blocked()
        assert not conn.reading_paused
        assert server.statistics().held_bytes == 0


@pytest.mark.trio
async def test_a_client_that_never_reads_is_closed_when_idle_time_is_over(autojump_clock: object) -> None:
    echo = Echo()
    limits = Limits(queued_high_bytes=64 * KIB, queued_low_bytes=16 * KIB)
    async with serving(echo, limits) as (network, server):
        stream = await network.open(max_buffer=4 * KIB)
        with pytest.raises(trio.BrokenResourceError):
            await send_for_ever(stream)
        assert 115 <= trio.current_time() <= 130
        assert [conn.close_reason for conn in echo.closed] == ["idle"]
        assert server.statistics() == type(server.statistics())(0, 0, 1, 0)


@pytest.mark.trio
async def test_answers_beyond_the_hard_limit_close_only_that_connection(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    echo = Echo()
    limits = Limits(queued_high_bytes=8 * KIB, queued_low_bytes=4 * KIB, queued_max_bytes=64 * KIB)
    async with serving(echo, limits) as (network, server):
        bad, good = await network.open(max_buffer=KIB), await network.open()
        await good.send_all(request(1, b"ok"))
        assert len(await read_frames(good, 1)) == 1
        echo.before = lambda conn: conn.send(bytes(80 * KIB)) if conn is echo.conns[-1] else None
        await bad.send_all(request(1))
        await trio.testing.wait_all_tasks_blocked()
        assert [conn.close_reason for conn in echo.closed] == ["the client does not read its answers"]
        await good.send_all(request(2, b"ok"))
        assert len(await read_frames(good, 1)) == 1
        assert server.statistics().held_bytes == 0
    assert "too many bytes held" in caplog.text


@pytest.mark.trio
async def test_all_connections_together_hold_a_bounded_amount_and_the_heaviest_goes(autojump_clock: object) -> None:
    echo = Echo()
    async with serving(echo, Limits(held_max_bytes=300 * KIB)) as (network, server):
        streams = [await network.open(max_buffer=64 * KIB) for _ in range(3)]
        half = (1000 * KIB).to_bytes(4)
        for stream, size in zip(streams, (90, 120, 60), strict=True):
            await stream.send_all(half + bytes(size * KIB))
            await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().held_bytes < 300 * KIB
        await streams[2].send_all(bytes(50 * KIB))
        await trio.testing.wait_all_tasks_blocked()
        assert [conn.id for conn in echo.closed] == [2]
        assert server.statistics().held_bytes < 300 * KIB
        for stream in streams:
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert server.statistics().held_bytes == 0


@pytest.mark.trio
async def test_half_a_frame_and_silence_ends_the_connection(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    echo = Echo()
    async with serving(echo) as (network, _):
        stream = await network.open()
        await stream.send_all(request(1, b"whole") + request(2)[:-1])
        await read_frames(stream, 1)
        assert await stream.receive_some(1) == b""
        assert 30 <= trio.current_time() <= 36
    assert "begun and not finished" in caplog.text


@pytest.mark.trio
async def test_one_byte_now_and_then_is_no_progress(autojump_clock: object) -> None:
    echo = Echo()
    async with serving(echo) as (network, _):
        stream = await network.open()
        with pytest.raises(trio.BrokenResourceError):
            await trickle(stream, request(1, bytes(500)))
        assert trio.current_time() <= 50


@pytest.mark.trio
async def test_a_large_frame_on_a_slow_line_gets_its_time(autojump_clock: object) -> None:
    echo = Echo()
    async with serving(echo) as (network, _):
        stream = await network.open()
        frame = request(1, bytes(900 * KIB))
        for at in range(0, len(frame), 64 * KIB):
            await stream.send_all(frame[at : at + 64 * KIB])
            await trio.sleep(20)
        assert trio.current_time() > 200
        assert len((await read_frames(stream, 1))[0].body) == 900 * KIB


@pytest.mark.trio
async def test_an_idle_connection_is_closed_after_its_time_and_an_active_one_is_not(autojump_clock: object) -> None:
    echo = Echo()
    async with serving(echo) as (network, _):
        idle, active = await network.open(), await network.open()
        for n in range(4):
            await active.send_all(request(n))
            await read_frames(active, 1)
            await trio.sleep(50)
        assert [conn.close_reason for conn in echo.closed] == ["idle"]
        assert await idle.receive_some(1) == b""


@pytest.mark.trio
@pytest.mark.parametrize(
    ("head", "spoken"),
    [
        (b"\x16\x03\x01\x02\x00", "TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 (gRPC)"),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n", "PROXY protocol"),
        (b"GET / HTTP/1.1\r\n\r\n", "HTTP/1.1"),
        (b"\xde\xad\xbe\xef", "unknown protocol"),
    ],
)
async def test_another_protocol_is_refused_with_one_clear_line(
    head: bytes, spoken: str, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    echo = Echo()
    async with serving(echo) as (network, _):
        stream = await network.open()
        await stream.send_all(head)
        assert await stream.receive_some(1) == b""
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "remoting protocol only" in lines[0].getMessage()
    assert vars(lines[0])["client_speaks"] == spoken
    assert echo.passes == []


@pytest.mark.trio
@pytest.mark.parametrize(
    "bad",
    [
        (0).to_bytes(4),
        (3).to_bytes(4) + b"abc",
        (16 * KIB * KIB).to_bytes(4) + b"x",
        (8).to_bytes(4) + (100).to_bytes(4) + b"abcd",
        (8).to_bytes(4) + b"\x00\x00\x00\x04" + b"null",
        (8).to_bytes(4) + b"\x7f\x00\x00\x04" + b"null",
    ],
    ids=["length 0", "length 3", "over the limit", "header beyond frame", "header null", "serialize type"],
)
async def test_a_bad_frame_ends_its_connection_and_nothing_else(
    bad: bytes, autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    echo = Echo()
    async with serving(echo) as (network, server):
        evil, good = await network.open(), await network.open()
        await evil.send_all(bad)
        assert await evil.receive_some(1) == b""
        await good.send_all(request(7, b"still here"))
        assert bytes((await read_frames(good, 1))[0].body) == b"still here"
        assert server.statistics().connections == 1
    assert caplog.text.count("bad frame") >= 1


@pytest.mark.trio
async def test_a_failing_handler_ends_its_connection_and_nothing_else(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    echo = Echo()

    def fail(conn: Connection) -> None:
        if conn.id == 1:
            raise ZeroDivisionError

    echo.before = fail
    async with serving(echo) as (network, _):
        first, second = await network.open(), await network.open()
        await first.send_all(request(1))
        assert await first.receive_some(1) == b""
        await second.send_all(request(1))
        assert len(await read_frames(second, 1)) == 1
    assert "request handler failed" in caplog.text


@pytest.mark.trio
async def test_close_sends_what_is_queued_first(autojump_clock: object) -> None:
    class Goodbye(Echo):
        def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
            super().on_frames(conn, frames)
            conn.close("enough")
            conn.send(b"never sent")

    service = Goodbye()
    async with serving(service) as (network, _):
        stream = await network.open()
        await stream.send_all(request(1, b"last words"))
        assert bytes((await read_frames(stream, 1))[0].body) == b"last words"
        assert await stream.receive_some(1) == b""
    assert [conn.close_reason for conn in service.closed] == ["enough"]


@pytest.mark.trio
async def test_close_does_not_wait_for_ever_for_a_client_that_does_not_read(autojump_clock: object) -> None:
    service = Echo()
    service.before = lambda conn: conn.close("enough")

    class Late(Echo):
        def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
            conn.send(bytes(100 * KIB))
            conn.close("enough")

    late = Late()
    async with serving(late) as (network, _):
        stream = await network.open(max_buffer=KIB)
        await stream.send_all(request(1))
        await trio.sleep(2)
        assert len(late.closed) == 1


@pytest.mark.trio
async def test_protocol_errors_of_the_service_close_the_connection(autojump_clock: object) -> None:
    class Picky(Echo):
        def on_frames(self, conn: Connection, frames: Sequence[bytes]) -> None:
            raise ProtocolError("not like this")

    service = Picky()
    async with serving(service) as (network, _):
        stream = await network.open()
        await stream.send_all(request(1))
        assert await stream.receive_some(1) == b""
    assert [conn.close_reason for conn in service.closed] == ["bad frame: not like this"]


@pytest.mark.trio
async def test_connections_above_the_limit_are_refused_and_counted(
    autojump_clock: object, caplog: pytest.LogCaptureFixture
) -> None:
    echo = Echo()
    async with serving(echo, Limits(connections_max=2)) as (network, server):
        streams = [await network.open() for _ in range(5)]
        for stream in streams[2:]:
            assert await stream.receive_some(1) == b""
        assert server.statistics().refused == 3
        await streams[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        again = await network.open()
        await again.send_all(request(1))
        assert len(await read_frames(again, 1)) == 1
    assert caplog.text.count("limit reached") == 1


@pytest.mark.trio
async def test_draining_sends_what_is_queued_and_accepts_nobody(autojump_clock: object) -> None:
    echo = Echo()
    async with serving(echo) as (network, server):
        reading, stuck = await network.open(), await network.open(max_buffer=KIB)
        await reading.send_all(request(1, b"answer me"))
        await trio.testing.wait_all_tasks_blocked()
        await stuck.send_all(request(1, bytes(10)))
        await trio.testing.wait_all_tasks_blocked()
        echo.conns[1].send(bytes(100 * KIB))
        began = trio.current_time()
        await server.drain()
        assert 0 < trio.current_time() - began <= 1.1
        assert bytes((await read_frames(reading, 1))[0].body) == b"answer me"
        late = await network.open()
        assert await late.receive_some(1) == b""
        assert len(echo.closed) == 2
        await server.drain()


@pytest.mark.trio
async def test_on_closed_is_called_once_for_every_way_to_go(autojump_clock: object) -> None:
    echo = Echo()
    async with serving(echo) as (network, _):
        gone, open_ = await network.open(), await network.open()
        await open_.send_all(request(1))
        await read_frames(open_, 1)
        await gone.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert len(echo.closed) == 1
    assert sorted(conn.id for conn in echo.closed) == [1, 2]
    assert all(conn.closed for conn in echo.closed)


@pytest.mark.trio
async def test_nothing_is_kept_of_a_thousand_connections(autojump_clock: object) -> None:
    echo = Echo()
    async with serving(echo) as (network, server):
        for _ in range(1000):
            stream = await network.open()
            await stream.send_all(request(1)[:9])
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        stats = server.statistics()
        assert (stats.connections, stats.held_bytes, stats.accepted) == (0, 0, 1000)


def test_limits_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="low <= high"):
        Limits(queued_low_bytes=10, queued_high_bytes=5)
    assert math.isfinite(Limits().idle_s)
