"""Batch bodies, compressed bodies, messages as clients see them."""

from __future__ import annotations

import struct
import zlib
from struct import pack

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.message.test_record import packed
from tests.wire.bounds import PROPERTY, i32, i64
from trimq.errors import BadRequest, RecordError
from trimq.message import compression
from trimq.message.batch import (
    BatchElement,
    RunHead,
    encode_batch,
    iter_batch,
    pack_run,
)
from trimq.message.compression import compress, decompress
from trimq.message.model import MessageQueue, decode_messages
from trimq.message.record import unpack_record
from trimq.message.sysflag import COMPRESSED, COMPRESSION_LZ4, COMPRESSION_ZLIB, COMPRESSION_ZSTD

elements = st.builds(BatchElement, st.binary(max_size=40), st.binary(max_size=40), i32)
METHODS = ["zlib", "lz4", "zstd"]


@PROPERTY
@given(st.lists(elements, min_size=1, max_size=6))
def test_a_batch_survives(batch: list[BatchElement]) -> None:
    assert iter_batch(encode_batch(batch)) == batch


@PROPERTY
@given(st.binary(max_size=120))
def test_any_bytes_are_a_batch_or_raise_a_record_error(data: bytes) -> None:
    try:
        assert encode_batch(iter_batch(data)).startswith(data[:4])
    except RecordError:
        pass


@PROPERTY
@given(st.lists(elements, min_size=1, max_size=3), st.data())
def test_a_batch_with_a_byte_changed_reads_or_raises_a_record_error(
    batch: list[BatchElement], data: st.DataObject
) -> None:
    raw = bytearray(encode_batch(batch))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        iter_batch(bytes(raw))
    except RecordError:
        pass


hosts = st.sampled_from([bytes(8), b"\x7f\0\0\x01\0\0\x2a\x9f", bytes(20)])
heads = st.builds(
    RunHead,
    topic=st.binary(max_size=130),
    queue_id=i32,
    queue_offset=st.integers(0, 2**62),
    position=st.integers(0, 2**62),
    sys_flag=i32,
    born_ms=i64,
    born_host=hosts,
    store_ms=i64,
    store_host=hosts,
    reconsume_times=i32,
    prepared_offset=i64,
)


@PROPERTY
@given(heads, st.lists(elements, max_size=4))
def test_the_records_of_a_batch_say_what_its_elements_say(head: RunHead, batch: list[BatchElement]) -> None:
    records = pack_run(head, batch)
    at = head.position
    for number, (raw, element) in enumerate(zip(records, batch, strict=True)):
        record = unpack_record(raw)
        assert (record.queue_offset, record.position) == (head.queue_offset + number, at)
        assert (bytes(record.body), record.properties) == (element.body, element.properties)
        at += len(raw)


def test_a_run_that_fits_no_record_is_refused_as_one_record_is() -> None:
    head = RunHead(
        topic=b"T",
        queue_id=0,
        queue_offset=0,
        position=0,
        sys_flag=0,
        born_ms=1 << 63,
        born_host=bytes(8),
        store_ms=0,
        store_host=bytes(8),
        reconsume_times=0,
        prepared_offset=0,
    )
    with pytest.raises(struct.error):
        pack_run(head, [BatchElement(b"x")])
    with pytest.raises(BadRequest, match="32767"):
        pack_run(msgspec.structs.replace(head, born_ms=0), [BatchElement(b"x", bytes(32768))])
    (record,) = pack_run(msgspec.structs.replace(head, born_ms=0), [BatchElement(memoryview(b"view"))])  # type: ignore[arg-type]
    assert bytes(unpack_record(record).body) == b"view"


def test_batches_that_are_none() -> None:
    good = encode_batch([BatchElement(b"ab", b"TAGS\x01A\x02")])
    for bad in (b"", good[:-1], good + b"\0", pack(">I", 0) + good[4:], good[:16] + b"\xff\xff\xff\xff" + good[20:]):
        with pytest.raises(RecordError):
            iter_batch(bad)
    too_long = pack(">IIIiI", 22 + 40000, 0, 0, 0, 0) + pack(">H", 40000) + bytes(40000)
    with pytest.raises(RecordError):
        iter_batch(too_long)
    with pytest.raises(BadRequest):
        encode_batch([BatchElement(b"", bytes(40000))])


@pytest.mark.parametrize("method", METHODS)
def test_a_compressed_body_survives(method: str) -> None:
    body = b"hello hello hello " * 100
    data, bits = compress(body, method)
    assert len(data) < len(body)
    assert bits & COMPRESSED
    assert decompress(data, bits) == body
    assert decompress(memoryview(data), bits) == body
    assert decompress(*compress(b"", method)) == b""


def test_zlib_is_also_what_no_type_means() -> None:
    assert decompress(zlib.compress(b"old client"), COMPRESSED) == b"old client"
    assert decompress(b"as it is", 0) == b"as it is"


@pytest.mark.parametrize("method", METHODS)
def test_an_expansion_stops_at_its_cap(method: str) -> None:
    data, bits = compress(bytes(3_000_000), method)
    with pytest.raises(RecordError, match="more than 1000000"):
        decompress(data, bits, 1_000_000)
    assert decompress(data, bits, 3_000_000) == bytes(3_000_000)


def test_a_zstd_frame_that_hides_its_size_stops_at_the_cap_too() -> None:
    zstandard = pytest.importorskip("zstandard")
    writer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    data = writer.compress(bytes(3_000_000)) + writer.flush()
    with pytest.raises(RecordError, match="more than"):
        decompress(data, COMPRESSED | COMPRESSION_ZSTD, 1_000_000)


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_or_cut_compressed_body_is_refused(method: str) -> None:
    data, bits = compress(bytes(range(256)) * 20, method)
    for bad in (b"", b"garbage", data[:-3], data[: len(data) // 2]):
        with pytest.raises(RecordError):
            decompress(bad, bits)


@PROPERTY
@given(st.binary(max_size=60), st.sampled_from([0, COMPRESSION_ZLIB, COMPRESSION_LZ4, COMPRESSION_ZSTD, 0x400, 0x700]))
def test_any_bytes_expand_or_raise_a_record_error(data: bytes, kind: int) -> None:
    heads = (b"", bytes.fromhex("28b52ffd"), bytes.fromhex("04224d18"), b"\x78\x9c")
    for head in heads:
        try:
            decompress(head + data, COMPRESSED | kind, 1_000_000)
        except RecordError:
            pass


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    monkeypatch.setitem(sys.modules, "zstandard", None)
    for method in ("lz4", "zstd"):
        with pytest.raises(BadRequest, match="pip install"):
            compress(b"x", method)
    with pytest.raises(BadRequest, match="unknown compression"):
        compress(b"x", "rar")
    assert compression.DEFAULT_LEVEL == 5


def test_a_message_as_a_client_sees_it() -> None:
    body, bits = compress(b"hello")
    raw = packed(body=body, sys_flag=bits, properties=b"TAGS\x01A\x02KEYS\x01k1 k2\x02UNIQ_KEY\x01" + b"F" * 32)
    first, second = decode_messages(raw + packed(properties=b""))
    assert (first.topic, first.body, first.tag, first.keys) == ("T1", b"hello", "A", ("k1", "k2"))
    assert first.message_id == "F" * 32
    assert (first.born_address, first.store_address) == ("127.0.0.1:50000", "127.0.0.1:10911")
    assert second.message_id == second.offset_message_id == "7F00000100002A9F00000000000003E8"
    assert (second.tag, second.keys, second.stored_bytes) == (None, (), len(packed(properties=b"")))


def test_queues_sort_as_every_client_shares_them_out() -> None:
    queues = [
        MessageQueue("T", "b", 1),
        MessageQueue("T", "a", 2),
        MessageQueue("S", "z", 0),
        MessageQueue("T", "a", 0),
    ]
    assert sorted(queues) == [queues[2], queues[3], queues[1], queues[0]]
