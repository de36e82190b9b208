"""Frames in WebSocket messages: the codec as a value, and our two ends on pipes."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage
from wsproto.events import Event as WSEvent

from tests.remoting.support import pipe
from trimq.errors import FrameTooLarge, ProtocolError
from trimq.remoting.websocket import NOT_A_FRAME, NOT_BINARY, TOO_BIG, Codec, WebSocketStream
from trimq.wire.frame import FrameDecoder

KIB = 1024


def connected() -> tuple[WSConnection, WSConnection]:
    """Client and server behind their handshake."""
    client, server = WSConnection(ConnectionType.CLIENT), WSConnection(ConnectionType.SERVER)
    server.receive_data(client.send(Request(host="h", target="/")))
    list(server.events())
    client.receive_data(server.send(AcceptConnection()))
    list(client.events())
    return client, server


def frame(size: int, filled: bytes = b"x") -> bytes:
    """A frame of `size` bytes, length word included."""
    return (size - 4).to_bytes(4, "big") + filled * (size - 4)


def events(ws: WSConnection, data: bytes) -> list[WSEvent]:
    ws.receive_data(data)
    return list(ws.events())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(8, 70_000), min_size=1, max_size=5), st.lists(st.integers(1, 50_000), max_size=20))
def test_frames_cut_anywhere_arrive_as_one_message_each(sizes: list[int], cuts: list[int]) -> None:
    client, server = connected()
    sender = Codec(client)
    stream = b"".join(frame(size, b"%d" % n) for n, size in enumerate(sizes))
    data = b""
    at = 0
    for cut in [*cuts, len(stream)]:
        data += sender.send(stream[at : at + cut])
        at += cut
    messages, piece = [], b""
    for event in events(server, data):
        assert isinstance(event, BytesMessage)
        piece += bytes(event.data)
        if event.message_finished:
            messages.append(piece)
            piece = b""
    assert messages == [frame(size, b"%d" % n) for n, size in enumerate(sizes)]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(8, 1_000), min_size=1, max_size=5), st.integers(1, 700))
def test_messages_read_in_pieces_give_the_frames_that_were_sent(sizes: list[int], cut: int) -> None:
    client, server = connected()
    frames = [frame(size, b"%d" % n) for n, size in enumerate(sizes)]
    data = b"".join(client.send(BytesMessage(data=each)) for each in frames)
    codec, decoder = Codec(server), FrameDecoder()
    got = [f for at in range(0, len(data), cut) for f in decoder.feed(codec.receive(data[at : at + cut]))]
    assert got == [each[4:] for each in frames]
    assert codec.failure is None
    assert codec.reply() == b""


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=300), st.booleans())
def test_any_bytes_give_frame_bytes_or_a_protocol_error(data: bytes, in_pieces: bool) -> None:
    _, server = connected()
    codec = Codec(server)
    for piece in [data[n : n + 1] for n in range(len(data))] if in_pieces else [data]:
        codec.receive(piece)
        if codec.failure is not None or codec.ended:
            assert codec.reply()
            break


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (BytesMessage(data=b""), NOT_A_FRAME),
        (BytesMessage(data=b"\0\0\0"), NOT_A_FRAME),
        (BytesMessage(data=frame(20) + b"y"), NOT_A_FRAME),
        (BytesMessage(data=frame(20)[:-1]), NOT_A_FRAME),
        (BytesMessage(data=frame(20) + frame(20)), NOT_A_FRAME),
        (BytesMessage(data=frame(8 * KIB + 1)), TOO_BIG),
        (BytesMessage(data=b"\x7f\xff\xff\xff", message_finished=False), TOO_BIG),
        (TextMessage(data="hello"), NOT_BINARY),
    ],
)
def test_a_message_that_is_not_one_frame_ends_the_connection_with_the_reason(message: WSEvent, code: int) -> None:
    client, server = connected()
    codec = Codec(server, 8 * KIB)
    codec.receive(client.send(message))
    assert isinstance(codec.failure, FrameTooLarge if code == TOO_BIG else ProtocolError)
    (bye,) = events(client, codec.reply())
    assert isinstance(bye, CloseConnection)
    assert bye.code == code
    assert bye.reason
    assert bye.reason in str(codec.failure)


def test_a_ping_between_the_pieces_of_a_message_is_answered_at_once() -> None:
    client, server = connected()
    codec = Codec(server)
    whole = frame(100)
    assert codec.receive(client.send(BytesMessage(data=whole[:50], message_finished=False))) == whole[:50]
    assert codec.receive(client.send(Ping(payload=b"?"))) == b""
    assert events(client, codec.reply()) == [Pong(payload=b"?")]
    assert codec.receive(client.send(BytesMessage(data=whole[50:]))) == whole[50:]


def test_the_other_sides_close_is_answered_and_ends_the_stream() -> None:
    client, server = connected()
    codec = Codec(server)
    codec.receive(client.send(CloseConnection(code=1000)))
    assert codec.ended
    assert codec.failure is None
    assert isinstance(events(client, codec.reply())[0], CloseConnection)
    with pytest.raises(ConnectionError, match="closing"):
        codec.send(frame(10))
    assert codec.ping() == codec.close(1000) == b""


@pytest.mark.trio
async def test_a_goodbye_never_comes_in_the_middle_of_a_message(autojump_clock: object) -> None:
    client_end, server_end = pipe("c", "s", max_buffer=KIB)
    client, server = connected()
    stream = WebSocketStream(server_end, Codec(server))
    with trio.move_on_after(1):
        await stream.send_all(frame(8 * KIB))
    await stream.aclose()
    received = b""
    with trio.move_on_after(1):
        while data := await client_end.receive_some(KIB):
            received += data
    assert {type(event) for event in events(client, received)} == {BytesMessage}


@pytest.mark.trio
async def test_what_comes_with_the_handshakes_answer_is_not_forgotten() -> None:
    client_end, _ = pipe("c", "s")
    client, server = WSConnection(ConnectionType.CLIENT), WSConnection(ConnectionType.SERVER)
    server.receive_data(client.send(Request(host="h", target="/")))
    client.receive_data(server.send(AcceptConnection()) + server.send(BytesMessage(data=frame(12))))
    next(iter(client.events()))
    assert await WebSocketStream(client_end, Codec(client)).receive_some(KIB) == frame(12)
