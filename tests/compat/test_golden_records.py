"""Stored messages, ids, index codes and batch elements, fixed byte for byte."""

from __future__ import annotations

from struct import pack

from trimq.message import properties
from trimq.message.batch import BatchElement, encode_batch, iter_batch
from trimq.message.ids import host_bytes, offset_message_id, parse_offset_message_id
from trimq.message.model import decode_messages
from trimq.message.record import pack_record, unpack_record
from trimq.message.tags import tags_code

STORED = bytes.fromhex(
    "00000093 daa320a7 3610a686 00000001 00000000 0000000000000005 00000000000003e8 00000000"
    "0000018bcfe56800 7f000001 0000c350 0000018bcfe56801 7f000001 00002a9f 00000000 0000000000000000"
    "00000005 68656c6c6f 02 5431 0031 54414753 01 41 02 554e49515f4b4559 01"
    "3746303030303031303030313030303030303030303030303030303030303041 02"
)


def test_a_stored_message() -> None:
    assert len(STORED) == 147
    packed = pack_record(
        topic=b"T1",
        queue_id=1,
        queue_offset=5,
        position=1000,
        flag=0,
        sys_flag=0,
        born_ms=1700000000000,
        born_host=host_bytes("127.0.0.1:50000"),
        store_ms=1700000000001,
        store_host=host_bytes("127.0.0.1:10911"),
        reconsume_times=0,
        prepared_offset=0,
        body=b"hello",
        properties=properties.format({"TAGS": "A", "UNIQ_KEY": "7F00000100010000000000000000000A"}).encode(),
    )
    assert packed == STORED
    (message,) = decode_messages(STORED)
    assert (message.topic, message.body, message.queue_offset) == ("T1", b"hello", 5)
    assert message.message_id == "7F00000100010000000000000000000A"


def test_its_offset_id() -> None:
    record = unpack_record(STORED)
    assert offset_message_id(record.store_host, record.position) == "7F00000100002A9F00000000000003E8"
    assert parse_offset_message_id("7F00000100002A9F00000000000003E8") == (record.store_host, 1000)


def test_its_index_unit() -> None:
    record = unpack_record(STORED)
    code = tags_code(properties.get(record.properties, b"TAGS"))
    assert pack(">qiq", record.position, record.size, code) == bytes.fromhex(
        "00000000000003e8 00000093 0000000000000041"
    )


def test_the_same_with_ipv6_hosts_is_24_bytes_longer() -> None:
    record = pack_record(
        topic=b"T1",
        queue_id=1,
        queue_offset=5,
        position=1000,
        flag=0,
        sys_flag=0,
        born_ms=1700000000000,
        born_host=host_bytes("[::1]:50000"),
        store_ms=1700000000001,
        store_host=host_bytes("[::1]:10911"),
        reconsume_times=0,
        prepared_offset=0,
        body=b"hello",
        properties=unpack_record(STORED).properties,
    )
    assert len(record) == 171
    assert record[36:40] == bytes.fromhex("00000030")
    assert record[48:68] == bytes(15) + b"\x01" + bytes.fromhex("0000c350")
    assert record[76:96] == bytes(15) + b"\x01" + bytes.fromhex("00002a9f")
    assert record[108:] == STORED[84:]


def test_a_batch_element() -> None:
    element = bytes.fromhex("0000001f 00000000 00000000 00000000 00000002 6162 0007 54414753014102")
    assert encode_batch([BatchElement(b"ab", b"TAGS\x01A\x02")]) == element
    assert iter_batch(element * 2) == [BatchElement(b"ab", b"TAGS\x01A\x02")] * 2
